"""A world that stays: the same ranks for several calls.

    with pico.launch.World(4) as world:
        world.run(load, "big-model")
        world.run(step)

Lessons use fresh ranks, which cost a tenth of a second and start clean. On GPUs, a CUDA context
and NCCL's connections cost seconds, and a large model should not be loaded twice: for that the
ranks are kept. What a function wants to find again in the next call it puts into
`picolab.launch.world.state`, a dictionary in each rank. The environment, the folder and whatever
else ranks take over (surroundings.py) are those of when the world was made. The first failure ends
the world: its ranks are in an unknown state, and a pool that goes on with such ranks is worse
than none."""

import queue
from pathlib import Path
from typing import Any

from picolab.launch import payload as payloads
from picolab.launch import rank as rank_process
from picolab.launch.job import Backend, Job, run
from picolab.launch.result import RunResult
from picolab.monitoring.event_files import lengths
from picolab.monitoring.history import History

state: dict[str, Any] = {}  # in a rank of a World: what the functions keep between calls


class World:
    """`world_size` ranks that stay until `close()` (or the end of the with block)."""

    def __init__(
        self,
        world_size: int = 2,
        *,
        backend: Backend = "auto",
        timeout: float = 120,
        quiet: bool = False,
        run_dir: str | Path | None = None,
    ):
        self.world_size = world_size
        self._answers: queue.SimpleQueue[tuple[int, bytes]] = queue.SimpleQueue()
        self.job: Job = run(
            serve,
            world_size=world_size,
            backend=backend,
            timeout=timeout,
            wait=False,
            name="world",
            quiet=quiet,
            run_dir=run_dir,
            answers=lambda rank, blob: self._answers.put((rank, blob)),
        )

    def run(self, fn, *args, **kwargs) -> RunResult:
        """Call `fn` on every rank; returns when all have answered. Raises what `pico.run` raises;
        then the world has ended.
        """
        self._refuse_if_ended()
        run_dir = self.job.run_dir
        events = History(run_dir, lengths(run_dir))  # of this call only
        forget = self.job.on_event(events.add)
        values: dict[int, Any] = {}
        try:
            self.job._collector.ask(payloads.pack(fn, args, kwargs))
            while len(values) < self.world_size:
                try:
                    rank, blob = self._answers.get(timeout=0.2)
                except queue.Empty:
                    if self.job.done:
                        self.job.result()  # raises the failure
                        self._refuse_if_ended()
                    continue
                values[rank] = payloads.unpack_result(blob)
        except KeyboardInterrupt:
            self.close()  # a call that was cut off leaves ranks in an unknown state
            raise
        finally:
            forget()
        ordered = [values[rank] for rank in range(self.world_size)]
        return RunResult(ordered, events, run_dir=run_dir, backend=self.job.backend)

    def close(self) -> None:
        """End the ranks. A second time changes nothing."""
        if not self.job.done:
            self.job.stop()

    def _refuse_if_ended(self) -> None:
        if self.job.done:
            raise ValueError(
                f"this world has ended ({self.job.state}); make a new one: "
                "a world does not outlive a failure"
            )

    def __enter__(self) -> "World":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"World of {self.world_size} rank(s), {self.job.state}"


def serve() -> None:
    """In a rank: call what is asked for, until the kernel ends it."""
    channel = rank_process.channel()
    while True:
        payload = payloads.unpack(channel.connection.recv_bytes())
        result = payloads.pack_result(payload.fn(*payload.args, **payload.kwargs))
        rank_process.flush()
        channel("answer", result)
