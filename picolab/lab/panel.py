"""`pico.panel()`: choose dp, tp, pp and cp, press Run, watch, press Stop.

The buttons offer only what works: every value of one axis fits some values of the others, and when
the product would be too many ranks, the axes that were not touched give way. Under them stands
which rank holds what of the chosen layout, what the formulas say about it, and after a run what was
measured.
All layouts train on the same global batch, so a run can be held against an earlier one of another
layout: the losses of earlier runs stand in grey behind it, and the panel says how far apart they
are.

Headless the panel is a table of its choices, and with autorun=True it runs its first layout once.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from picolab.lab.layout_choice import (
    CHOSEN,
    ZERO_STAGES,
    accumulated,
    choices_table,
    formula_table,
    nearest,
    working_layouts,
)
from picolab.lab.panel_widgets import PanelWidgets
from picolab.lab.placement import Placement, placement_figure
from picolab.lab.run_panel import RunPanel
from picolab.lab.traffic_bars import traffic_bars
from picolab.monitoring.run_state import RunState
from picolab.show.front_end import has_front_end
from picolab.show.table import Table
from picolab.specs import Layout, assemble
from picolab.specs.settings import split, takes_settings

_GHOSTS = 4  # earlier runs that are drawn behind a run
_COMPARED = 20  # first losses of two runs; later ones drift apart by rounding


@takes_settings("model", "steps")
def panel(
    *,
    max_world: int = 4,
    axes: Sequence[str] = CHOSEN,
    zero: bool = False,
    ep: Sequence[int] = (),
    shapes: Mapping[str, Sequence] | None = None,
    schedules: Sequence[str] = (),
    micro_batches: Sequence[int] = (),
    precisions: Sequence[str] = (),
    autorun: bool = False,
    live: bool | None = None,
    accumulate: int | None = None,
    **settings,
) -> "Panel":
    """Buttons for dp, tp, pp and cp, formulas, Run and Stop, progress, and the live dashboard.

    max_world   the most ranks it will start
    axes        the axes that have buttons; the others stay 1
    zero        True: buttons for ZeRO's stage, too
    ep          buttons for these numbers of ranks that share a layer's experts, too
    shapes      buttons for fields of the model, too: {"experts": (4, 8), "capacity": (1.0, 2.0)};
                runs of other shapes are other runs, and are not held against each other
    schedules   buttons for these schedules of a pipeline, too
    micro_batches  buttons for these numbers of micro-batches a replica, too; a schedule that needs
                more takes the next that it can have
    precisions  buttons for these precisions, too
    layout      what is chosen at first; its schedule and sp are kept when others are
    autorun     headless only: run that layout once and show its picture
    live        True or False instead of finding out whether there is a front end with widgets
    accumulate  micro-batches of one replica in one step; None: 12 over all replicas, so that every
                layout sees the same

    Returns a `Panel`, which has shown itself: `.layout`, `.job`, `.result`, `.run()`, `.stop()`.
    The other settings are those of `pico.train`:
    """
    if micro_batches and accumulate is None:
        accumulate = micro_batches[0]
    if accumulate is not None:
        settings["accumulate"] = accumulate
    offered = {"ep": tuple(ep), "zero": ZERO_STAGES if zero else (), "schedule": tuple(schedules)}
    offered |= {"micro_batches": tuple(micro_batches), "precision": tuple(precisions)}
    live = has_front_end() if live is None else live
    return Panel(settings, max_world, tuple(axes), offered, dict(shapes or {}), live, autorun)


class Panel(RunPanel):
    def __init__(self, settings, max_world, axes, offered, shapes, live, autorun):
        super().__init__(settings)
        of_config, _ = split(settings)
        config = assemble(**of_config)
        self.config, self.layout = config.model, config.layout
        self._step = {
            "micro_batch": config.micro_batch,
            "accumulate": settings.get("accumulate"),
            "precision": config.precision,
            "bucket_bytes": config.bucket_bytes,
            "sp_inputs": config.sp_inputs,
        }
        self._max_world, self.axes, self._shapes = max_world, axes, shapes
        self._choices = self._working(self.layout)
        self.offered = {name: values for name, values in offered.items() if values}
        self.offered |= {name: tuple(values) for name, values in shapes.items()}
        for name, values in self.offered.items():
            if self.chosen(name) not in values:
                raise ValueError(
                    f"the panel opens with {name} {self.chosen(name)!r}, which is none of "
                    f"{', '.join(map(str, values))}"
                )
        if self.layout not in self._choices.values():
            offered = ", ".join(map(str, self._choices.values()))
            raise ValueError(f"{self.layout} is not among the layouts of this panel: {offered}")
        self._run_layout = self.layout
        self.message = "choose a layout and press Run"
        self._starting = ""  # what was said at the start of the run, until its first step
        self._measured: dict[str, dict] = {}  # name -> reason -> (operations, payload bytes)
        self._losses: dict[str, dict[int, float]] = {}  # name -> step -> loss, of its last run
        self._ran: dict[str, tuple[Layout, dict]] = {}  # name -> its layout and shape
        self._open(PanelWidgets(self, self._every_way(), config.steps) if live else None, autorun)

    # -- of a run --

    def _begin(self) -> str:
        self._run_layout, self._run_name = self.layout, self.name
        self._ran[self._run_name] = self.layout, self._asked()
        self.earlier = dict(list(self._losses.items())[-_GHOSTS:])
        self._starting = f"starting {_ranks(self.layout)} for {self.layout}"
        return self._starting

    def _given(self) -> dict:
        layout, asked = self._ran[self._run_name]
        return {"layout": layout, "accumulate": self._accumulated(layout), **asked}

    def _going(self) -> str:
        return f"{self._run_layout} is still running"

    def _paint(self, state: RunState) -> bool:
        if self.message == self._starting and state.losses:
            self._say(f"{self._run_layout} is running; press Stop to end it")
        return super()._paint(state)

    def _told(self, said: str, state: RunState) -> str:
        said = self._against_others(said, state)
        self._measured[self._run_name] = state.traffic()
        return said

    def _measured_shown(self) -> None:
        if self._widgets:
            self._refresh()
        else:
            self.replace(self.table())

    def _against_others(self, said: str, state: RunState) -> str:
        """How far the first losses are from those of one process, or of another layout that ran on
        the same batches.
        """
        mine = self._run_name
        layout, shape = self._ran[mine]
        alike = {
            name: of
            for name, (of, other) in self._ran.items()
            if name in self._losses and name != mine and other == shape
        }
        others = [n for n, of in alike.items() if self._batch(of) == self._batch(layout)]
        if state.losses:
            self._losses.pop(mine, None)  # the newest is last
            self._losses[mine] = dict(state.losses)
        if not others or not state.losses:
            return said
        other = next((name for name in others if alike[name].world == 1), others[0])
        steps = sorted(state.losses.keys() & self._losses[other].keys())[:_COMPARED]
        if not steps:
            return said
        apart = max(abs(state.losses[step] - self._losses[other][step]) for step in steps)
        of = "one process" if alike[other].world == 1 else other
        return f"{said}\nthe first {len(steps)} losses are those of {of}, {apart:.1e} apart at most"

    def _accumulated(self, layout: Layout) -> int:
        return accumulated(layout, self._step["accumulate"])

    def _batch(self, layout: Layout) -> int:
        """Micro-batches of all replicas in a step."""
        return layout.dp * self._accumulated(layout)

    # -- what is to be seen --

    @property
    def name(self) -> str:
        """Of what is chosen: the layout, and shape and precision as far as they have buttons."""
        asked = self._asked()
        precision = [asked.pop("precision")] if "precision" in asked else []
        shape = [f"{name.replace('_', ' ')} {value:g}" for name, value in asked.items()]
        return ", ".join([str(self.layout), *shape, *precision])

    def _asked(self) -> dict:
        """What the buttons say of a run besides its layout."""
        return {
            name: self.chosen(name) for name in (*self._shapes, "precision") if name in self.offered
        }

    def _every_way(self) -> list[Layout]:
        """Whatever ep: there is a button for each size of an axis that some ep goes with."""
        likes = [
            self.layout,
            *(self.layout.resized(dp=n, ep=n) for n in self.offered.get("ep", ())),
        ]
        return [layout for like in likes for layout in self._working(like).values()]

    def _working(self, like: Layout) -> dict[tuple[int, ...], Layout]:
        return working_layouts(self.config, self._max_world, like, self.axes)

    def table(self) -> Table:
        """The formulas for the chosen layout, and what its last run in this panel measured."""
        return formula_table(self.config, self.layout, self._measured.get(self.name), **self._step)

    def bars(self) -> str:
        """The same as `table`, as HTML with bars."""
        measured = self._measured.get(self.name)
        return traffic_bars(self.config, self.layout, measured, **self._step)

    def placement(self) -> Placement:
        """Which rank of the chosen layout holds what."""
        step = {"micro_batch": self._step["micro_batch"]}
        step["accumulate"] = self._accumulated(self.layout)
        return placement_figure(self.layout, self.config, **step)

    def choose(self, **axis: int) -> Layout:
        """Press a button: `choose(pp=2)`. If that is too many ranks, the other axes give way.
        `choose(zero=2)`, `choose(schedule="zb-v")`, `choose(micro_batches=8)` and
        `choose(precision="bf16")` keep them, and say so where they change nothing; `choose(ep=4)`
        takes as many replicas as it needs, and `choose(experts=16)` is another model."""
        [(name, size)] = axis.items()
        if name == "micro_batches":
            self._step["accumulate"] = size
            self._refresh()
            return self.layout
        if name == "precision":
            self._step["precision"] = size
            self._refresh()
            return self.layout
        if name in self._shapes:
            return self._choose_shape(name, size)
        if name in ("zero", "schedule", "ep"):
            return self._choose_way(name, size)
        layout = nearest(self._choices, self.layout, name, size) or self._otherwise(name, size)
        if layout is None:
            raise ValueError(f"this panel has no layout with {name}={size}")
        if layout.ep != self.layout.ep:
            self._say(f"ep {self.layout.ep} does not divide dp * cp there: {layout}")
        elif layout.schedule != self.layout.schedule:
            self._say(f"{name} {size} has no layers for {self.layout.schedule}: {layout}")
        elif self._more_than_asked(layout, axis):
            self._say(f"the most this panel starts is {self._max_world} ranks: {layout}")
        self.layout = layout
        self._refresh()
        return layout

    def _more_than_asked(self, layout: Layout, axis: dict[str, int]) -> bool:
        """Whether other axes than the one that was touched have changed."""
        return any(
            getattr(layout, other) != getattr(self.layout, other)
            for other in CHOSEN
            if other not in axis
        )

    def _otherwise(self, name: str, size: int) -> Layout | None:
        """With the first schedule of this panel, or the largest ep, under which the axis can be so
        long."""
        for like in self._other_ways():
            choices = self._working(like)
            if layout := nearest(choices, self.layout, name, size):
                self._choices = choices
                return layout
        return None

    def _other_ways(self) -> Iterator[Layout]:
        for schedule in self.offered.get("schedule", ()):
            yield dataclasses.replace(self.layout, schedule=schedule)
        for ep in sorted(self.offered.get("ep", ()), reverse=True):
            yield self.layout.resized(dp=ep, ep=ep)

    def chosen(self, name: str):
        """What is chosen of it: `chosen("pp")`, `chosen("schedule")`, `chosen("precision")`."""
        if name in self._shapes:
            return getattr(self.config, name)
        if name in ("micro_batches", "precision"):
            return self._step[name.replace("micro_batches", "accumulate")]
        return getattr(self.layout, name)

    def _choose_way(self, name: str, value: int | str) -> Layout:
        """ZeRO's stage, the schedule or ep; of an axis that does not go with it, the nearest that
        does."""
        if name == "ep":
            like = self.layout.resized(dp=value, ep=value)
            self._choices = self._working(like)
            sizes = tuple(getattr(self.layout, axis) for axis in CHOSEN)
            layout = self._choices.get(sizes) or nearest(self._choices, self.layout)
            if layout is None:
                raise ValueError(f"this panel has no layout with ep={value}")
        else:
            changes = {name: value}
            if name == "zero" and not value:
                changes["shard"] = None
            layout = dataclasses.replace(self.layout, **changes)
            self._choices = self._working(layout)
        if layout not in self._choices.values():
            layout = nearest(self._choices, layout, "tp", layout.tp)
            self._say(f"{value} needs more layers than {self.layout} leaves a rank: {layout}")
        self.layout = layout
        for remark in layout.remarks:
            self._say(remark)
        self._refresh()
        return layout

    def _choose_shape(self, name: str, value) -> Layout:
        """Another model; one that cannot be, or that the layout cannot split, is refused."""
        try:
            config = self.config.replace(**{name: value})
            self.layout.check(config)
        except ValueError as error:
            self._say(str(error))
            return self.layout
        self.config = config
        self._choices = self._working(self.layout)
        self._refresh()
        return self.layout

    def _refresh(self) -> None:
        if self._widgets:
            self._widgets.show_formulas()

    def content(self):
        if self._widgets:
            return self._widgets.box
        return choices_table(self.config, self._choices, **self._step)

    def __repr__(self) -> str:
        choices = choices_table(self.config, self._choices, **self._step)
        return f"{choices!r}\n{self.layout}: {self.message}"


def _ranks(layout: Layout) -> str:
    return "1 rank" if layout.world == 1 else f"{layout.world} ranks"
