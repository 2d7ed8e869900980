"""Which exercises there are, in the order in which they are met."""

import difflib
import importlib

# id -> the module that holds it, as EXERCISE. A module is imported when it is asked for.
_MODULES = {
    "4d.ring.all-reduce": "ring_all_reduce",
    "4d.collectives.scatter-gather": "scatter_gather",
    "4d.dp.buckets": "bucketed_sync",
    "4d.tp.column-backward": "column_backward",
    "4d.tp.vocab-loss": "vocab_loss",
    "4d.pp.1f1b": "one_f_one_b",
    "4d.cp.merge": "ring_merge",
    "4d.cp.zigzag": "zigzag_split",
    "4d.norm.global": "global_norm",
    "interview.4d.halving-doubling": "interview_halving_doubling",
    "interview.4d.accumulate": "interview_accumulate",
    "interview.4d.embedding": "interview_embedding",
    "interview.4d.sequence-block": "interview_sequence_block",
    "interview.4d.ulysses": "interview_ulysses",
    "interview.4d.tied-embedding": "interview_tied_embedding",
}


def ids(chapter: str | None = None) -> list[str]:
    """All ids, or those of a chapter: ids("4d")."""
    return [name for name in _MODULES if chapter is None or name.split(".")[0] == chapter]


def find(exercise_id: str):
    """The Exercise with this id, without showing it. ValueError names the nearest if there is
    none.
    """
    if exercise_id not in _MODULES:
        near = difflib.get_close_matches(str(exercise_id), _MODULES, n=1, cutoff=0.4)
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"there is no exercise {exercise_id!r}; {meant}there are {', '.join(_MODULES)}"
        )
    return importlib.import_module(f"picolab.exercises.{_MODULES[exercise_id]}").EXERCISE


def exercise(exercise_id: str):
    """The exercise: as the last line of a cell it shows its statement. `.check(fn)`, `.hint()`,
    `.solution()`, `.stub`.
    """
    return find(exercise_id)
