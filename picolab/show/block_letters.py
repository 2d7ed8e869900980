"""What a memory plan does with each block, a letter each: "KKRK"."""

from collections.abc import Sequence

LETTERS = {"keep": "K", "selective": "S", "mlp": "M", "recompute": "R", "offload": "O"}


def block_letters(choices: Sequence[str]) -> str:
    return "".join(LETTERS[choice] for choice in choices)
