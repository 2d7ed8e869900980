"""Whose turn it is: jobs that would crowd each other out wait, and say so.

Four ranks on two cores take turns already; two such worlds at once would make every measurement
of either meaningless. So a job starts when nothing runs, or when its ranks and those running
together fit the cores."""

import os
import threading


class Turns:
    def __init__(self, cores: int | None = None):
        self._cores = cores or os.cpu_count() or 1
        self._running: dict[object, int] = {}
        self._queue: list[object] = []
        self._changed = threading.Condition()

    def take(self, job, ranks: int, on_wait, cancelled) -> bool:
        """Wait for a turn. `on_wait(jobs in the way)` is called once if there is a wait; False if
        `cancelled()`.
        """
        with self._changed:
            self._queue.append(job)
            told = False
            while not (self._queue[0] is job and self._fits(ranks)):
                if cancelled():
                    self._queue.remove(job)
                    self._changed.notify_all()
                    return False
                if not told:
                    on_wait([*self._running, *self._queue[: self._queue.index(job)]])
                    told = True
                self._changed.wait(0.1)
            self._queue.remove(job)
            self._running[job] = ranks
            self._changed.notify_all()
            return True

    def give_back(self, job) -> None:
        with self._changed:
            self._running.pop(job, None)
            self._changed.notify_all()

    def _fits(self, ranks: int) -> bool:
        return not self._running or sum(self._running.values()) + ranks <= self._cores
