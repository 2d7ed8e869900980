"""What a run says about itself, and what can be read from it. No torch here.

`figures` and `wire` are modules of their own; as attributes (`pico.monitoring.figures`) they are
imported when first asked for, and so are the parts of the monitor, which no rank needs. `Table` and
the general figures are in `picolab.show`; copies of notebooks that readers have made know them from
here, so they are found here too.
"""

import importlib

from picolab.monitoring.events import Event, emit
from picolab.monitoring.history import History
from picolab.monitoring.ledger import Entry, Ledger, Totals
from picolab.monitoring.observer import Observer, StepReport
from picolab.show.table import Table

_LAZY = {
    "AlertManager": "alerts",
    "Anomaly": "anomalies",
    "AnomalyDetector": "anomalies",
    "BasicMonitoringSystem": "system",
    "BasicVisualization": "visualization",
    "Duration": "alert_rules",
    "Hit": "alert_rules",
    "MetricsCollector": "collector",
    "Rule": "alert_rules",
}

__all__ = [
    "Entry",
    "Event",
    "History",
    "Ledger",
    "Observer",
    "StepReport",
    "Table",
    "Totals",
    "emit",
    *_LAZY,
]


def __getattr__(name):
    if name in ("figures", "wire"):
        return importlib.import_module(f"picolab.monitoring.{name}")
    if name in _LAZY:
        return getattr(importlib.import_module(f"picolab.monitoring.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'picolab.monitoring' has no attribute {name!r}")
