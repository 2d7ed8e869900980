"""Section 8: published tables, computed again, and what fits on one card.

Both are sums of `costs`; tests/chapters/c05_memory/test_figures.py holds them against the formulas
in print.
"""

from picolab import costs
from picolab.show.table import Table
from picolab.specs import ModelConfig

# arXiv 2205.05198, section 6: heads, hidden, layers.
SHAPES = {
    "22B": (64, 6144, 48),
    "175B": (96, 12288, 96),
    "530B": (128, 20480, 105),
    "1T": (160, 25600, 128),
}
TP = 8
WAYS = {
    "sp": {"attention": "scores", "sp": True},
    "no scores": {"attention": "flash"},
    "sp, no scores": {"attention": "flash", "sp": True},
    "sp, our selective": {"attention": "scores", "sp": True, "recompute": "selective"},
    "all again": {"recompute": "full"},
}
"""How a layer keeps less than with tp alone."""


def published_model(name: str) -> ModelConfig:
    heads, hidden, layers = SHAPES[name]
    return ModelConfig(
        family="gpt", hidden=hidden, ffn=4 * hidden, layers=layers, heads=heads, kv_heads=heads,
        vocab=51_200, seq=2048, tied=True,
    )  # fmt: skip


def published_table() -> Table:
    """Of each model what a layer keeps of one sequence on a rank, with tp; and of that, in %, what
    other ways keep."""
    rows = []
    for name in SHAPES:
        model, options = published_model(name), {"tp": TP, "dropout": True}
        tp = costs.layer_activation_bytes(model, attention="scores", **options)
        kept = [costs.layer_activation_bytes(model, **options, **way) for way in WAYS.values()]
        rows.append([name, tp / 1e6, *(100 * of / tp for of in kept)])
    columns = ["", "tp: MB", *(f"{way} %" for way in WAYS)]
    return Table(columns, rows, f"A layer of one sequence on a rank, t = {TP}; % of what tp keeps")


def one_card() -> ModelConfig:
    """The shape of Llama 3.2 1B."""
    llama = ModelConfig.preset("llama-3-8b")
    return llama.replace(
        hidden=2048, ffn=8192, layers=16, heads=32, kv_heads=8, tied=True, seq=8192
    )


def parts(recompute: str = "none", pieces: int = 1, a_parameter: int = 16, cards: int = 1):
    """Bytes of the states, of what layers keep, and of the loss, or of a layer that is run again:
    they are there one after the other, so the larger. pieces: into which the loss is cut."""
    model = one_card()
    states = costs.parameters(model).total * a_parameter / cards
    kept = model.layers * costs.layer_activation_bytes(model, recompute=recompute)
    loss = costs.end_activation_bytes(model, seq=model.seq // pieces)
    again = costs.layer_activation_bytes(model) if recompute != "none" else 0
    return states, kept, max(loss, again)


CARD = 24e9
CHOICES = {
    "everything kept": {},
    "selective recomputation": {"recompute": "selective"},
    "all recomputed": {"recompute": "full"},
    "all recomputed, loss in 8 pieces": {"recompute": "full", "pieces": 8},
    "selective, 8 pieces, ZeRO 3 on 2 cards": {"recompute": "selective", "pieces": 8, "cards": 2},
    "everything kept, 8 pieces, states in bf16": {"pieces": 8, "a_parameter": 8},
}


def one_card_table() -> Table:
    """What of training Llama 3.2 1B fits on a card of 24 GB."""
    rows = []
    for name, choice in CHOICES.items():
        found = parts(**choice)
        fits = "fits" if sum(found) < CARD else "does not"
        rows.append([name, *(of / 1e9 for of in found), sum(found) / 1e9, fits])
    columns = ["", "states GB", "layers keep GB", "loss, or layer GB", "sum GB", "24 GB"]
    count = costs.parameters(one_card()).total
    return Table(columns, rows, f"{count:,} parameters, 16 bytes each unless said otherwise")
