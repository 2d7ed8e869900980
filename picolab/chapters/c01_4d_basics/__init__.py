"""Chapter 1, 4D basics: collectives, then data, tensor, pipeline and context parallelism."""

from picolab.chapters.c01_4d_basics.alpha_beta_figure import alpha_beta_figure
from picolab.chapters.c01_4d_basics.ring_attention_figure import ring_attention_frames
from picolab.chapters.c01_4d_basics.ring_figure import ring_all_reduce_frames
from picolab.chapters.record import Chapter
from picolab.exercises.catalogue import About

__all__ = ["CHAPTER", "alpha_beta_figure", "ring_all_reduce_frames", "ring_attention_frames"]

_EXERCISES = {
    "4d.ring.all-reduce": About("ring_all_reduce", "A ring all-reduce", 15, 3),
    "4d.collectives.scatter-gather": About("scatter_gather", "An all-reduce in two halves", 12, 2),
    "4d.dp.buckets": About("bucketed_sync", "Bucketed gradient synchronisation", 25, 4),
    "4d.tp.column-backward": About(
        "column_backward", "The backward of a column-parallel linear layer", 15, 3
    ),
    "4d.tp.vocab-loss": About(
        "vocab_loss", "Vocabulary-parallel cross entropy", 25, 4, starred=True
    ),
    "4d.pp.1f1b": About("one_f_one_b", "The order of 1F1B", 20, 3, starred=True),
    "4d.cp.merge": About("ring_merge", "Ring attention: merging block after block", 20, 3),
    "4d.cp.zigzag": About("zigzag_split", "The zig-zag split", 10, 2),
    "4d.norm.global": About("global_norm", "One global gradient norm under tp and pp", 20, 4),
    "interview.4d.halving-doubling": About(
        "interview_halving_doubling", "An all-reduce in 2 log2(n) steps", 20, 4
    ),
    "interview.4d.accumulate": About(
        "interview_accumulate", "Accumulated gradients, and tokens that do not count", 15, 3
    ),
    "interview.4d.embedding": About(
        "interview_embedding", "An embedding split along the vocabulary", 15, 3
    ),
    "interview.4d.sequence-block": About(
        "interview_sequence_block",
        "A block under sequence parallelism, forward and backward",
        20,
        4,
    ),
    "interview.4d.ulysses": About(
        "interview_ulysses", "Ulysses attention: heads for tokens, and back", 18, 4
    ),
    "interview.4d.tied-embedding": About(
        "interview_tied_embedding", "One embedding on two stages", 15, 3
    ),
}

CHAPTER = Chapter(
    notebook="01_4d_basics",
    key="4d",
    title="4D basics",
    evenings=(
        ("00_start_here, 01_4d_basics", 75, "collectives, data and tensor parallelism"),
        (
            "01_4d_basics to its end, 01_4d_basics_exercises",
            90,
            "pipeline and context parallelism, all axes at once; the two starred exercises",
        ),
    ),
    topic="4d_basics",
    areas={
        "collectives": "Collectives",
        "hardware": "Hardware",
        "data": "Data parallelism",
        "tensor": "Tensor parallelism",
        "sequence": "Sequence parallelism",
        "pipeline": "Pipeline parallelism",
        "context": "Context parallelism",
        "4d": "All four together",
    },
    counts={"questions": 60, "numeric": 26, "code": 6, "diagnose": 10, "warm_ups": 12},
    exercises={id: about.within(__name__) for id, about in _EXERCISES.items()},
    mysteries=f"{__name__}.mysteries",
    cheatsheet=f"{__name__}.cheatsheet",
)
