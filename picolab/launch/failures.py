"""Which rank failed, and why: cause before consequence.

When one rank dies, the others usually fail a moment later in the collective they were in
("Connection closed by peer"), and the loudest message is rarely the cause. The rules, in order:

1. a rank that raised something of its own, exited, or was killed comes before one whose
   connection was closed;
2. among equals, the earlier comes first;
3. if gloo aborted a rank over sizes, the beacons tell which rank's collective differs from the
   others' (of two ranks, neither can be told from the other, and that is said);
4. if nobody failed of their own accord but one rank had already returned, that rank is the cause:
   it left the others waiting.

Where nobody failed and nothing moves, monitoring/blame.py looks for the culprit.
"""

import re
import signal
from dataclasses import dataclass, field
from pathlib import Path

from picolab.monitoring import blame
from picolab.monitoring.beacon import Reading

_CONSEQUENCES = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Connection refused",
    "Socket closed",
    "recvValue failed",
    "communicator was aborted",
    "remote process exited",
    "Application timeout caused pair closure",
)
_VERBS = ("exit", "early return", "mismatch")  # kinds whose `what` continues "rank 3 ..."
SERVER_KILLED = (
    "the rank server, the process that starts ranks, was killed, and its ranks with it; the next "
    "run starts a new one"
)
_SIGNALS = {
    "SIGKILL": "killed (SIGKILL): by hand, or by the system because memory ran out",
    "SIGSEGV": "a segmentation fault (SIGSEGV): it touched memory that is not its own",
    "SIGABRT": "aborted itself (SIGABRT), as C++ code does on an error it cannot report",
    "SIGBUS": "a bus error (SIGBUS), often shared memory that is full",
    "SIGFPE": "an arithmetic fault (SIGFPE)",
    "SIGILL": "an illegal instruction (SIGILL): a binary built for another processor",
    "SIGTERM": "asked to end (SIGTERM)",
}


@dataclass
class RankReport:
    """What is known of one rank that did not end well."""

    rank: int | None  # None: which rank it was cannot be told, and `what` is a whole sentence
    kind: str  # exception, exit, signal, mismatch, early return, hang
    what: str  # "ValueError: no" or the signal in words
    t: float
    traceback: str = ""
    exception: BaseException | None = field(default=None, repr=False)

    @property
    def is_consequence(self) -> bool:
        return self.kind == "exception" and any(text in self.what for text in _CONSEQUENCES)


class RankFailure(RuntimeError):
    """A rank failed. `.rank` and `.kind` name the cause, `.traceback` is that rank's own.

    kind: "exception", "exit", "signal", "mismatch" (ranks disagree about a collective), "early
    return", "hang". `.rank` is None where ranks contradict each other and no majority tells which
    of them is wrong. `.consequences` are the other ranks' reports. If the rank raised, `__cause__`
    is its exception. `.run_dir` has the rest of the story: `pico.diagnose(error)`."""

    run_dir: Path | None = None

    def __init__(self, cause: RankReport, consequences: list[RankReport], notes: str = ""):
        self.rank, self.kind, self.traceback = cause.rank, cause.kind, cause.traceback
        self.what, self.consequences, self.notes = cause.what, consequences, notes
        super().__init__(cause, consequences, notes)
        self.__cause__ = cause.exception

    def headline(self) -> str:
        """One sentence: which rank, and what happened to it."""
        if self.rank is None:
            return self.what
        return f"rank {self.rank} {'' if self.kind in _VERBS else 'failed: '}{self.what}"

    def __str__(self) -> str:
        parts = [self.headline()]
        if self.traceback:
            parts.append(self.traceback.rstrip())
        if self.notes:
            parts.append(self.notes.rstrip())
        if self.consequences:
            lines = [f"  rank {r.rank}: {_shorten(r.what)}" for r in self.consequences]
            parts.append("Consequences:\n" + "\n".join(lines))
        return "\n\n".join(parts)

    def _render_traceback_(self) -> list[str]:
        """IPython shows this: the failing rank's own story instead of the launcher's frames."""
        return [f"{type(self).__name__}: {self}"]


class RankHang(RankFailure):
    """No rank made progress for `timeout` seconds. `.stacks[rank]` is where each one was.

    `.rank` is the culprit, None if the evidence (see monitoring/blame.py) does not single one out.
    `.suspects` are all whom it fits: one, several, or none."""

    def __init__(
        self,
        cause,
        consequences,
        notes="",
        stacks: dict[int, str] | None = None,
        suspects: tuple[int, ...] = (),
    ):
        super().__init__(cause, consequences, notes)
        self.args = (cause, consequences, notes, stacks, suspects)
        self.stacks, self.suspects = stacks or {}, suspects

    def headline(self) -> str:
        return self.what


class Stopped(RuntimeError):
    """The job was stopped before it ended."""


def signal_in_words(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    return _SIGNALS.get(name, f"ended by {name}")


def choose(reports: list[RankReport]) -> tuple[RankReport, list[RankReport]]:
    """The cause and its consequences, by rules 1 and 2."""
    ordered = sorted(reports, key=lambda r: (r.is_consequence, r.t))
    return ordered[0], ordered[1:]


def odd_one_out(readings: dict[int, Reading]) -> int | None:
    """Rule 3: the rank whose last collective differs from what all others entered; None if there
    is none, or no majority.
    """
    shapes = {rank: blame.signature(reading) for rank, reading in readings.items() if reading.text}
    return blame.odd_one_out(shapes)


def mismatch(odd: int | None, world: int) -> str:
    """What a rank did that entered another collective than the others (to follow its name), or,
    where there is no odd one, the sentence that says so.
    """
    if odd is not None:
        return "entered a collective of another size than the others"
    if world == 2:
        return "the two ranks entered different collectives: neither can be told from the other"
    return "the ranks entered different collectives, and no majority tells which of them is wrong"


def disagreement(readings: dict[int, Reading]) -> str:
    """What each rank's last collective was, if they differ; "" if they agree."""
    if len({blame.signature(r) for r in readings.values()}) < 2:
        return ""
    lines = [f"  rank {rank}: {r.text or '(none)'}" for rank, r in sorted(readings.items())]
    return "The ranks disagree about the collective:\n" + "\n".join(lines)


def _shorten(text: str) -> str:
    """gloo's message without its source file and its advice; of others the first line."""
    line = text.strip().splitlines()[0] if text.strip() else text
    line = re.sub(r"\[/[^\]]*\] ", "", line)
    return re.split(r"\. This is typically|\. This may indicate", line)[0]
