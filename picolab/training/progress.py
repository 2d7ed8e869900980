"""A bar on stderr while a run goes on: steps done, the loss, tokens a second.

Text, not a widget, so that it is the same in a terminal, in a notebook and headless. In a notebook
it is on stdout, since Jupyter gives what is on stderr the background of an error.
"""

import sys

from tqdm import tqdm

from picolab.monitoring import Event
from picolab.show.front_end import shell


class _NoLock:
    """Only the collecting thread draws. It is a daemon: if the program ends while it holds tqdm's
    lock, the bar's destructor would wait for that lock for ever.
    """

    def acquire(self, *_, **__) -> bool:
        return True

    def release(self) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_) -> None:
        pass


class Bar(tqdm):
    monitor_interval = 0  # tqdm's own thread, which would outlive the run, is not needed

    def __init__(self, *args, **named):
        place = sys.stderr if shell() is None else sys.stdout
        super().__init__(*args, file=place, mininterval=0.2, **named)


Bar.set_lock(_NoLock())


class Progress:
    """Given each event of a run; draws those of rank 0, closes the bar when the run has ended."""

    def __init__(self, steps: int, layout: str):
        self._steps, self._layout = steps, layout
        self._bar: Bar | None = None

    def __call__(self, event: Event) -> None:
        if event.kind == "step" and event.rank == 0:
            if self._bar is None:
                self._bar = Bar(
                    total=self._steps,
                    initial=event.data["step"],  # not 0 for a run that goes on
                    desc=self._layout,
                    unit="step",
                )
            speed = event.data["tokens"] / event.data["seconds"]
            self._bar.set_postfix_str(
                f"loss {event.data['loss']:.3f}, {speed:,.0f} tokens/s", refresh=False
            )
            self._bar.update()
        elif self._bar is not None and event.kind == "state":
            self._bar.close()  # no state but an end comes after a step
