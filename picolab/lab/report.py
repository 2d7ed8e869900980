"""`pico.report(run)`: a run as one page, to be kept, sent, and opened where nothing is installed.

    pico.report(result)                       # writes NAME.html here; `picolab report RUN`
    pico.report("20261124-...", "why.html")

One HTML file with everything in it: how the run ended and, where it failed, the debugger's verdict;
the panels of `pico.dashboard(run, watch=True)`, which can still be zoomed, since plotly's script is
in the file; what was found; the settings; and all of it as text. It follows the reader's theme,
asks the network for nothing (the page itself forbids it), and of what a run says about itself
nothing is taken for markup. It is written beside and renamed: a reader never opens half of it.

Of a run that goes on it shows what there is.
"""

import html
import re
import time
from collections.abc import Iterable
from pathlib import Path

from picolab import __version__
from picolab.lab.follower import RunDirectory, state_of
from picolab.launch import rundirs
from picolab.monitoring import who_waits
from picolab.monitoring.figures import split_table, traffic_table, training_figure
from picolab.monitoring.run_state import RunState
from picolab.monitoring.watch_figure import findings_table
from picolab.show.files import write_beside
from picolab.show.picture import INK, PAGES, RED
from picolab.show.plain import visible
from picolab.show.table import Table
from picolab.show.theme import rule

MOST_FINDINGS = 500


def report(run, path: str | Path | None = None, peak_flops: float | None = None) -> Path:
    """Write the page; returns where it is.

    run    a result, a job, a run directory, or the name of one in `picolab runs ls`
    path   None: the run's name with .html, in the current folder
    peak_flops   of one rank's device, a second: for the MFU

    ValueError for what is no run, has left nothing, or was written by another version."""
    source = RunDirectory(rundirs.find(str(run))) if isinstance(run, str | Path) else run
    if not hasattr(source, "events"):
        raise ValueError(f"a report is of a job, a result or a run directory, not of {run!r}")
    folder = Path(source.run_dir) if getattr(source, "run_dir", None) is not None else None
    state, about = state_of(source, watch=True), rundirs.describe(folder) if folder else {}
    if not about and not state.heard:
        raise ValueError(f"there is nothing of a run in {folder}: no run.json and no events")
    state.peak_flops = peak_flops
    name = folder.name if folder is not None else "run"
    target = Path(f"{name}.html" if path is None else path).expanduser()
    if target.suffix not in (".html", ".htm"):
        raise ValueError(f"a report is an HTML page: {target.name} should end in .html")
    write_beside(target, _page(name, state, about, folder))
    return target


def _page(name: str, state: RunState, about: dict, folder: Path | None) -> str:
    parts = [f"<h1>{_text(name)}</h1>", f"<p class=where>{_text(state.sentence())}</p>"]
    running = folder is not None and rundirs.is_running(folder)
    if running:
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        parts.append(f"<p>It was going on when this page was made, {now}.</p>")
    parts += _verdict(state, about, folder, running)
    if state.is_empty:
        parts.append("<p>It has told of no step, so there is nothing to draw.</p>")
    else:
        parts.append(_figure(state))
    findings = findings_table(state.watch)
    if findings.rows:
        left_out = len(findings.rows) - MOST_FINDINGS
        findings = Table(findings.columns, findings.rows[-MOST_FINDINGS:])
        more = f", without the first {left_out:,}" if left_out > 0 else ""
        parts += _section(f"What was found{more}", findings._repr_html_())
    if state.split():
        parts += _section("Where a step goes", split_table(state)._repr_html_())
        parts += _section("What travels", traffic_table(state)._repr_html_())
    parts += _section("The run", _pairs(_of_run(about, state)))
    if state.settings:
        parts += _section("Its settings", _pairs(state.settings.items()))
    text = "" if state.is_empty else training_figure(state).text
    if text:
        parts.append(
            f"<details><summary>All of it as text</summary><pre>{_text(text)}</pre></details>"
        )
    parts.append(f"<footer>picolab {__version__}</footer>")
    return _HEAD.format(title=_text(name), style=_STYLE) + "\n".join(parts) + "</body></html>\n"


def _verdict(state: RunState, about: dict, folder: Path | None, running: bool) -> list[str]:
    """What the debugger says of a run that did not end as it should; of a run that goes on nothing
    is said, since to tell a hang from a long step takes looking for a while."""
    if folder is None or running or "failed" not in (state.state, about.get("state")):
        return []
    found = who_waits.of_folder(folder)
    rows = found.table()._repr_html_() if found.rows else ""
    return [f"<section class=verdict role=alert><p>{_text(found.verdict)}</p>{rows}</section>"]


def _of_run(about: dict, state: RunState) -> Iterable[tuple[str, object]]:
    for name, value in about.items():
        if name in ("started", "ended") and isinstance(value, int | float):
            value = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))
        if name not in ("held", "pid"):
            yield name.replace("_", " "), value
    if state.layout:
        yield "layout", state.layout


def _section(title: str, body: str) -> list[str]:
    return [f"<section><h2>{_text(title)}</h2>{body}</section>"]


def _pairs(pairs: Iterable[tuple[str, object]]) -> str:
    return Table(["", "value"], [[str(name), str(value)] for name, value in pairs])._repr_html_()


def _figure(state: RunState) -> str:
    """Without its heading, which the page has."""
    figure = training_figure(state, headed=False).figure
    config = {"displaylogo": False, "responsive": True}
    drawn = figure.to_html(full_html=False, include_plotlyjs=True, config=config, auto_play=False)
    return f"<figure>{drawn}</figure>"


def _text(text: str) -> str:
    return html.escape(visible(text))


_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:">
<title>{title}</title>
<style>{style}</style></head><body>
"""
_STYLE = re.sub(
    r"\s+",
    " ",
    f"""
    :root {{ color-scheme: light dark }}
    body {{ background: {PAGES["light"]}; color: {INK}; font: 15px/1.5 system-ui, sans-serif;
        max-width: 1400px; margin: 0 auto; padding: 16px 24px }}
    h1 {{ font-size: 22px; overflow-wrap: anywhere }}
    h2 {{ font-size: 17px; margin-top: 32px }}
    figure {{ margin: 0 }}
    section {{ overflow-x: auto }}
    table {{ border-collapse: collapse }}
    th, td {{ padding: 3px 14px 3px 0; border-bottom: 1px solid rgba(128,132,140,0.28);
        vertical-align: top }}
    pre {{ overflow-x: auto; font-size: 13px }}
    .where {{ font-size: 16px; white-space: pre-line }}
    .verdict {{ border-left: 4px solid {RED}; padding: 2px 0 2px 14px }}
    .verdict p {{ font-weight: 600 }}
    footer {{ margin: 40px 0 8px; opacity: 0.7 }}
    @media (prefers-color-scheme: dark) {{ body {{ background: {PAGES["dark"]}; color: #e4e6ea }} }}
    {rule("currentColor")}
    """,
)
