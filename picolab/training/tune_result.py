"""What a tuning found, and its evidence."""

import html
import json
import statistics
from pathlib import Path

from picolab.show.table import Table
from picolab.specs import Layout
from picolab.training.tune_log import Contender, Trial, TuneLog


class TuneResult:
    """The winner and every trial. Printed: the answer, and a row for each contender.

    settings   what `pico.train` takes, besides steps: `pico.train(**result.settings, steps=100)`
    compared   whether the last comparison was made to its end; if not, the default is the answer
    whole      whether every contender had its turns, none left out for want of time
    """

    def __init__(
        self,
        log: TuneLog,
        settings: list[dict],
        finalist: int | None,
        compared: bool,
        whole: bool,
    ):
        self._log, self._finalist, self.compared, self.whole = log, finalist, compared, whole
        self._winner = 0
        if compared and self._median(finalist) < self._median(0):
            self._winner = finalist
        self.settings = settings[self._winner]

    @property
    def folder(self) -> Path:
        return self._log.folder

    @property
    def trials(self) -> list[Trial]:
        return self._log.trials

    @property
    def contenders(self) -> list[Contender]:
        """The default first."""
        return self._log.contenders

    @property
    def layout(self) -> Layout:
        """The answer."""
        return Layout.parse(self.contenders[self._winner].layout)

    @property
    def default(self) -> Layout:
        return Layout.parse(self.contenders[0].layout)

    @property
    def finals(self) -> dict[str, list[float]]:
        """Layout -> the median steps of its runs in the last comparison, in seconds."""
        if self._finalist is None:
            return {}
        both = (0, self._finalist)
        return {self.contenders[i].layout: self._finals(i) for i in both}

    @property
    def factor(self) -> float:
        """How many times faster than the default: 1 where that is the answer."""
        return self._median(0) / self._median(self._winner) if self._winner else 1.0

    def _finals(self, i: int) -> list[float]:
        of_finals = self._log.final(self._finalist, i)
        return [trial.seconds for trial in of_finals if trial.seconds is not None]

    def _median(self, i: int) -> float:
        return statistics.median(self._finals(i))

    def sentence(self) -> str:
        name = f"{self.layout}, micro-batch {self.settings['micro_batch']}"
        if self._winner:
            said = (
                f"{name}: {1e3 * self._median(self._winner):,.1f} ms a step, {self.factor:.2f}x as "
                f"fast as the default {self.default}"
            )
        elif self.compared:
            other = self.contenders[self._finalist].layout
            ratio = self._median(self._finalist) / self._median(0)
            said = f"{name}, the default: the best contender, {other}, takes {ratio:.2f}x its time"
        elif len(self.contenders) == 1:
            said = f"{name}, the default: nothing else can be run"
        else:
            said = f"{name}, the default: no contender was compared with it to the end"
        more = "" if self.whole else f"; the budget ended first, go on with folder={self.folder}"
        return f"{said}{more}."

    def table(self) -> Table:
        """A row for each contender: predicted, measured, and why it is not the answer."""
        rows = []
        for i, contender in enumerate(self.contenders):
            trials = self._log.halving(i)
            times = [trial.seconds for trial in trials if trial.seconds is not None]
            measured = 1e3 * times[-1] if times else None
            rows.append(
                [contender.layout, contender.micro_batch, 1e3 * contender.predicted_s, measured,
                 len(trials), self._why(i)]
            )  # fmt: skip
        columns = ["layout", "micro-batch", "predicted ms", "measured ms", "rounds", "what became"]
        return Table(columns, rows)

    def comparison(self) -> Table:
        """The last comparison: each run's median step in ms, in the order of the runs."""
        rows = [
            [layout, *(1e3 * s for s in times), 1e3 * statistics.median(times)]
            for layout, times in self.finals.items()
            if times
        ]
        runs = max((len(row) - 2 for row in rows), default=0)
        rows = [row for row in rows if len(row) == runs + 2]
        return Table(["layout", *(f"run {i + 1}" for i in range(runs)), "median ms"], rows)

    def _why(self, i: int) -> str:
        trials = self._log.halving(i)
        failed = [t for t in self.trials if t.contender == i and t.error is not None]
        if i == self._winner:
            return "the answer" if i else "the default, and the answer"
        if i == 0:
            return f"the default: {self.factor:.2f}x the time of the answer"
        if failed:
            return f"failed: {failed[0].error}"
        if i == self._finalist:
            return "not faster than the default" if self.compared else "not compared to the end"
        if not trials:
            return "no time left for it"
        number = trials[-1].round
        best = min(
            trial.seconds
            for trial in self.trials
            if trial.round == number and trial.contender and trial.seconds is not None
        )
        return f"dropped in round {number + 1}: {trials[-1].seconds / best:.2f}x the fastest"

    def to_json(self) -> str:
        rows = [
            {**contender._asdict(), "rounds": len(self._log.halving(i)), "verdict": self._why(i)}
            for i, contender in enumerate(self.contenders)
        ]
        settings = {**self.settings, "model": self.settings["model"].name}
        return json.dumps(
            {
                "layout": str(self.layout), "default": str(self.default), "factor": self.factor,
                "settings": settings, "compared": self.compared, "whole": self.whole,
                "finals": self.finals, "contenders": rows,
                "trials": [trial._asdict() for trial in self.trials], "folder": str(self.folder),
            }
        )  # fmt: skip

    def _shown(self) -> list:
        shown = [self.sentence(), self.table()]
        return [*shown, self.comparison()] if self.compared else shown

    def __rich__(self):
        from rich.console import Group

        return Group(*self._shown())

    def __repr__(self) -> str:
        return "\n\n".join(map(str, self._shown()))

    def _repr_html_(self) -> str:
        return "".join(
            part._repr_html_() if isinstance(part, Table) else f"<p>{html.escape(part)}</p>"
            for part in self._shown()
        )
