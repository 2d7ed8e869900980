"""What is in an event: every kind, every field, its unit. (`table()` shows it.)

    {"kind": "step", "rank": 1, "t": 1764450000.25, "data": {"step": 17, "loss": 3.21, ...}}

kind    which of those below
rank    the rank that says it; -1: the launcher, in the kernel (such events are in no file)
t       seconds since the epoch, on the rank's clock, which may be set while the run goes on. Times
        that are compared or subtracted are of the monotonic clock, and called `began` or `start`
data    the fields below. A field that does not apply is None; a reader leaves out what it does not
        know, so a field may be added, and none changes its meaning

Events travel to the kernel beside the run and never through a collective: a metric must not hang
with the job that it should report on, nor slow it down.
"""

from picolab.show.table import Table

KINDS: dict[str, tuple[str, dict[str, str]]] = {
    "step": (
        "one optimizer step, by each rank",
        {
            "step": "number, from 0",
            "steps": "how many there will be",
            "loss": "nats: mean over the valid tokens of the global batch, before the update",
            "own_loss": "nats: of this rank's own tokens, before anything is reduced; None where "
            "the rank knows no loss (a pipeline's earlier stages)",
            "grad_norm": "of the whole gradient, before clipping",
            "own_grad_norm": "of this rank's own gradient, before it is summed; with a Probe only",
            "lr": "learning rate",
            "loss_scale": "by which the loss was multiplied (fp16; else 1)",
            "tokens": "valid tokens of the global batch",
            "began": "s, monotonic clock of the machine",
            "seconds": "s: this rank's step",
            "data_s": "s: of it, until the batch was there",
            "cpu_s": "s: CPU time of the process in it, all threads",
            "queued_s": "s: ready to run without a core (core_clock.py); None: not told here",
            "rss_bytes": "bytes: resident memory of the process; None: not told here",
            "layout": "as text, such as dp2tp2",
            "skipped": "true: all ranks agreed not to update",
        },
    ),
    "settings": (
        "what a run was started with, by rank 0, before its first step",
        {
            "settings": "name -> value, as text where JSON has no word for it",
            "flops_per_token": "operations of forward and backward, by `costs.flops_per_token`",
        },
    ),
    "not finite": (
        "the run stops at this step, by each rank; in place of its step",
        {
            "step": "number",
            "loss": "as of a step",
            "grad_norm": "as of a step",
            "own_loss": "as of a step",
            "own_grad_norm": "as of a step",
        },
    ),
    "ledger": (
        "the collectives since the last such event",
        {"entries": "list of `ledger.Entry`: operation, axis, ranks, bytes, times, reason"},
    ),
    "spans": (
        "what a rank of a pipeline did in a step",
        {
            "step": "number",
            "spans": "list of (kind, stage, micro-batch, start, end); s, monotonic clock",
            "schedule": "its name",
        },
    ),
    "eval": (
        "the loss on held-out text",
        {"step": "steps done", "loss": "nats, mean over the same sequences each time"},
    ),
    "experts": (
        "how a step's tokens fell on experts, over all ranks",
        {
            "step": "number",
            "loads": "layer -> choices of each expert",
            "dropped": "choices beyond an expert's capacity, of each layer",
            "imbalance": "largest load over mean load, of each layer",
        },
    ),
    "experts moved": (
        "experts changed their places",
        {"step": "number", "layer": "number", "order": "which expert is where now"},
    ),
    "experts copied": (
        "which experts have copies changed",
        {"step": "number", "layer": "number", "copies": "which expert is on which other rank"},
    ),
    "products": (
        "how fast matrices are multiplied in a short format, as measured at the start",
        {
            "format": "bf16, fp16, ...",
            "tokens": "rows of each product",
            "products": "shape -> product -> in words",
            "attention": "in words",
        },
    ),
    "precision": (
        "adaptive: the format of each layer",
        {
            "step": "number",
            "layers": "layer -> (format, why)",
            "sizes": "layer -> weights",
            "numbers": "layer -> numbers that its three products read in a step",
            "below_fp32": "share of the products",
        },
    ),
    "went back": (
        "adaptive: a bad step",
        {
            "step": "number",
            "to": "the step it was taken back to; None: it was not",
            "why": "in words",
            "layers": "layer whose precision was raised -> its new format",
        },
    ),
    "lowered": (
        "adaptive: a layer whose precision was lowered again",
        {"step": "number", "layer": "its name", "format": "its new one"},
    ),
    "memory": (
        "the live bytes of a rank in a step that the memory monitor looked at",
        {
            "step": "number",
            "most": "bytes: category -> the most it had; and total",
            "at_peak": "bytes: category -> what it had when the total was largest",
            "phases": "bytes: phase of the step -> the largest total",
            "kept": "bytes: module -> what it left for backward",
            "timeline": "list of [s, bytes of each category]",
        },
    ),
    "memory plan": (
        "what is done with each block under a budget",
        {
            "budget": "bytes",
            "choices": "of each block: keep, recompute, selective, offload",
            "peak": "bytes: predicted",
            "seconds": "s: predicted, of a step more than if all were kept",
            "least": "bytes: the smallest budget that could be kept",
            "frontier": "list of [bytes, s, choices], none better in both than another",
            "blocks": "of each block: choice -> what was measured",
        },
    ),
    "trace": (
        "one step, module by module (debug/step_trace.py)",
        {
            "step": "number",
            "layout": "as text",
            "points": "list of [kind, name, micro-batch, slice, norm, sum]; norm and sum in fp64",
        },
    ),
    "pool": (
        "a pool of buffers, of a run that is over",
        {
            "name": "near or far of offloading, or buckets",
            "held": "bytes of all slabs",
            "most": "bytes that were lent at one time",
            "fragmentation": "0 to 1: the share of the slabs that was idle then",
            "slabs": "number: that were taken from the system",
            "late": "number: of them after the second step",
            "leases": "number",
        },
    ),
    "out of memory": (
        "a rank needed more memory than there was",
        {
            "step": "number",
            "limit": "bytes: that there are",
            "alive": "bytes by category, where the limit was set by a run; else empty",
            "changes": "list of settings that would have fitted, and the peak predicted for each",
        },
    ),
    "garbage": (
        "a pass of Python's collector, by all ranks at the same step",
        {"step": "number", "kind": "young or full", "objects": "that it freed"},
    ),
    "leaks": (
        "what outlived its step",
        {"found": "list of places: file, line, bytes, times"},
    ),
    "resume": (
        "the run goes on from a checkpoint",
        {"step": "its first one", "notes": "what differs from the run before, in sentences"},
    ),
    "host": (
        "the monitor, in the kernel: what the machine does beside the run (rank -1)",
        {
            "cpu_percent": "% of all cores",
            "memory_available_bytes": "bytes that programs could still get",
            "cpu_pressure_percent": "% of the last 10 s in which something waited for a core",
            "gpu_percent": "% by GPU",
            "gpu_memory_bytes": "bytes by GPU",
            "gpu_watts": "W by GPU",
            "gpu_celsius": "C by GPU",
            "gpu_sm_mhz": "MHz by GPU",
        },
    ),
    "values": ("what `pico.emit(...)` was given", {"...": "as given; `step`, `loss` are drawn"}),
    "state": (
        "the launcher: waiting, running, done, failed, stopped",
        {
            "state": "one of these",
            "error": "of a failed run: in words",
            "failure": "of a failed run: exception, exit, signal, mismatch, early return, hang",
            "rank": "of a failed run: which rank it was; None if that cannot be told",
        },
    ),
    "status": ("the launcher: a sentence about the run", {"text": "the sentence"}),
}


def table() -> Table:
    """One row a field."""
    rows = [
        [kind, what if i == 0 else "", field, text]
        for kind, (what, fields) in KINDS.items()
        for i, (field, text) in enumerate(fields.items())
    ]
    return Table(["kind", "what", "field", "what it is, and its unit"], rows)
