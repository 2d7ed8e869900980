"""What being watched costs a rank in a step: `python tests/benchmarks/monitoring.py`.

CPU time of the rank's main thread, in a real run of two ranks: of the step's event (its fields, the
JSON, the file, the message to the kernel) and of what is read for it (memory, own loss, waiting for
a core); a pass over the gradients (`Probe`) apart, since nobody has it who has not asked, and it
grows with the model. The ledger's entries are tests/benchmarks/ledger.py. And of the kernel, what
collector and detector take for a step of a rank.
"""

import statistics
import time

import picolab as pico
from picolab.monitoring import AnomalyDetector, MetricsCollector
from picolab.specs import assemble
from picolab.training import Probe, observers, train_rank, trainer

STEPS = 300


def timed(owner, name, into):
    real = getattr(owner, name)
    setattr(owner, name, lambda *args, **more: _clocked(into, real, *args, **more))


def _clocked(into, real, *args, **more):
    began = time.thread_time()
    try:
        return real(*args, **more)
    finally:
        into.append(time.thread_time() - began)


def rank(config):
    """CPU seconds of each step: event, own loss, probe; and all of the step's CPU and wall time."""
    event, own, probe, walls = [], [], [], []
    timed(observers.EventWriter, "step", event)
    whole = trainer.ThreeDParallelOptimizer
    timed(whole, "_keep_own", own)
    read = whole.own_loss.fget
    whole.own_loss = property(lambda self: _clocked(own, read, self))
    timed(Probe, "_look", probe)
    timed(Probe, "gradients", probe)
    report = train_rank(config, None, [Probe()])
    walls = report.seconds
    per_step = lambda parts: sum(parts) / len(walls)  # noqa: E731
    return per_step(event), per_step(own), per_step(probe), statistics.median(walls)


def main() -> None:
    shape = dict(hidden=32, ffn=48, layers=2, heads=4, kv_heads=2, vocab=256, seq=16)
    config = assemble(layout="dp2", steps=STEPS, micro_batch=2, data="stdlib", **shape)
    run = pico.run(rank, config, world_size=2, quiet=True)
    event, own, probe, wall = run[0]
    told = event + own
    print(f"the step's event          {event * 1e6:6.1f} us of CPU a step")
    print(f"this rank's own loss      {own * 1e6:6.1f} us")
    print(f"both, of a 10 ms step     {told / 0.010:6.2%}   (steps here take {wall * 1e3:.1f} ms)")
    size = pico.costs.parameters(config.model).total
    print(f"Probe, if asked for       {probe * 1e6:6.1f} us, of {size:,} parameters")
    for listener in (MetricsCollector(), AnomalyDetector()):
        events = list(run.events)
        began = time.thread_time()
        for one in events:
            listener.add(one)
        each = (time.thread_time() - began) / (2 * STEPS)
        print(f"{type(listener).__name__:25} {each * 1e6:6.1f} us in the kernel, a rank and step")


if __name__ == "__main__":
    main()
