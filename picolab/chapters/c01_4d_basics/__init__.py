"""Chapter 1, 4D basics: collectives, then data, tensor, pipeline and context parallelism."""

from picolab.chapters.c01_4d_basics.alpha_beta_figure import alpha_beta_figure
from picolab.chapters.c01_4d_basics.attention_work import attention_work
from picolab.chapters.c01_4d_basics.ring_attention_figure import ring_attention_frames
from picolab.chapters.c01_4d_basics.ring_figure import ring_all_reduce_frames
from picolab.chapters.record import Chapter
from picolab.exercises.catalogue import About

__all__ = [
    "CHAPTER",
    "alpha_beta_figure",
    "attention_work",
    "ring_all_reduce_frames",
    "ring_attention_frames",
]

_EXERCISES = {
    "4d.ring.all-reduce": About("ring_all_reduce", "A ring all-reduce", 15, 3),
    "4d.collectives.scatter-gather": About("scatter_gather", "An all-reduce in two halves", 12, 2),
    "4d.dp.buckets": About("bucketed_sync", "Bucketed gradient synchronisation", 25, 4),
    "4d.dp.hooks": About("ddp_hooks", "DDP: hooks, buckets, overlap", 25, 5),
    "4d.tp.column-backward": About(
        "column_backward", "The backward of a column-parallel linear layer", 15, 3
    ),
    "4d.tp.attention": About("tensor_attention", "Attention cut by heads, as a module", 25, 4),
    "4d.tp.vocab-loss": About(
        "vocab_loss", "Vocabulary-parallel cross entropy", 25, 4, starred=True
    ),
    "4d.pp.1f1b": About("one_f_one_b", "The order of 1F1B", 20, 3, starred=True),
    "4d.pp.executor": About("pipeline_executor", "The executor of a pipeline", 25, 4),
    "4d.cp.merge": About("ring_merge", "Ring attention: merging block after block", 20, 3),
    "4d.cp.backward": About("ring_backward", "Ring attention, backward", 20, 4),
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

_COVERED = {
    "picolab.comm.ring.ring_all_reduce": "4d.ring.all-reduce",
    "picolab.parallel.buckets.GradientBuckets": "4d.dp.hooks",
    "picolab.parallel.data.DataParallelOptimizer": "4d.dp.hooks",
    "picolab.parallel.tensor_comm.column_linear": "4d.tp.column-backward",
    "picolab.parallel.tensor_comm.gather_linear": "4d.tp.column-backward",
    "picolab.parallel.tensor_comm.f": "4d.tp.column-backward",
    "picolab.parallel.tensor_comm._ColumnLinear": "4d.tp.column-backward",
    "picolab.parallel.tensor_comm._F": "4d.tp.column-backward",
    "picolab.parallel.vocabulary": "4d.tp.vocab-loss",
    "picolab.schedules.generators.one_f_one_b": "4d.pp.1f1b",
    "picolab.parallel.pipeline.PipelineParallelOptimizer.run": "4d.pp.executor",
    "picolab.parallel.ring._RingAttention.backward": "4d.cp.backward",
    "picolab.parallel.ring.merge": "4d.cp.merge",
    "picolab.parallel.sequence_split": "4d.cp.zigzag",
    "picolab.costs.slices.zigzag_chunks": "4d.cp.zigzag",
    "picolab.parallel.whole.square_norm": "4d.norm.global",
}

CHAPTER = Chapter(
    notebook="01_4d_basics",
    key="4d",
    title="4D basics",
    evenings=(
        ("00_start_here, 01_4d_basics", 56, "collectives, data and tensor parallelism"),
        (
            "01_4d_basics to its end, 01_4d_basics_exercises",
            84,
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
    # The last nine are warm-ups of two minutes.
    taught=tuple(
        f"4d-{number:03}"
        for number in (
            *(1, 2, 9, 12, 14, 15, 16, 19, 22, 23, 24, 26, 27, 31),
            *(49, 50, 51, 53, 54, 55, 56, 57, 59),
        )
    ),
    counts={"questions": 60, "numeric": 26, "code": 6, "diagnose": 10, "warm_ups": 12},
    exercises={id: about.within(__name__) for id, about in _EXERCISES.items()},
    mysteries=f"{__name__}.mysteries",
    cheatsheet=f"{__name__}.cheatsheet",
    covered=_COVERED,
)
