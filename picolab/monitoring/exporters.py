"""Metrics for other programs: JSON lines, CSV, Parquet, TensorBoard, and OpenMetrics over HTTP.

The files have one row a value: step, rank, metric, label, value. What a format needs beyond this
package is imported where it is used, and named if it is missing. OpenMetrics (what Prometheus
reads) is served on the loopback interface only: the newest values with a label `rank`, by one
process for all ranks, so that nothing is left of ranks that are gone.
"""

import csv
import errno
import io
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from picolab.show.files import write_beside

if TYPE_CHECKING:
    from picolab.monitoring.collector import MetricsCollector, Row

FIELDS = ("step", "rank", "metric", "label", "value")


def to_jsonl(rows: Iterable["Row"], path: str | Path) -> Path:
    """A JSON object a line. What is no number is null, since JSON has no NaN."""
    lines = [
        json.dumps(row._asdict() | {"value": row.value if math.isfinite(row.value) else None})
        for row in rows
    ]
    return _write(path, "".join(line + "\n" for line in lines))


def to_csv(rows: Iterable["Row"], path: str | Path) -> Path:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(FIELDS)
    writer.writerows(rows)
    return _write(path, text.getvalue())


def to_parquet(rows: Iterable["Row"], path: str | Path) -> Path:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise _missing("Parquet", "pyarrow", "to_csv needs nothing", error) from error
    columns = dict(zip(FIELDS, map(list, zip(*rows)))) or {field: [] for field in FIELDS}
    path = Path(path).expanduser()
    beside = path.with_name(f".{path.name}.new")
    pyarrow.parquet.write_table(pyarrow.table(columns), beside)
    beside.replace(path)
    return path


def to_tensorboard(rows: Iterable["Row"], folder: str | Path) -> Path:
    """A folder for each rank, as TensorBoard compares runs: metric/label over steps."""
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError as error:
        raise _missing("TensorBoard", "tensorboard", "to_csv needs nothing", error) from error
    folder, writers = Path(folder).expanduser(), {}
    for row in rows:
        name = f"rank {row.rank}" if row.rank >= 0 else "host"
        if name not in writers:
            writers[name] = EventFileWriter(str(folder / name))
        tag = f"{row.metric}/{row.label}" if row.label else row.metric
        value = Summary(value=[Summary.Value(tag=tag, simple_value=row.value)])
        writers[name].add_event(Event(step=row.step, summary=value))
    for writer in writers.values():
        writer.close()
    return folder


def _write(path: str | Path, text: str) -> Path:
    path = Path(path).expanduser()
    write_beside(path, text)
    return path


def _missing(what: str, package: str, else_: str, error: ImportError) -> ImportError:
    return ImportError(
        f"{what} needs the package {package}, which is not here ({error}); install it with "
        f"pip install {package}, or all exporters: pip install -e '.[metrics]' ({else_})"
    )


class Served:
    """Metrics over HTTP, until `close()`."""

    def __init__(self, server, thread, registry):
        self._server, self._thread, self._registry = server, thread, registry
        self.port: int = server.server_port
        self.url = f"http://127.0.0.1:{self.port}/metrics"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"metrics on {self.url}; close() ends it"


def serve(collector: "MetricsCollector", port: int = 0) -> Served:
    """Serve the newest values on 127.0.0.1. port 0: one that is free.

    ImportError without prometheus-client, OSError if the port is taken."""
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError as error:
        raise _missing("OpenMetrics", "prometheus-client", "to_csv needs nothing", error) from error
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port < 65536:
        raise ValueError(f"port is {port!r}; it is a number below 65536, 0 for one that is free")
    registry = CollectorRegistry()
    registry.register(_Families(collector))
    try:
        server, thread = start_http_server(port, addr="127.0.0.1", registry=registry)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        why = "is in use" if error.errno == errno.EADDRINUSE else "needs privileges"
        raise OSError(
            error.errno,
            f"port {port} of 127.0.0.1 {why}, so metrics cannot be served there; take another "
            "one, or 0 for one that is free",
        ) from error
    return Served(server, thread, registry)


class _Families:
    """What prometheus-client asks for at each scrape."""

    def __init__(self, collector: "MetricsCollector"):
        self._collector = collector

    def collect(self):
        from prometheus_client.core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
        )

        of = self._collector
        for name, metric in of.metrics.items():
            labels = ["rank", *([metric.label] if metric.label else [])]
            about = f"picolab_{name}", metric.what or name
            kinds = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}
            family = kinds.get(metric.kind, HistogramMetricFamily)(*about, labels=labels)
            for label in of.labels(name):
                tail = [label] if metric.label else []
                if metric.kind == "histogram":
                    for rank, found in sorted(of._histograms[name, label].items()):
                        family.add_metric([str(rank), *tail], _buckets(found), found.sum)
                    continue
                values = of._totals[name, label] if metric.kind == "counter" else _newest(
                    of._values[name, label]
                )  # fmt: skip
                for rank, value in sorted(values.items()):
                    family.add_metric([str(rank), *tail], value)
            yield family


def _newest(by_step: dict[int, dict[int, float]]) -> dict[int, float]:
    """rank -> its newest value."""
    return {rank: value for of_ranks in by_step.values() for rank, value in of_ranks.items()}


def _buckets(histogram) -> list[tuple[str, float]]:
    """Cumulative, as the format has it."""
    found, sofar = [], 0
    for bound, count in zip((*histogram.BOUNDS, math.inf), histogram.counts):
        sofar += count
        found.append(("+Inf" if bound == math.inf else f"{bound:g}", float(sofar)))
    return found
