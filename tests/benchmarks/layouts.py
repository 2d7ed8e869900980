"""What parallel code costs: tokens per CPU-second of each layout, as a share of one process.

    python tests/benchmarks/layouts.py [--steps 6] [--rounds 3] [--only dp2,tp2]

On two cores, four ranks cannot be faster than two, so wall time says nothing. CPU-seconds do: a
layout's ranks together should spend no more of them on a token than one process does; what is
missing is overhead (communication, copies, Python). The configuration is the one at which
picotron was measured: hidden 256, ffn 688, 8 layers, 8/4 heads, vocabulary 4096, sequence 256,
micro-batch 2, accumulation 4, fp32, one thread a rank. Beside each layout stands torch's own way
on a plain model of the same shape: DDP, DTensor, `torch.distributed.pipelining`, and beside ZeRO
`fully_shard` (FSDP2): for stage 3 as it is, gathering again in backward, for stages 1 and 2 (which
it has not apart) keeping what forward gathered; gradients are reduced once a step in all of them.
Everything in one run of this program; nothing is asserted.

Two shares, because one process alone has the machine to itself. Two that do not even know of each
other already get less done in a CPU-second: they share caches, memory and the cores' clock. "of
one" compares with one process alone (and the targets are for it), "of n apart" with as many
independent processes at the same time, which is what parallel code could reach at best.

All layouts in turn, in `--rounds` rounds; what is printed is the median over the rounds, of ratios
within one round, so that a machine that is slow for a while is slow for all that are compared.
`--in-turn 14` puts ours and torch's DDP and FSDP2 into the same processes, a step of each in turn:
the finest comparison there is, also on a machine that is not quiet."""

import argparse
import math
import statistics
import time

from tqdm import tqdm

import picolab as pico
from picolab.show.table import Table
from picolab.specs import Layout, TrainConfig

SHAPE = {
    "hidden": 256,
    "ffn": 688,
    "layers": 8,
    "heads": 8,
    "kv_heads": 4,
    "vocab": 4096,
    "seq": 256,
}
MICRO_BATCH, ACCUMULATE = 2, 4
LAYOUTS = [
    "dp1",
    "dp2",
    "tp2",
    "pp2",
    "cp2",
    "dp4",
    "tp4",
    "pp4",
    *("pp2:gpipe", "pp2:interleaved", "pp2:zb-h1", "pp2:zb-v", "pp2:dualpipe-v"),
    *("pp4:interleaved", "pp4:zb-h1"),
    "cp4",
    "dp2tp2",
    "dp2pp2",
    "tp2pp2",
    *("dp2zero1", "dp2zero2", "dp2zero3", "dp4zero2", "dp4zero3"),
    "dp2ep2",
]
# Of ep: eight experts, of which a token passes two that are together as wide as the MLP. It is
# compared with one process of that model.
EXPERTS = {"experts": 8, "experts_per_token": 2, "expert_ffn": 344, "aux_loss": 0.01}
TORCHS_NAMES = {
    "1f1b": "Schedule1F1B",
    "gpipe": "ScheduleGPipe",
    "interleaved": "ScheduleInterleaved1F1B",
    "zb-h1": "ScheduleInterleavedZeroBubble",
    "zb-v": "ScheduleZBVZeroBubble",
    "dualpipe-v": "ScheduleDualPipeV",
}
TARGETS = {"dp2": 97, "dp4": 97, "pp2": 97, "pp4": 97, "cp2": 87, "cp4": 87}  # others 75
# Of ZeRO the aim is for "of n apart", and to be at least FSDP2's.
TARGETS |= {f"dp{n}zero{stage}": 95 if stage < 3 else 90 for n in (2, 4) for stage in (1, 2, 3)}


def ours(layout: str, steps: int, experts: bool = False) -> tuple[float, float]:
    """Tokens per CPU-second after the first step, and seconds from the call to the end of the
    first step. experts: of the model that has some.
    """
    called = time.time()
    run = pico.train(
        layout=layout,
        data="random",
        steps=steps,
        micro_batch=MICRO_BATCH,
        accumulate=ACCUMULATE,
        progress=False,
        **(SHAPE | EXPERTS if experts else SHAPE),
    )
    events = [e for e in run.events if e.kind == "step"]
    first = max(e.t for e in events if e.data["step"] == 0) - called
    cpu_s = sum(e.data["cpu_s"] for e in events if e.data["step"] > 0)
    tokens = sum(run.tokens[1:])
    return tokens / cpu_s, first


def torchs(kind: str, ranks: int, steps: int) -> float:
    """Tokens per CPU-second of torch's own parallelism on a plain model of the same shape."""
    spent = pico.run(plain_training, kind, steps, world_size=ranks, quiet=True)
    replicas = ranks if kind in ("DDP", "one process", *FSDP2) else 1
    tokens = (steps - 1) * replicas * ACCUMULATE * MICRO_BATCH * SHAPE["seq"]
    return tokens / sum(spent)


def plain_training(kind: str, steps: int) -> float:
    """In a rank: CPU seconds of all steps but the first."""
    import torch
    import torch.distributed as dist

    torch.manual_seed(0)
    model = plain_llama()
    if kind.startswith("pipelining"):
        step = pipelined(model, kind.partition(" ")[2])
    else:
        kinds = {"one process": accumulated, "DDP": ddp, "DTensor": dtensor}
        step = (kinds | FSDP2)[kind](model)
    shape = (ACCUMULATE, MICRO_BATCH, SHAPE["seq"])
    generator = torch.Generator().manual_seed(dist.get_rank() if kind in ("DDP", *FSDP2) else 0)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, foreach=kind != "DTensor")
    names = {type(p.data).__name__ for p in parameters}
    groups = [[p for p in parameters if type(p.data).__name__ == name] for name in names]
    spent = 0.0
    for i in range(steps):
        tokens = torch.randint(0, SHAPE["vocab"], shape, generator=generator)
        labels = torch.randint(0, SHAPE["vocab"], shape, generator=generator)
        began = time.process_time()
        optimizer.zero_grad()
        step(tokens, labels)
        for group in groups:  # DTensors and plain ones cannot be clipped in one call
            torch.nn.utils.clip_grad_norm_(group, 1.0)
        optimizer.step()
        if i > 0:
            spent += time.process_time() - began
    return spent


def plain_llama():
    """Our shape as anybody would write it: nn.Linear, nothing fused, nothing split."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    hidden, heads, kv = SHAPE["hidden"], SHAPE["heads"], SHAPE["kv_heads"]
    size = hidden // heads

    def linear(i, o):
        return nn.Linear(i, o, bias=False)

    frequencies = 10000.0 ** (-torch.arange(0, size, 2).double() / size)
    angles = torch.outer(torch.arange(SHAPE["seq"]).double(), frequencies).repeat(1, 2)
    cos, sin = angles.cos().float(), angles.sin().float()

    def rotate(x):
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat((-b, a), -1) * sin

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.n1, self.n2 = nn.RMSNorm(hidden, eps=1e-5), nn.RMSNorm(hidden, eps=1e-5)
            self.q, self.o = linear(hidden, hidden), linear(hidden, hidden)
            self.k, self.v = linear(hidden, kv * size), linear(hidden, kv * size)
            self.gate, self.up = linear(hidden, SHAPE["ffn"]), linear(hidden, SHAPE["ffn"])
            self.down = linear(SHAPE["ffn"], hidden)

        def forward(self, x):
            y = self.n1(x)
            q, k, v = (
                m(y).unflatten(-1, (-1, size)).transpose(1, 2) for m in (self.q, self.k, self.v)
            )
            z = F.scaled_dot_product_attention(
                rotate(q), rotate(k), v, is_causal=True, enable_gqa=True
            )
            x = x + self.o(z.transpose(1, 2).flatten(2))
            y = self.n2(x)
            return x + self.down(F.silu(self.gate(y)) * self.up(y))

    return nn.ModuleDict(
        {
            "embed": nn.Embedding(SHAPE["vocab"], hidden),
            "blocks": nn.Sequential(*(Block() for _ in range(SHAPE["layers"]))),
            "norm": nn.RMSNorm(hidden, eps=1e-5),
            "head": linear(hidden, SHAPE["vocab"]),
        }
    )


def run_plain(model, tokens):
    return model["head"](model["norm"](model["blocks"](model["embed"](tokens))))


def mean_loss(logits, labels):
    import torch.nn.functional as F

    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def accumulated(model):
    def step(tokens, labels):
        for m in range(ACCUMULATE):
            (mean_loss(run_plain(model, tokens[m]), labels[m]) / ACCUMULATE).backward()

    return step


def ddp(model):
    from contextlib import nullcontext

    from torch import nn

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = model

        def forward(self, tokens):
            return run_plain(self.parts, tokens)

    wrapped = nn.parallel.DistributedDataParallel(Whole(), gradient_as_bucket_view=True)

    def step(tokens, labels):
        for m in range(ACCUMULATE):
            with nullcontext() if m == ACCUMULATE - 1 else wrapped.no_sync():
                (mean_loss(wrapped(tokens[m]), labels[m]) / ACCUMULATE).backward()

    return step


def sharded(model, again: bool):
    """FSDP2: a group for each block, and one for the rest."""
    from torch import nn
    from torch.distributed.fsdp import fully_shard

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = model

        def forward(self, tokens):
            return run_plain(self.parts, tokens)

    whole = Whole()
    for block in model["blocks"]:
        fully_shard(block, reshard_after_forward=again)
    fully_shard(whole, reshard_after_forward=again)

    def step(tokens, labels):
        for m in range(ACCUMULATE):
            last = m == ACCUMULATE - 1
            whole.set_requires_gradient_sync(last)
            if not again:  # stages 1 and 2: whole until the step is over
                whole.set_reshard_after_backward(last)
            (mean_loss(whole(tokens[m]), labels[m]) / ACCUMULATE).backward()

    return step


FSDP2 = {
    "FSDP2": lambda model: sharded(model, again=True),
    "FSDP2 without resharding": lambda model: sharded(model, again=False),
}


def dtensor(model):
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        loss_parallel,
        parallelize_module,
    )

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    plan = {"embed": RowwiseParallel(input_layouts=Replicate())}
    plan["head"] = ColwiseParallel(output_layouts=Shard(-1), use_local_output=False)
    for i in range(SHAPE["layers"]):
        for name in ("q", "k", "v", "gate", "up"):
            plan[f"blocks.{i}.{name}"] = ColwiseParallel()
        for name in ("o", "down"):
            plan[f"blocks.{i}.{name}"] = RowwiseParallel()
    parallelize_module(model, mesh, plan)

    def step(tokens, labels):
        for m in range(ACCUMULATE):
            with loss_parallel():
                (mean_loss(run_plain(model, tokens[m]), labels[m]) / ACCUMULATE).backward()

    return step


def pipelined(model, name):
    """The schedule of that name in torch, on the stages that ours has."""
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.distributed import pipelining

    layout = Layout(pp=dist.get_world_size(), schedule=name)
    count = len(layout.stage_ranks)
    stages, kept = [], set()
    for number, layers in pico.costs.rank_stages(SHAPE["layers"], layout, dist.get_rank()).items():
        parts = [model["embed"]] if number == 0 else []
        parts += [nn.Sequential(*(model["blocks"][i] for i in layers))]
        parts += [model["norm"], model["head"]] if number == count - 1 else []
        part = nn.Sequential(*parts)
        stages.append(pipelining.PipelineStage(part, number, count, torch.device("cpu")))
        kept |= {id(p) for p in part.parameters()}
    single = name in ("1f1b", "gpipe")
    schedule = getattr(pipelining, TORCHS_NAMES[name])(
        stages[0] if single else stages, n_microbatches=ACCUMULATE, loss_fn=mean_loss
    )
    for p in model.parameters():
        p.requires_grad_(id(p) in kept)

    def step(tokens, labels):
        given = (tokens.flatten(0, 1),) if stages[0].is_first else ()
        target = {"target": labels.flatten(0, 1)} if stages[-1].is_last else {}
        schedule.step(*given, **target)

    return step


TWINS = {"dp": "DDP", "tp": "DTensor"} | {
    f"dp{n}zero{stage}": "FSDP2" if stage == 3 else "FSDP2 without resharding"
    for n in (2, 4)
    for stage in (1, 2, 3)
}


def twin(layout: str) -> str | None:
    """torch's own way of a layout, as `torchs` calls it."""
    if layout.startswith("pp"):
        return f"pipelining {Layout.parse(layout).schedule}"
    return TWINS.get(layout[:2] if layout[2:].isdigit() else layout)


def one_round(layouts: list[str], steps: int, told) -> dict:
    """Everything once, in turn. Of each layout: its share of one process, of n apart, torch's
    share of n apart, tokens per CPU-second of ours and torch's, and seconds to the first step.
    """

    def measured(what, *given):
        told.set_description(str(given[0]))
        result = what(*given)
        told.update()
        return result

    alone = {False: measured(ours, "dp1", steps)}
    plain = measured(torchs, "one process", 1, steps)
    apart: dict[int, float] = {}  # ranks -> what so many independent processes get, of one alone
    found = {"dp1": (1.0, 1.0, 1.0, alone[False][0], plain, alone[False][1])}
    for layout in layouts:
        ranks, experts = Layout.parse(layout).world, Layout.parse(layout).ep > 1
        if ranks not in apart:
            apart[ranks] = measured(torchs, "one process", ranks, steps) / plain
        if experts not in alone:
            alone[experts] = measured(ours, "dp1", steps, experts)
        speed, first = measured(ours, layout, steps, experts)
        theirs = measured(torchs, twin(layout), ranks, steps) if twin(layout) else math.nan
        share = speed / alone[experts][0]
        of_apart = theirs / plain / apart[ranks]
        found[layout] = (share, share / apart[ranks], of_apart, speed, theirs, first)
    return found


def in_turn(layout: str, kind: str, rounds: int) -> list[tuple[float, float]]:
    """In a rank: CPU seconds of a step of ours and of one of torch's, both models in the same
    process and a step of each in turn: nothing comes nearer to the same conditions.
    """
    import torch
    import torch.distributed as dist

    from picolab.training.precision_named import of_config
    from picolab.training.trainer import Run, train_step

    config = TrainConfig(
        model=pico.ModelConfig(**SHAPE), layout=layout, data="random", steps=rounds,
        micro_batch=MICRO_BATCH, accumulate=ACCUMULATE,
    )  # fmt: skip
    shape = (ACCUMULATE, MICRO_BATCH, SHAPE["seq"])
    found = []
    with Run(config, [], of_config(config)) as run:
        run.prepare()
        model = plain_llama()
        step = ({"DDP": ddp, "one process": accumulated} | FSDP2)[kind](model)
        parameters = list(model.parameters())
        optimizer = torch.optim.AdamW(parameters, lr=1e-3, foreach=True)
        for number in range(rounds):
            began = time.process_time()
            train_step(run, number)
            ours = time.process_time() - began
            dist.barrier()
            tokens, labels = torch.randint(0, SHAPE["vocab"], (2, *shape)).unbind()
            began = time.process_time()
            optimizer.zero_grad()
            step(tokens, labels)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            found.append((ours, time.process_time() - began))
            dist.barrier()
    return found[2:]


def print_in_turn(layouts: list[str], rounds: int) -> None:
    rows = []
    for layout in tqdm(layouts, unit="layout"):
        kind = twin(layout) if layout != "dp1" else "one process"
        if kind not in ("DDP", "one process", *FSDP2):
            continue
        world = Layout.parse(layout).world
        each = pico.run(in_turn, layout, kind, rounds, world_size=world, quiet=True)
        steps = [tuple(map(sum, zip(*of, strict=True))) for of in zip(*each, strict=True)]
        ratios = sorted(theirs / ours for ours, theirs in steps)
        middle = statistics.median(ratios)
        quarter = len(ratios) // 4
        spread = f"{ratios[quarter]:.2f} to {ratios[-1 - quarter]:.2f}"
        rows.append([layout, kind, f"{middle:.3f}", spread])
    columns = ["layout", "torch's", "ours / torch's, tokens per CPU-second", "middle half"]
    print(Table(columns, rows, f"a step of each in turn, {rounds - 2} times"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(LAYOUTS))
    parser.add_argument("--in-turn", type=int, metavar="STEPS", help="beside torch's, step by step")
    options = parser.parse_args()
    if options.in_turn:
        print_in_turn(options.only.split(","), options.in_turn)
        return
    layouts = [layout for layout in options.only.split(",") if layout != "dp1"]
    pico.run(print, world_size=1, quiet=True)  # the rank server is warm from here on
    with tqdm(unit="run") as told:
        rounds = [one_round(layouts, options.steps, told) for _ in range(options.rounds)]
    rows = []
    for layout in ["dp1", *layouts]:
        each = [found[layout] for found in rounds]
        share, of_apart, theirs_of_apart, speed, theirs, first = map(
            statistics.median, zip(*each, strict=True)
        )
        better = [ours / theirs for *_, ours, theirs, _ in each]
        target = f"{TARGETS.get(layout.partition(':')[0], 75)} %" if layout != "dp1" else ""
        row = [layout, f"{speed:.0f}", f"{share:.0%}", target, f"{of_apart:.0%}", f"{first:.2f} s"]
        if theirs == theirs:  # torch has one
            row += [
                f"{theirs:.0f}",
                f"{theirs_of_apart:.0%}",
                f"{statistics.median(better):.2f} ({min(better):.2f} to {max(better):.2f})",
                twin(layout) or "one process",
            ]
        rows.append(row + [""] * (10 - len(row)))
    head = ["layout", "tokens/CPU-s", "of one", "target", "of n apart", "first step"]
    print(Table([*head, "torch's", "of n apart", "ours / torch's", "which"], rows))


if __name__ == "__main__":
    main()
