"""What a mystery run is made of: what somebody reports, and what could be behind it. No torch.

A case is data; a chapter lists its own as CASES. `culprit` is the letter of the suspect whose fault
is at work in the run; the other suspects are faults that this layout could have as well. Of every
suspect it is written which looks would show it (`shows`) and how (`tell`), and the chapter's test
trains with each of them to see whether that is so.
"""

from dataclasses import dataclass, field
from typing import Literal

from picolab.costs import replica_sequences
from picolab.specs import Layout, ModelConfig

LookName = Literal[
    "loss", "norm", "ledger", "shards", "spans", "loads", "scale", "memory", "lines", "own", "work",
    "calls",
]  # fmt: skip
LOOKS: dict[str, str] = {
    "loss": "the loss of each step, beside one process's",
    "norm": "the global gradient norm of each step, before clipping, beside one process's",
    "ledger": "the collectives of a step by reason, beside the formula's",
    "shards": "what the ranks hold: are copies equal, and do shards differ?",
    "spans": "where each rank's step went: computing, communicating, waiting",
}

# Where the model has experts, one more:
LOADS = {"loads": "how many tokens each expert had, beside one process's"}

# Where the loss is scaled, one more:
SCALES = {"scale": "the loss scale of each rank and which steps it skipped, beside one process's"}

# Where memory is the question, two more:
MEMORY = {
    "memory": "bytes that are alive after each step, by category, beside a right run's",
    "lines": "which lines made what outlives its step, and who holds it",
}

# Where the run is watched, three more:
WATCHED = {
    "own": "each rank's own loss and gradient norm, before any sum, beside a right run's",
    "work": "each rank's own seconds outside of collectives, step by step, and its loader's",
    "calls": "how many collectives each rank has entered, step by step",
}

# One model for all: small enough for a second a run, and in every case four micro-batches a step.
# AdamW's eps is 1e-5, so that rounding stays as small as it is (see TrainConfig.eps).
SETTINGS = {
    "hidden": 64,
    "ffn": 176,
    "layers": 2,
    "heads": 4,
    "kv_heads": 2,
    "vocab": 256,
    "seq": 64,
    "steps": 24,
    "micro_batch": 2,
    "accumulate": 4,
    "eps": 1e-5,
    "clip": 0.5,
}


@dataclass(frozen=True)
class Suspect:
    words: str
    """What a reader chooses among."""
    fault: str | None
    """Its name in the fault catalogue or in mystery_faults.py; None: nothing is wrong."""
    shows: tuple[str, ...]
    """The looks that show it beyond rounding. (Spans only where nothing else does: time is noisy.)
    What changes only the length of the gradient shows in the loss unless every step is clipped."""
    tell: str
    """What one would see, had it been this."""


@dataclass(frozen=True)
class Mystery:
    id: str
    title: str
    layout: str
    story: str
    culprit: str
    gives_away: str
    """The look that tells it from all other suspects at once."""
    why: str
    """The reasoning, for when the case is closed."""
    suspects: tuple[Suspect, ...]
    changes: dict = field(default_factory=dict)
    """What differs from SETTINGS."""
    scaler: dict = field(default_factory=dict)
    """With precision "fp16": what its `LossScaler` begins with."""
    memory: bool = False
    """Whether it is asked where bytes are."""
    watched: bool = False
    """Whether each rank tells its own numbers."""
    odd: tuple[int, int] | None = None
    """(step, replica) whose batch is no text but random bytes, in a right run and in one process,
    too."""
    seen: str = ""
    """Where it was seen in public, if the fault itself does not say so."""

    @property
    def settings(self) -> dict:
        return {**SETTINGS, **self.changes}

    @property
    def looks(self) -> dict[str, str]:
        """Those that there are at this run."""
        loads = LOADS if "experts" in self.changes else {}
        scales, memory = SCALES if self.scaler else {}, MEMORY if self.memory else {}
        return LOOKS | loads | scales | memory | (WATCHED if self.watched else {})

    @property
    def odd_sequences(self) -> list[int]:
        """Of the run's sequences those that are no text."""
        if self.odd is None:
            return []
        step, replica = self.odd
        dp, of = Layout.parse(self.layout).dp, self.settings
        a_step = dp * of["accumulate"] * of["micro_batch"]
        return replica_sequences(step * a_step, replica, dp, of["micro_batch"], of["accumulate"])

    @property
    def letters(self) -> dict[str, Suspect]:
        return dict(zip("ABCDEFGH", self.suspects, strict=False))

    @property
    def fault(self) -> str | None:
        return self.letters[self.culprit].fault

    def setting_text(self) -> str:
        """One line: what is trained, and how."""
        layout, of = Layout.parse(self.layout), self.settings
        shape = {name: of[name] for name in SETTINGS if name in ModelConfig.__dataclass_fields__}
        tokens = layout.dp * of["accumulate"] * of["micro_batch"] * shape["seq"]
        experts = ""
        if "experts" in of:
            experts = f", {of['experts']} experts, {of['experts_per_token']} a token"
        tied = ", head tied to the embedding" if of.get("tied") else ""
        number_format = of.get("precision", of.get("dtype", "fp32"))
        scaled = ""
        if self.scaler:
            interval = self.scaler.get("interval", 2000)
            scaled = f", loss scale {self.scaler['scale']:,.0f}, growth after {interval} good steps"
        return (
            f"{layout} ({layout.world} ranks), hidden {shape['hidden']}, {shape['layers']} layers, "
            f"{shape['heads']} heads{experts}{tied}; {of['steps']} steps of {tokens:,} tokens in "
            f"{of['accumulate']} micro-batches a replica, clipped at {of['clip']}, "
            f"{number_format}{scaled}"
        )
