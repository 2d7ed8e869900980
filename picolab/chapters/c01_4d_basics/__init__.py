"""Chapter 1, 4D basics: collectives, then data, tensor, pipeline and context parallelism."""

from picolab.chapters.c01_4d_basics.ring_attention_figure import ring_attention_frames
from picolab.chapters.c01_4d_basics.ring_figure import ring_all_reduce_frames
from picolab.chapters.record import Chapter

__all__ = ["CHAPTER", "ring_all_reduce_frames", "ring_attention_frames"]

_EXERCISES = {
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
    counts={"questions": 35, "numeric": 14, "code": 6, "diagnose": 6},
    exercises={id: f"{__name__}.{module}" for id, module in _EXERCISES.items()},
    mysteries=f"{__name__}.mysteries",
    cheatsheet=f"{__name__}.cheatsheet",
)
