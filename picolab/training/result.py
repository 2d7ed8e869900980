"""What a training run gives back."""

import html
import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from picolab import costs
from picolab.launch import RunResult
from picolab.model import Transformer, generate, load
from picolab.monitoring import History, Ledger
from picolab.monitoring.activity_figure import activity_figure
from picolab.monitoring.explanation import Explanation, explain_events
from picolab.monitoring.run_state import RunState
from picolab.monitoring.trace import activity_of, trace_of_run, write_trace
from picolab.monitoring.who_waits import Diagnosis, of_folder
from picolab.schedules import Action, Span, Timeline
from picolab.show.picture import LabFigure
from picolab.show.table import bytes_text
from picolab.specs import Layout, TrainConfig
from picolab.training.build import build
from picolab.training.one_thread import one_thread


@dataclass
class RankReport:
    """What `train_rank` returns on each rank. Losses and norms are global, so all ranks have the
    same."""

    first_step: int = 0
    """The first step of this run: above 0 where it goes on from a checkpoint."""
    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    """Valid tokens of the global batch."""
    seconds: list[float] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    """Steps whose update all ranks agreed not to make."""
    went_back: list[tuple[int, int]] = field(default_factory=list)
    """(step, the earlier one that the run went on from) of steps that were bad."""
    eval_losses: dict[int, float] = field(default_factory=dict)
    """Steps done -> the loss on held-out text."""
    cpu_s: float = 0.0
    """CPU seconds of this process in its steps, all threads."""
    memory: dict[str, int] = field(default_factory=dict)
    text: dict = field(default_factory=dict)
    state: dict[str, torch.Tensor] | None = None
    """Whole parameters by global name, from rank 0; None from the others: they have the same."""


@dataclass(repr=False)
class TrainResult:
    """Losses, speed, ledger, memory and the trained model of one run. Lists have one entry a
    step."""

    config: TrainConfig
    losses: list[float]
    """The mean over all valid tokens of the step's global batch, in nats, before the update."""
    grad_norms: list[float]
    """The norm of the whole gradient, each parameter counted once, before clipping."""
    learning_rates: list[float]
    step_s: list[float]
    """Seconds of each step, of its slowest rank. Start-up is not in it."""
    tokens: list[int]
    """Valid tokens of each step, over all ranks."""
    cpu_s: float
    """CPU seconds of all ranks in their steps."""
    memory: dict[int, dict[str, int]]
    """rank -> bytes of its "parameters", "gradients" and "optimizer" tensors, and "peak_rss"."""
    seconds: float
    """From the call to the last rank's result, start-up included."""
    run_dir: Path
    events: History
    text_state: dict
    """The position in the data after the last step; see `Text.load_state_dict`."""
    first_step: int = 0
    """Above 0 for a run that went on from a checkpoint; losses[0] is that step's."""
    eval_losses: dict[int, float] = field(default_factory=dict)
    """Steps done -> the loss on held-out text, the same sequences each time; with `eval_every`."""
    skipped: list[int] = field(default_factory=list)
    """Steps whose update all ranks agreed not to make."""
    went_back: list[tuple[int, int]] = field(default_factory=list)
    """(step, the earlier one that the run went on from) of steps that were bad; the lists have what
    came of them in the end."""
    _state: dict[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, config: TrainConfig, run: RunResult) -> "TrainResult":
        first: RankReport = run[0]
        return cls(
            config=config,
            losses=first.losses,
            grad_norms=first.grad_norms,
            learning_rates=first.learning_rates,
            step_s=[max(of_step) for of_step in zip(*(report.seconds for report in run))],
            tokens=first.tokens,
            cpu_s=sum(report.cpu_s for report in run),
            memory={rank: report.memory for rank, report in enumerate(run)},
            seconds=run.seconds,
            run_dir=run.run_dir,
            events=run.events,
            text_state=first.text,
            first_step=first.first_step,
            eval_losses=first.eval_losses,
            skipped=first.skipped,
            went_back=first.went_back,
            _state=first.state,
        )

    @property
    def layout(self) -> Layout:
        return self.config.layout

    @property
    def params(self) -> int:
        """Parameters of the whole model."""
        return costs.parameters(self.config.model).total

    @property
    def tokens_per_s(self) -> float:
        """Of all ranks together, over all steps but the first, which is warm-up, if there are
        more."""
        skip = 1 if len(self.step_s) > 1 else 0
        return sum(self.tokens[skip:]) / sum(self.step_s[skip:])

    @cached_property
    def ledger(self) -> Ledger:
        """Every collective of every step, of all ranks. (What the ranks did afterwards, to gather
        the parameters, is in `.events` only.)"""
        return self.events.ledger.in_steps()

    def timeline(self, step: int = -1) -> Timeline:
        """When each pipeline stage did what in a step (-1: the last), as measured.

        Of the pipeline through rank 0, if there are several. ValueError without a pipeline.
        """
        self._check_pipeline("no stage has spans")
        place = {"dp": 0, "cp": 0, "tp": 0}
        spans = [
            Span(
                self.layout.coordinates(event.rank)["pp"],
                Action(kind, stage, micro_batch),
                start,
                end,
            )
            for event in self.events.where("spans", self._steps[step])
            if place.items() <= self.layout.coordinates(event.rank).items()
            for kind, stage, micro_batch, start, end in event.data["spans"]
        ]
        return Timeline(spans, name=str(self.layout))

    def bubble(self) -> float:
        """The share of a step, 0 to 1, in which a stage stands still because another is not done
        yet: over all ranks and steps (the newest, and not the first). The dashboard's number.

        A message that is on its way is communication and no bubble. In `timeline` all that is
        neither forward nor backward is a gap, so its `bubble_of_total` is a little larger.
        ValueError without a pipeline.
        """
        self._check_pipeline("no stage waits for another")
        found = RunState(self.events).bubble()
        return found[0] if found is not None else 0.0

    def activity(self, step: int = -1) -> LabFigure:
        """What every rank did when in a step (-1: the last): compute, communication, waiting and
        bubble as bars, messages as arrows. With any layout; a figure with a text form.

        `timeline` is the pipeline's own view of the step: forwards and backwards.
        """
        return activity_figure(activity_of(self.events, self.ledger, self._steps[step]))

    def explain(self, step: int | None = None) -> Explanation:
        """Why a step took as long as it did: its critical path, each rank's seconds without
        remainder, the causes in order, and `.what_if(...)`.

        step: None for the one of median length, without the first, which warms up. ValueError if
        there is no such step.
        """
        return explain_events(self.events, step)

    def diagnose(self) -> Diagnosis:
        """Whether all ranks did the same collectives in all steps, and if not, who did not: as
        `pico.diagnose(result)`, which also takes a run that hangs or has failed."""
        return of_folder(self.run_dir)

    def write_trace(self, path: str | Path, steps: Iterable[int] | None = None) -> Path:
        """Write the run as a Chrome trace, to be opened at https://ui.perfetto.dev (which reads it
        in the browser): a thread a rank, messages as arrows; see `picolab.monitoring.trace`.

        steps   which ones, as numbers of the run; None: the newest 20. A step of four ranks takes
                some ten thousand bytes to a megabyte

        ValueError if the name does not end in .json, or the run has no such step.
        """
        chosen = self._steps[-20:] if steps is None else list(steps)
        if missing := [step for step in chosen if step not in self._steps]:
            first, last = self._steps[0], self._steps[-1]
            raise ValueError(f"there is no step {missing[0]}: this run has {first} to {last}")
        name = f"{self.config.model.name} on {self.layout}"
        return write_trace(path, trace_of_run(self.events, chosen, name=name))

    def _check_pipeline(self, so: str) -> None:
        if self.layout.pp == 1:
            raise ValueError(f"{self.layout} has no pipeline, so {so}")

    @property
    def _steps(self) -> range:
        return range(self.first_step, self.first_step + len(self.losses))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The trained parameters, whole, by their global names, on the CPU: the same names and
        shapes from every layout."""
        return dict(self._state)

    @cached_property
    def model(self) -> Transformer:
        """The trained model, whole, in this process."""
        return load(build(self.config.model, self.config.torch_dtype), self._state)

    def generate(
        self,
        prompt: str | bytes | list[int] = "def ",
        n: int = 200,
        *,
        temperature: float = 0.8,
        seed: int = 0,
    ):
        """The prompt and n more tokens, by the trained model; see `picolab.model.generate`."""
        with one_thread():
            return generate(self.model, prompt, n, temperature=temperature, seed=seed)

    def to_json(self) -> str:
        """One JSON object. "ledger" is what rank 0 did in all steps, by operation, axis and
        reason."""
        rows = self.ledger.rank(0).by("op", "axis", "reason").items()
        ledger = [
            {
                "op": op,
                "axis": axis,
                "reason": reason,
                "count": totals.count,
                "payload_bytes": totals.payload_bytes,
                "ring_bytes": totals.ring_bytes,
            }
            for (op, axis, reason), totals in rows
        ]
        found = {
            "model": self.config.model.name,
            "layout": str(self.layout),
            "first_step": self.first_step,
            "losses": self.losses,
            "grad_norms": self.grad_norms,
            "eval_losses": self.eval_losses,
            "skipped": self.skipped,
            "went_back": self.went_back,
            "tokens_per_s": self.tokens_per_s,
            "step_s": self.step_s,
            "cpu_s": self.cpu_s,
            "ledger": ledger,
            "params": self.params,
            "run_dir": str(self.run_dir),
        }
        return json.dumps(found)

    def __repr__(self) -> str:
        rows = self._rows()
        width = max(len(name) for name in rows)
        head = f"TrainResult: {self._title()}"
        return "\n".join([head, *(f"  {name:<{width}}  {text}" for name, text in rows.items())])

    def _repr_html_(self) -> str:
        cells = "".join(
            f'<tr><th style="text-align:left">{html.escape(name)}</th>'
            f'<td style="text-align:left">{html.escape(text)}</td></tr>'
            for name, text in self._rows().items()
        )
        style = "text-align:left;caption-side:top"
        caption = f'<caption style="{style}">{html.escape(self._title())}</caption>'
        return f"<table>{caption}<tbody>{cells}</tbody></table>"

    def _title(self) -> str:
        steps = len(self.losses)
        return (
            f"{self.config.model.name} on {self.layout}, {steps} step{'s' * (steps != 1)} of "
            f"{self.config.tokens_per_step:,} tokens"
        )

    def _rows(self) -> Mapping[str, str]:
        loss, held = f"{self.losses[0]:.3f}", self.memory[0]
        if len(self.losses) > 1:
            loss += f" at the first step, {self.losses[-1]:.3f} at the last"
        steps = list(zip(self.tokens, self.step_s))[1:] or list(zip(self.tokens, self.step_s))
        seconds = statistics.median(taken for _, taken in steps)
        speed = statistics.median(tokens / taken for tokens, taken in steps)
        rows = {"loss": loss}
        if self.eval_losses:
            done, held_out = list(self.eval_losses.items())[-1]
            rows["held-out loss"] = f"{held_out:.3f} after {done} steps"
        if self.went_back:
            rows["went back"] = ", ".join(f"from step {k} to {s}" for k, s in self.went_back)
        return rows | {
            "speed": f"{speed:,.0f} tokens/s, {seconds * 1e3:.0f} ms a step (medians)",
            "parameters": f"{self.params:,}, of which rank 0 held {bytes_text(held['parameters'])}",
            "ledger": f"{self.ledger.rank(0).total().count:,} collectives of rank 0",
            "time": f"{self.seconds:.1f} s; {self.cpu_s:.1f} CPU seconds in all ranks' steps",
            "run directory": str(self.run_dir),
        }
