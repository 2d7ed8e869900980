"""`picolab alerts RUN`: the history of a run's alerts, and what fires now.

If a monitor watched it, that is what it wrote down. Else it is what rules make of the run's events:
nobody was told of it then.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from picolab.monitoring.alert_history import LINES, Transition, read_history
from picolab.monitoring.alerts import history_table
from picolab.monitoring.system import BasicMonitoringSystem


@dataclass(frozen=True)
class Summary:
    run_dir: Path
    history: list[Transition]
    watched: bool
    """by a monitor, while it ran"""

    @property
    def now(self) -> list[Transition]:
        """The newest of each alert that is not over."""
        newest = {(t.name, t.rank): t for t in self.history}
        return [t for t in newest.values() if t.state not in ("resolved", "passed")]

    def to_json(self) -> str:
        lines = [[json.loads(t.to_json()) for t in part] for part in (self.history, self.now)]
        told = dict(zip(("history", "now"), lines))
        return json.dumps({"run_dir": str(self.run_dir), "watched": self.watched, **told})

    def __repr__(self) -> str:
        who = "as its monitor told them" if self.watched else "by the rules; nobody was told"
        if not self.history:
            return f"{self.run_dir}: no alert ({who})"
        firing = "\n".join(f"  {t}" for t in self.now) or "  nothing"
        table = history_table(self.history)
        return f"alerts of {self.run_dir}, {who}\n{table!r}\n\nnot over at the end:\n{firing}"


def summary(run_dir: Path, rules: str | Path | None = None) -> Summary:
    """rules: a file by which to judge the run's events again."""
    if rules is None and (Path(run_dir) / LINES).exists():
        return Summary(run_dir, read_history(run_dir), watched=True)
    settings = {"samples": False, "notify": [], "rules": rules}
    system = BasicMonitoringSystem(settings).read(run_dir)
    return Summary(run_dir, list(system.alerts.history), watched=False)
