"""What the oracle trains: a model and a batch in which bugs have nowhere to hide.

Each inconvenience is there because some bug is invisible without it:

    grouped-query attention     q, k and v then have different sizes, and are cut differently
    5 key-value heads, ffn 47, vocabulary 37    which no axis divides: shards are not equally large
    layers = stages + 1         stages do not have equally many
    head tied to the embedding  one parameter with two gradients, on two stages
    labels that do not count    unequally many on each replica and in each micro-batch, so that
                                averaging averages is not averaging
    several micro-batches       as many as no axis has ranks, so that a gradient which is 3 times
                                too large names its culprit
    clipping in every step      then the norm decides each update, and a norm of too few or too many
                                tensors moves every parameter
    a second model              untied, with a table of so many rows that its gradient is a bucket
                                above 512 KB: large messages go another way than small ones, and an
                                untied head is a parameter of its own on the last stage;
                                in fp64 queries, keys and values have biases, cut as rows are
                                (a softmax does not see what is added to all keys, so the gradient
                                of keys' biases is what rotation leaves of a sum that would be 0:
                                in fp32 its rounding is above what is allowed elsewhere)
    experts, where ep is split  as many as three times ep; 2 a token, so that its rows go to two
                                places. In the tied model with all that looks at other tokens or
                                moves by itself: a capacity that drops, groups, a bias, a shared
                                expert, a dense first layer, normalised queries and keys (not in
                                bf16 and fp16: of four numbers the root mean square may be tiny, and
                                the few tokens whose gradient is divided by it are most of the whole
                                one, so that errors no longer average: up to 24 u were seen, of 7 u
                                without); in the untied one without
    fewer key-value heads than  in the second model: neighbours of tp hold the same one, whose
    ranks of tp                 gradient is a sum over them, and count it once
    AdamW's eps 1e-5            at 1e-8 a parameter whose gradient is all but 0 moves by the sign of
                                a rounding error, and layouts that are right would differ

The batch depends on the layout only in its size: at least four sequences a micro-batch, as many for
each replica, and at least 12 tokens a sequence, as many as its chunks allow. The tokens of a
sequence are all different, so it can be seen where in it a rank's tokens come from.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch

from picolab.model.transformer import IGNORED
from picolab.specs import Layout, ModelConfig
from picolab.specs.schedule_name import ScheduleName
from picolab.training import TrainConfig

SHORT = ("bf16", "fp16")
VOCABULARY, KV_HEADS, FFN, SHORTEST = 37, 5, 47, 12
# Rows of the untied model's table. A multiple of no axis; times 32 columns of fp32, 1.05 MB, which
# halves of tensor parallelism keep above 512 KB. Tokens are those of the small vocabulary.
LARGE = 8_219
EVERYTHING = dict(
    router_score="sigmoid", router_scale=1.5, router_groups=3, router_groups_kept=2,
    router_bias=0.01, capacity=1.0, aux_over="sequence", shared_experts=1, dense_layers=1,
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """Everything that one process and the ranks of the layout have to agree on."""

    layout: Layout
    precision: str
    steps: int
    seed: int
    tied: bool = True
    """The model whose head is the embedding, or the one with a large table of its own."""
    expert_copies: str | None = None
    """As in TrainConfig."""

    @cached_property
    def config(self) -> ModelConfig:
        """Two query heads a key-value head, and nothing that an axis divides; in the second model
        more ranks of tp than key-value heads."""
        layout = self.layout
        chunks = 2 * layout.cp if layout.cp > 1 else 1
        shares = layout.cp * layout.tp if layout.sp else 1
        chunk = math.lcm(chunks, shares)
        heads, kv_heads = self._heads()
        experts: dict = {}
        if layout.ep > 1:
            experts = dict(experts=3 * layout.ep, experts_per_token=2, expert_ffn=11, aux_loss=0.05)
            experts |= EVERYTHING if self.tied else dict(z_loss=0.01)
        return ModelConfig(
            name="the oracle's model",
            hidden=32,
            ffn=FFN,
            layers=sum(layout.stages) or layout.stage_count + 1,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=4,
            vocab=VOCABULARY if self.tied else LARGE,
            seq=chunk * -(-SHORTEST // chunk),
            tied=self.tied,
            qkv_bias=not self.tied and self.precision == "fp64",
            qk_norm=layout.ep > 1 and self.tied and self.precision not in SHORT,
            **experts,
        )

    def _heads(self) -> tuple[int, int]:
        """Query heads and key-value heads."""
        tp = self.layout.tp
        if self.tied or tp == 1:
            kv_heads = max(KV_HEADS, tp)
            return 2 * kv_heads, kv_heads
        copies = next(n for n in range(2, tp + 1) if tp % n == 0)
        return 2 * tp, tp // copies

    @cached_property
    def training(self) -> TrainConfig:
        return TrainConfig(
            model=self.config,
            layout=self.layout,
            data="random",  # not read: `batch` below is the data
            steps=self.steps,
            micro_batch=self.rows // self.layout.dp,
            accumulate=self.accumulate,
            precision=self.precision,
            products="rounded",  # as every machine does it
            lr=1e-2,
            warmup=0,
            eps=1e-5,
            clip=0.1,
            seed=self.seed,
            expert_copies=self.expert_copies,
            bucket_bytes=5_000 * (8 if self.precision == "fp64" else 4),
        )

    @property
    def rows(self) -> int:
        """Sequences in a global micro-batch."""
        dp = self.layout.dp
        return dp * -(-4 // dp)

    @property
    def accumulate(self) -> int:
        """The smallest number of micro-batches, not fewer than ranks of pp, that the schedule can
        have and that is no axis's size: ratios then tell which."""
        sizes = {*self.layout.axes.values(), self.layout.dp * self.layout.cp, self.layout.ep}
        name = ScheduleName.parse(self.layout.schedule)
        least = [name.micro_batches(self.layout.pp, m) for m in range(max(2, self.layout.pp), 99)]
        return next(m for m in least if m not in sizes)

    def batch(self, step: int, micro: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and labels (rows, seq) of one global micro-batch; no two sequences of a step are
        equal."""
        seq, row = self.config.seq, torch.arange(self.rows).unsqueeze(1)
        generator = torch.Generator().manual_seed(1000 * self.seed + 100 * step + micro)
        start = torch.randperm(VOCABULARY, generator=generator)[: self.rows].unsqueeze(1)
        data = (start + (3 + 2 * micro) * torch.arange(seq + 1)) % VOCABULARY
        # Of 12 labels 12, 7, 2, 9, ... count in the first micro-batch, and fewer later.
        counted = 1 + (seq - 1 - 5 * row) % seq // (1 + micro)
        labels = data[:, 1:].masked_fill(torch.arange(seq) >= counted, IGNORED)
        return data[:, :-1], labels

    def part(self, step: int, micro: int, replica: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The sequences of one replica."""
        return tuple(whole.chunk(self.layout.dp)[replica] for whole in self.batch(step, micro))

    def counts(self, step: int = 0) -> list[int]:
        """Labels that count, of each replica."""
        return [
            sum(int((self.part(step, m, r)[1] != IGNORED).sum()) for m in range(self.accumulate))
            for r in range(self.layout.dp)
        ]


class AwkwardText:
    """Stands where the trainer expects a `training.Text`: gives each replica its part of the
    batch."""

    def __init__(self, recipe: Recipe):
        self._recipe, self._step = recipe, 0

    def batch(
        self, *, dp_rank: int, dp_size: int, micro_batch: int, accumulate: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        parts = [self._recipe.part(self._step, m, dp_rank) for m in range(accumulate)]
        self._step += 1
        tokens_MBS, labels_MBS = map(torch.stack, zip(*parts))
        return tokens_MBS, labels_MBS

    def state_dict(self, hashed: bool = True) -> dict:
        return {"step": self._step}
