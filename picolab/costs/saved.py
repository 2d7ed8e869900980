"""What the operators of *our* block leave for the backward pass, module by module, to the byte.

`activations.kept` lists what a layer has to keep, whoever writes it, and the tables in print are
its sums. An eager program keeps a little more, where an operator needs it in another form:

    a norm        its input over its root mean square, beside the input and the result: torch has no
                  fused kernel for it on a CPU
    q, k, v       one product, of which v is a view: all of it stays as long as v
    low precision norms are computed in fp32 of numbers in 16 bits, and attention too where products
                  are "rounded": copies of what they read stay, and the 16-bit originals do not
    experts       which row goes where (two int64 a row), the weights of the choices before and
                  after they were normalised, masks

A tensor belongs to the module in whose forward it was made; the two sums of the residual stream are
the block's own (the first block's input is the embedding's). With sequence parallelism a rank has
1/tp of what lies between the matrices, but of their inputs the gathered whole.

What is alive only for a moment comes on top while a block's backward runs (`block_work_bytes`):
gradients of the widest tensors and of the result; and in the loss, whose gradient is as large as
the log-softmax twice over (`loss_work_bytes`).

tests/distributed/memory/test_monitor.py compares each module, for dense blocks and experts, in
every precision, with and without tp, sp and cp; test_budget.py what is recomputed.
"""

from typing import Literal

from picolab.costs.activations import Recompute
from picolab.costs.memory import dtype_bytes
from picolab.costs.parameters import has_experts
from picolab.costs.slices import even_slices, head_slices
from picolab.specs import ModelConfig
from picolab.specs.precision import PRECISIONS, PrecisionName

STATISTIC_BYTES = 4  # of a norm, of attention; fp64 where the model is


def saved_bytes(
    config: ModelConfig,
    layer: int = 0,
    *,
    micro_batch: int = 1,
    seq: int | None = None,
    precision: PrecisionName = "fp32",
    products: Literal["native", "rounded"] = "rounded",
    tp: int = 1,
    tp_rank: int = 0,
    sp: bool = False,
    cp: int = 1,
    rows: list[int] | None = None,
    recompute: Recompute = "none",
) -> dict[str, int]:
    """Module -> bytes of one micro-batch, on one rank; "" is the block itself.

    products: of attention and of experts, in a short format. rows: how many rows each of this
    rank's experts gets; None: all tokens' choices, evenly, on a rank that has all experts.
    recompute: "selective" keeps the input and the results of products and of attention (but for a
    dense block's last product, where a second forward stops before it: in a short format it does
    not), "full" the input alone (and which experts were chosen, so that the second time they are
    the same).
    """
    tokens = micro_batch * (config.seq if seq is None else seq) // cp
    numbers = PRECISIONS[precision]
    own, b = max(4, dtype_bytes(numbers.parameters)), dtype_bytes(numbers.activations)
    stat = max(STATISTIC_BYTES, own)
    low = precision not in ("fp32", "fp64")
    h, between = config.hidden, tokens // (tp if sp else 1)
    if recompute != "none":
        kept = {"": between * h * b}
        if has_experts(config, layer):
            kept["mlp.router"] = tokens * config.experts + STATISTIC_BYTES
        if recompute == "selective":
            result = max(4, b) if products == "rounded" else b  # as a product gives it
            arrive = tokens * config.experts_per_token if rows is None else sum(rows)
            dear = _dear(config, layer, tokens, arrive, result, tp, tp_rank)
            if not low:  # nobody asks for the result of a block's last product
                dear.pop("mlp.down", None)
            for name, nbytes in dear.items():
                kept[name] = kept.get(name, 0) + nbytes
        return kept

    def normed(rows: int, size: int) -> int:
        """A norm reads in fp32 or better: a copy, or what is there itself."""
        return rows * (size * own + stat + (size * own if own != b else 0))

    norm = normed(between, h)
    given = 0 if sp else tokens * h * b  # what it gives; gathered, it is the next module's
    gathered = tokens * h * b if sp else 0
    residual = between * h * b if own == b else 0

    queries, keys = head_slices(config.heads, config.kv_heads, tp, tp_rank)
    n, k, e = len(queries), len(keys), config.head_dim
    exact = low and products == "rounded" and cp == 1
    if exact:  # attention reads copies in fp32, and its result is rounded
        qkv, attention = 0, (n + 2 * k) * e * 4 + n * e * (4 + b) + n * STATISTIC_BYTES
    else:
        qkv, attention = (n + 2 * k) * e * b, (2 * n + k) * e * b + n * stat
    found = {
        "attention_norm": norm + given,
        "attention.qkv": gathered + tokens * qkv,
        "attention.q_norm": normed(tokens * n, e) if config.qk_norm else 0,
        "attention.k_norm": normed(tokens * k, e) if config.qk_norm else 0,
        "attention": tokens * attention,
        "mlp_norm": norm + given,
        "": 2 * residual,
    }
    if has_experts(config, layer):
        sizes = tokens, between, tokens * (cp if config.pools_tokens else 1)
        rounded = low and products == "rounded"
        found |= _experts(config, *sizes, own, b, rounded, rows, tp, tp_rank)
        # The router reads what the norm gives, if not a copy; and shared experts, if not gathered.
        reads = not low or (config.shared_experts and not sp)
        found["mlp_norm"] = norm + between * h * b * bool(reads)
        if sp and config.shared_experts:
            found["mlp"] += tokens * h * b
    else:
        f = len(even_slices(config.ffn, tp)[tp_rank])
        found["mlp.gate_up"] = gathered + tokens * 2 * f * b
        found["mlp"] = tokens * 2 * f * b
    return {module: nbytes for module, nbytes in found.items() if nbytes}


def _dear(
    config: ModelConfig, layer: int, tokens: int, arrive: int, b: int, tp: int, tp_rank: int
) -> dict[str, int]:
    """Results of the products of a block, and of attention."""
    queries, keys = head_slices(config.heads, config.kv_heads, tp, tp_rank)
    n, k, e, h = len(queries), len(keys), config.head_dim, config.hidden
    found = {
        "attention.qkv": tokens * (n + 2 * k) * e * b,
        "attention": tokens * (n * e * b + n * max(STATISTIC_BYTES, b)),
        "attention.o": tokens * h * b,
    }
    if not has_experts(config, layer):
        f = len(even_slices(config.ffn, tp)[tp_rank])
        return found | {"mlp.gate_up": tokens * 2 * f * b, "mlp.down": tokens * h * b}
    f = len(even_slices(config.expert_ffn, tp)[tp_rank])
    found["mlp.router"] = tokens * config.experts * max(4, b)
    found["mlp.experts"] = arrive * (2 * f + h) * b
    if config.shared_experts:
        f = len(even_slices(config.shared_experts * config.expert_ffn, tp)[tp_rank])
        found["mlp.shared"] = tokens * (2 * f + h) * b
    return found


def _experts(
    config: ModelConfig,
    tokens: int,
    between: int,
    pool: int,
    own: int,
    b: int,
    rounded: bool,
    rows: list[int] | None,
    tp: int,
    tp_rank: int,
) -> dict[str, int]:
    """A layer of experts. Rows leave with the tokens of this rank and arrive at its experts: the
    same ones where all are here. The router reads `between` tokens, and decides for `pool`."""
    h, experts, each = config.hidden, config.experts, config.experts_per_token
    f = len(even_slices(config.expert_ffn, tp)[tp_rank])
    leave = tokens * each
    arrive = leave if rows is None else sum(rows)
    here = experts if rows is None else len(rows)
    exact = max(4, b)
    router = pool * experts * (exact + 1)  # scores, and which were chosen
    if config.router_renormalise:
        router += pool * (experts + 2) * exact  # the chosen scores, their sum twice
    if exact != b:
        router += between * h * exact  # what it reads, in fp32
    if config.aux_loss:
        router += experts * exact + exact  # shares of the choices, the loss
    router += (experts + 1) * 8  # what it counts
    # Where rows go, their weights; and what is added up, of which backward asks for the shape only.
    found = {"mlp.router": router, "mlp": leave * (16 + b + h * b)}
    grouped = own == 4 or b == 2  # the kernel keeps where each expert's rows end
    ends = 2 * here * 4 * grouped
    inner = arrive * f * b * 3  # gate and up, silu of gate
    if rounded:  # operands of the grouped products are fp32 copies, weights among them
        weights = 3 * here * f * h * 4
        found["mlp.experts"] = arrive * h * 4 + inner + arrive * f * 4 + weights + ends
    else:
        found["mlp"] += arrive * h * b
        found["mlp.experts"] = inner + arrive * f * b + ends
    # What they made of them, which came back to the layer where it was elsewhere.
    found["mlp.experts" if rows is None else "mlp"] += leave * h * b
    if config.shared_experts:
        f = len(even_slices(config.shared_experts * config.expert_ffn, tp)[tp_rank])
        found |= {"mlp.shared.gate_up": tokens * 2 * f * b, "mlp.shared": tokens * 2 * f * b}
    return found


def saved_ends(
    config: ModelConfig,
    *,
    micro_batch: int = 1,
    seq: int | None = None,
    precision: PrecisionName = "fp32",
    tp: int = 1,
    tp_rank: int = 0,
    sp: bool = False,
    cp: int = 1,
) -> dict[str, int]:
    """The same of what is outside the blocks: the embedding, the last norm, the loss. Logits are
    not kept: their log-softmax is, in fp32 or better."""
    tokens = micro_batch * (config.seq if seq is None else seq) // cp
    numbers = PRECISIONS[precision]
    own, b = max(4, dtype_bytes(numbers.parameters)), dtype_bytes(numbers.activations)
    h, between = config.hidden, tokens // (tp if sp else 1)
    norm = between * (h * own + max(STATISTIC_BYTES, own) + (h * own if own != b else 0))
    vocab = len(even_slices(config.vocab, tp)[tp_rank])
    found = {
        "embed": between * h * b if own == b else 0,
        "norm": norm + (0 if sp else tokens * h * b),
        "head": tokens * h * b if sp else 0,
        "cross_entropy": tokens * vocab * max(4, b),
    }
    if cp == 1:
        found["cross_entropy"] += tokens * 8  # labels, side by side
    else:  # of positions that no table is kept for
        found["rotary"] = 2 * (tokens // micro_batch) * config.head_dim * max(4, b)
    if tp > 1:  # whose row, and of which rank
        found["embed"] += tokens * (8 + 1)
        found["cross_entropy"] += tokens * 2
    return {module: nbytes for module, nbytes in found.items() if nbytes}


def block_work_bytes(
    config: ModelConfig,
    layer: int = 0,
    *,
    micro_batch: int = 1,
    seq: int | None = None,
    precision: PrecisionName = "fp32",
    products: Literal["native", "rounded"] = "rounded",
    tp: int = 1,
    sp: bool = False,
    cp: int = 1,
) -> int:
    """What the backward of a block has for a moment beside all that it kept, less what of it is
    gone by then. With many tokens that is when gate times up is differentiated; with few, when a
    matrix has its gradient, before it is added to what is there."""
    tokens = micro_batch * (config.seq if seq is None else seq) // cp
    b, h = dtype_bytes(PRECISIONS[precision].activations), config.hidden
    result = tokens // (tp if sp else 1) * h * b  # the gradient of what the block gives
    whole = tokens * h * b if sp else 0  # and gathered
    if not has_experts(config, layer):
        f = len(even_slices(config.ffn, tp)[0])
        down = product_work_bytes(tokens, f, h, precision, products)
        gate_up = product_work_bytes(tokens, h, 2 * f, precision, products)
        inner = tokens * f * b  # of gate, of up, of the function of gate, of the product of both
        return result + max(whole + down, 2 * inner, gate_up + whole + result * sp - 2 * inner)
    f, experts = len(even_slices(config.expert_ffn, tp)[0]), config.experts
    rows = tokens * config.experts_per_token
    down = product_work_bytes(rows, f, h, precision, products, experts)
    gate_up = product_work_bytes(rows, h, 2 * f, precision, products, experts)
    inner, came = rows * f * b, rows * h * b
    return result + whole + max(3 * came, down, 2 * inner, gate_up - 2 * inner - came)


def loss_work_bytes(
    config: ModelConfig,
    *,
    micro_batch: int = 1,
    seq: int | None = None,
    precision: PrecisionName = "fp32",
    products: Literal["native", "rounded"] = "rounded",
    tp: int = 1,
    sp: bool = False,
    cp: int = 1,
) -> int:
    """The same of the loss and the head: gradients of the log-softmax and of the logits (of which
    the loss that is cut along the vocabulary has one), and of the head's matrix."""
    tokens = micro_batch * (config.seq if seq is None else seq) // cp
    b = dtype_bytes(PRECISIONS[precision].activations)
    exact, vocab = max(4, b), len(even_slices(config.vocab, tp)[0])
    logits = tokens * vocab
    lower = logits * b if b < exact else 0
    softmax = logits * exact if tp == 1 else lower
    head = product_work_bytes(tokens, config.hidden, vocab, precision, products)
    if sp:  # the gradient of its input, in the order in which it travels, and this rank's sum
        head += (tokens + tokens // tp) * config.hidden * b
    return max(logits * exact + softmax, logits * b + head - logits * exact)


def product_work_bytes(
    rows: int,
    inputs: int,
    outputs: int,
    precision: PrecisionName = "fp32",
    products: Literal["native", "rounded"] = "rounded",
    matrices: int = 1,
) -> int:
    """What the backward of y = x W^T has beside x and the gradient of y: the gradients of both
    factors; of a rounded product also the operands of the second one, as fp32."""
    numbers = PRECISIONS[precision]
    b, own = dtype_bytes(numbers.activations), dtype_bytes(numbers.parameters)
    weight = matrices * inputs * outputs
    if own == b:
        return rows * inputs * b + weight * own
    if products == "native":
        return rows * inputs * b + weight * (b + own)
    return rows * inputs * b + 4 * (rows * (inputs + outputs) + weight)
