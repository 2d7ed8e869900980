"""What the matrix products of training read: the part of a step that a short format shrinks."""

from picolab.specs import ModelConfig


def operand_numbers(config: ModelConfig, tokens: int) -> dict[str, int]:
    """Numbers that y, dx and dW of each kind of linear read, over all layers, for so many tokens.

        2 (t i + i o + t o)      t tokens, i inputs, o outputs

    Each of x, W and dy is read by two of the three products. Times the bytes of a number, it is
    what memory has to deliver if nothing is read twice. ValueError for another model than a dense
    Llama decoder: with experts, how many rows a matrix meets is the router's.
    """
    if config.experts or config.latent or config.family != "llama":
        raise ValueError(f"operands are counted for dense Llama decoders, and {config.name} is not")
    size, width = config.hidden, config.head_dim
    queries, keys = config.heads * width, config.kv_heads * width
    shapes = {
        "qkv": (size, queries + 2 * keys),
        "o": (queries, size),
        "gate_up": (size, 2 * config.ffn),
        "down": (config.ffn, size),
    }
    found = {name: config.layers * _three(tokens, *shape) for name, shape in shapes.items()}
    return found | {"head": _three(tokens, size, config.vocab)}


def _three(t: int, i: int, o: int) -> int:
    return 2 * (t * i + i * o + t * o)
