"""`BasicVisualization`: events of a run in, plotly figures out; the dashboard's panels, one by one.

    shown = BasicVisualization(result)            # or a job, events, a RunState
    shown.loss()                                  # with marks where something was noticed
    shown.lateness().save("late.html")
    shown.everything()                            # what `pico.dashboard(result, watch=True)` shows

Each method gives a `LabFigure`: a picture and the same as text. plotly is imported when one is
drawn, so a machine without it can still read. A figure of what the run has not told is a ValueError
that says what would make it tell. `lab/dashboard.py` makes them live, `picolab report` a page.
"""

from picolab.monitoring import figures, watch_figure
from picolab.monitoring.figures import LabFigure, run_state
from picolab.monitoring.run_state import RunState


class BasicVisualization:
    """See above.

    run         whatever carries events: a result, a job, a list of events, or a `RunState` that was
                made with watch=True
    peak_flops  of one rank's device, a second: for the MFU beside the tokens/s
    """

    def __init__(self, run, peak_flops: float | None = None):
        if peak_flops is not None and not peak_flops > 0:
            raise ValueError(f"peak_flops is {peak_flops!r}; it is above 0, such as 1e12")
        self._run, self._peak_flops = run, peak_flops

    @property
    def state(self) -> RunState:
        """What the run has said so far."""
        state = run_state(self._run, watch=True)
        if self._peak_flops is not None:
            state.peak_flops = self._peak_flops
        return state

    def loss(self) -> LabFigure:
        return figures.loss_figure(self.state)

    def throughput(self) -> LabFigure:
        """Tokens/s, and the MFU where `peak_flops` is given."""
        return figures.throughput_figure(self.state)

    def split(self) -> LabFigure:
        """Where a step goes, for each rank."""
        return figures.split_figure(self.state)

    def ledger(self) -> LabFigure:
        """What travels, by reason."""
        return figures.ledger_figure(self.state)

    def lateness(self) -> LabFigure:
        """Rank by step: how late each came to its collectives."""
        return watch_figure.watch_figure(self.state, watch_figure.LATE)

    def gradient_norm(self) -> LabFigure:
        return watch_figure.watch_figure(self.state, watch_figure.NORM)

    def loss_scale(self) -> LabFigure:
        """With a mark for each overflow."""
        return watch_figure.watch_figure(self.state, watch_figure.SCALE)

    def process_memory(self) -> LabFigure:
        """Resident bytes of each rank's process."""
        return watch_figure.watch_figure(self.state, watch_figure.MEMORY)

    def findings(self) -> LabFigure:
        """Alerts, or anomalies where nobody kept alerts: when, and in words."""
        return watch_figure.watch_figure(self.state, watch_figure.FINDINGS)

    def everything(self) -> LabFigure:
        """All panels that this run has data for."""
        return figures.training_figure(self.state)
