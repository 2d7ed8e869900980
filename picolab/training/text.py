"""Text to train on: which bytes are the i-th sequence of the run, and who reads them.

All files of a corpus, one after the other in a fixed order, are one long stream of bytes, and a
byte is a token (vocabulary 256). Window w of the stream is `seq` tokens, and the byte after each of
them is its label:

    tokens  stream[w*seq : w*seq + seq]          labels  stream[w*seq + 1 : w*seq + seq + 1]

The i-th sequence of a run is window permutation(i): a fixed shuffle, computed from the seed and i
alone, that visits every window once and then begins a new one. So what a step trains on follows
from one number, the *position* (sequences consumed so far), and from nothing else: not from the
layout, not from the number of ranks, not from how a step is cut into micro-batches. That number is
the state that a checkpoint keeps (with a hash of the corpus, so that it is a place in that one and
in no other), and a rank reads the bytes of its own sequences only.

    one step from position p, dp 2, accumulate 2, micro-batch 2:
        micro-batch 0: replica 0 reads sequences p, p+1;    replica 1 reads p+2, p+3
        micro-batch 1: replica 0 reads sequences p+4, p+5;  replica 1 reads p+6, p+7

Ranks that differ only in tp read the same bytes.

Text may be held out, to be evaluated on and never trained on: the last windows of the first
shuffle. Until a run comes to them, it reads what it would read anyway; later shuffles are of the
other windows. Leaves out: a tokenizer, documents as units
(windows run across file borders), and text that is not on this machine.
"""

import bisect
import functools
import hashlib
import math
import os
import sysconfig
from itertools import accumulate as running_sum
from pathlib import Path
from typing import TYPE_CHECKING

from picolab.costs import replica_sequences
from picolab.specs import TrainConfig

if TYPE_CHECKING:  # a position needs no torch: the kernel, which reads nothing, has none yet
    import torch

# A corpus of up to 256 MiB is hashed as a whole, a larger one in so many blocks, evenly spread:
# another text is still noticed, but an edit of a few words may fall between them. For the standard
# library, 12 MB in 734 files, it takes 1.5 times as long as opening it (0.05 s and 0.03 s).
HASH_BLOCK, HASH_BLOCKS = 2**16, 2**12

NOT_SOURCE = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}


HELD_OUT_BATCHES = 4  # global batches of an evaluation


def open_text(config: TrainConfig) -> "Text":
    """The run's text, at its beginning. Every rank opens the same, with the same seed."""
    held_out = config.sequences_per_step * HELD_OUT_BATCHES if config.eval_every else 0
    shape = config.model
    return Text(config.data, seq=shape.seq, vocab=shape.vocab, seed=config.seed, held_out=held_out)


class Text:
    """A position in a corpus. `batch` reads one rank's part of a step and moves on.

    held_out: sequences that are kept for `held_out_batch`.
    data: "stdlib" (the source of this Python's standard library), "random" (tokens without meaning,
    for benchmarks), or the path of a file or of a folder of files, read as bytes.
    Raises ValueError if there is nothing there, less than one sequence of it, or a vocabulary too
    small for bytes.
    """

    def __init__(
        self,
        data: str | Path = "stdlib",
        *,
        seq: int,
        vocab: int = 256,
        seed: int = 0,
        held_out: int = 0,
    ):
        self.seq, self.seed, self.position, self.held_out = seq, seed, 0, held_out
        if data == "random":
            self._corpus: _RandomTokens | _Windows = _RandomTokens(seq, vocab, seed)
        else:
            if vocab < 256:
                raise ValueError(
                    f"text is read as bytes, and a vocabulary of {vocab} cannot name all 256; give "
                    " the model vocab=256, or take data='random'"
                )
            files = _stdlib() if data == "stdlib" else _path(data)
            self._corpus = _Windows(files, seq, seed, held_out)

    def batch(
        self, *, dp_rank: int, dp_size: int, micro_batch: int, accumulate: int
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        """Tokens and labels (accumulate, micro_batch, seq) of one replica for one step, int64.

        All ranks call it once a step, and all positions move on by the *global* batch.
        """
        mine = replica_sequences(self.position, dp_rank, dp_size, micro_batch, accumulate)
        self.position += dp_size * accumulate * micro_batch
        return self._stacked([self._corpus.sequence(i) for i in mine], micro_batch)

    def held_out_batch(
        self, *, dp_rank: int, dp_size: int, micro_batch: int, accumulate: int
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        """The same of the held-out sequences, always from the first one."""
        assert dp_size * accumulate * micro_batch <= self.held_out
        mine = replica_sequences(0, dp_rank, dp_size, micro_batch, accumulate)
        return self._stacked([self._corpus.held_out(i) for i in mine], micro_batch)

    def _stacked(self, rows: "list[torch.Tensor]", micro_batch: int):
        import torch

        both = torch.stack(rows).view(-1, micro_batch, self.seq + 1)
        return both[..., :-1], both[..., 1:]

    def state_dict(self, hashed: bool = True) -> dict:
        """Where the run is in its data, independently of its layout.

        hashed: with the corpus's hash, for which all of it is read, once."""
        state = {"position": self.position, "seed": self.seed, "corpus": self._corpus.identity}
        if self.held_out:
            state["held_out"] = self.held_out
        return {**state, "hash": self._corpus.hash} if hashed else state

    def load_state_dict(self, state: dict) -> None:
        """Go on from there. ValueError if it is a place in another corpus or in another shuffle.

        A state without a hash is believed by the size of its corpus."""
        here = self.state_dict(hashed=False)
        for name in ("corpus", "seed"):
            if state[name] != here[name]:
                raise ValueError(
                    f"this position is one in other data: {name} was {state[name]!r} there and is "
                    f"{here[name]!r} here; open the same data with the same seq and seed"
                )
        if "hash" in state and state["hash"] != self._corpus.hash:
            raise ValueError(
                "this position is one in other data: the corpus has as many bytes as it had there, "
                "but other ones; restore its files, or begin a new run with the new text"
            )
        there = state.get("held_out", 0)
        untouched = self._corpus.before_held_out(max(there, self.held_out))
        if there != self.held_out and state["position"] > untouched:
            raise ValueError(
                f"{state['position']:,} sequences are behind this position, with {there} held out, "
                f"and here {self.held_out} are: some of these would be trained on, or read in "
                "another order; keep eval_every and the batch as they were, or begin a new run"
            )
        self.position = state["position"]


class _Windows:
    """Shuffled windows of the stream that the files make. Only what is asked for is read."""

    def __init__(self, files: tuple[str, list[Path]], seq: int, seed: int, held_out: int = 0):
        name, self._paths = files
        self._ends = list(running_sum(path.stat().st_size for path in self._paths))
        size = self._ends[-1] if self._ends else 0
        if size < seq + 1:
            raise ValueError(
                f"{name} holds {size:,} bytes, and one sequence needs {seq + 1:,} (seq, and the "
                "byte after it); give more text or a smaller seq"
            )
        self._seq, self._seed = seq, seed
        self._count = (size - 1) // seq
        self._trained = self._count - held_out
        if self._trained < held_out:
            raise ValueError(
                f"{name} holds {self._count:,} sequences, and {held_out:,} of them would be held "
                "out for evaluation, more than half; give more text, a smaller batch, or no "
                "eval_every"
            )
        self.identity = f"{size} bytes in windows of {seq}"

    def sequence(self, i: int) -> "torch.Tensor":
        epoch, index = divmod(i, self._trained)
        if epoch and self._trained < self._count:
            # Another order of what the first shuffle began with.
            index, epoch = permutation(index, self._trained, f"{self._seed}/{epoch}"), 0
        return self._window(permutation(index, self._count, f"{self._seed}/{epoch}"))

    def held_out(self, i: int) -> "torch.Tensor":
        return self._window(permutation(self._count - 1 - i, self._count, f"{self._seed}/0"))

    def before_held_out(self, held_out: int) -> float:
        """Sequences of a run before it would come to these."""
        return self._count - held_out

    def _window(self, window: int) -> "torch.Tensor":
        import torch

        raw = self._read(window * self._seq, self._seq + 1)
        return torch.frombuffer(raw, dtype=torch.uint8).long()

    @functools.cached_property
    def hash(self) -> str:
        found, size = hashlib.sha256(), self._ends[-1]
        for start in range(0, size, max(HASH_BLOCK, -(-size // HASH_BLOCKS))):
            found.update(self._read(start, min(HASH_BLOCK, size - start)))
        return found.hexdigest()

    def _read(self, start: int, size: int) -> bytearray:
        raw = bytearray()
        while len(raw) < size:
            at = start + len(raw)
            file = bisect.bisect_right(self._ends, at)  # an empty file is never found
            begins = self._ends[file - 1] if file else 0
            with open(self._paths[file], "rb") as opened:
                opened.seek(at - begins)
                part = opened.read(min(size - len(raw), self._ends[file] - at))
            if not part:
                raise ValueError(
                    f"{self._paths[file]} became shorter since the run began; start it again"
                )
            raw += part
        return raw


class _RandomTokens:
    """Sequences that are drawn, not read: nothing to learn, no file touched, any vocabulary."""

    def __init__(self, seq: int, vocab: int, seed: int):
        self._seq, self._vocab, self._seed = seq, vocab, seed
        self.identity = f"random tokens below {vocab} in windows of {seq}"
        self.hash = ""  # its identity and the seed say it all

    def held_out(self, i: int) -> "torch.Tensor":
        return self.sequence(-1 - i)

    def before_held_out(self, held_out: int) -> float:
        return math.inf

    def sequence(self, i: int) -> "torch.Tensor":
        import torch

        generator = torch.Generator().manual_seed(_hash(f"{self._seed}/{i}") >> 1)
        return torch.randint(self._vocab, (self._seq + 1,), generator=generator)


def permutation(index: int, n: int, key: str) -> int:
    """Where `index` goes in a pseudo-random permutation of 0 ... n-1 that is never written down.

    A Feistel network permutes 0 ... 4^k - 1 whatever its round function is, because each of its
    rounds (l, r) -> (r, l xor f(r)) can be undone. Results beyond n are sent through again until
    they fall within it ("cycle walking"), which permutes 0 ... n-1. Four rounds, after Luby and
    Rackoff 1988.
    """
    assert 0 <= index < n
    bits = max(1, ((n - 1).bit_length() + 1) // 2)
    mask = (1 << bits) - 1
    while True:
        left, right = index >> bits, index & mask
        for turn in range(4):
            left, right = right, left ^ (_hash(f"{key}/{turn}/{right}") & mask)
        index = left << bits | right
        if index < n:
            return index


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _stdlib() -> tuple[str, list[Path]]:
    """Every machine that runs this has this text: some 12 MB of Python, by many hands."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [path for path in _walk(root, NOT_SOURCE) if path.suffix == ".py"]
    if not files:
        raise ValueError(
            f"there is no Python source in {root} (this Python keeps it elsewhere); give data=PATH"
        )
    return "the standard library", files


def _path(data: str | Path) -> tuple[str, list[Path]]:
    path = Path(data).expanduser()
    if path.is_dir():
        files = [file for file in _walk(path, set()) if file.stat().st_size]
        if not files:
            raise ValueError(
                f"the folder {path} holds no text; give a file or a folder of text files"
            )
        return f"the folder {path}", files
    if not path.is_file():
        raise ValueError(f"there is no file or folder {path}; data is a path, 'stdlib' or 'random'")
    return str(path), [path]


def _walk(root: Path, without: set[str]) -> list[Path]:
    """All files below root, except hidden ones, ordered by relative path: the same on every machine
    that has the same files."""
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in without and name[0] != "."]
        found += [Path(folder, name) for name in files if name[0] != "."]
    found = [path for path in found if path.is_file()]
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())
