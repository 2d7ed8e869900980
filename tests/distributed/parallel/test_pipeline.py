"""The pipeline executor does what the schedule says, and computes what one process computes.

Wrong versions these catch: gradients too large by the number of micro-batches (picotron), a tied
embedding whose two gradients are never added, stages that all start alike (picotron), activations
kept after they were sent, a bubble that is drawn and not measured."""

import json
from collections import Counter
from functools import cache
from itertools import pairwise, product

import pytest
import torch

import picolab as pico
from picolab import comm, costs, schedules
from picolab.model import Transformer, initialise, slices
from picolab.model.transformer import cross_entropy
from picolab.monitoring import step_split
from picolab.monitoring.figures import run_state
from picolab.monitoring.trace import activity_of
from picolab.parallel.pipeline import PipelineParallelOptimizer
from picolab.schedules import Span, Timeline
from picolab.specs import ModelConfig
from picolab.specs.schedule_name import ScheduleName

SEQ, BATCH = 16, 2


def shape(layers, tied) -> ModelConfig:
    return ModelConfig.preset("tiny").replace(
        hidden=32, ffn=48, layers=layers, heads=4, kv_heads=2, vocab=40, seq=SEQ, tied=tied
    )


def batch(m):
    generator = torch.Generator().manual_seed(m)
    tokens = torch.randint(0, 40, (m, BATCH, SEQ), generator=generator)
    labels = torch.randint(0, 40, (m, BATCH, SEQ), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.3] = -100
    return tokens, labels


def one_process(config, m):
    tokens, labels = batch(m)
    count = int((labels != -100).sum())
    model = initialise(Transformer(config, dtype=torch.float64), 0)
    loss = sum(model.loss(tokens[i], labels[i]) / count for i in range(m))
    loss.backward()
    gradients = {p.name: g for q in model.parameters() for p, g in slices(q, q.grad)}
    return loss.item(), gradients


def in_stages(cases, undivided=False, forget_the_tie=False):
    """Loss and gradients of this stage for each case (schedule name, m, layers, tied)."""
    stages, found = torch.distributed.get_world_size(), []
    comm.build_mesh(f"pp{stages}")
    for name, m, layers, tied in cases:
        tokens, labels = batch(m)
        count = 1 if undivided else int((labels != -100).sum())
        model = Transformer(shape(layers, tied), dtype=torch.float64)
        pipeline = PipelineParallelOptimizer(model)
        initialise(model, 0)
        schedule = schedules.make(name, stages, m)
        total = pipeline.run(schedule, tokens, labels, count)
        if not forget_the_tie:
            pipeline.sum_tied_gradients()
        comm.all_reduce(total, "pp", "pp: loss")
        gradients = {p.name: g.clone() for q in model.parameters() for p, g in slices(q, q.grad)}
        found.append((total.item(), gradients))
    return found


def worst(found, expected) -> float:
    loss, gradients = found
    errors = [abs(loss - expected[0]) / expected[0]]
    errors += [
        float((g - expected[1][n]).norm() / expected[1][n].norm()) for n, g in gradients.items()
    ]
    return max(errors)


SHAPES = ((4, False), (5, True))


@pytest.mark.parametrize("stages", [2, 4])
@pytest.mark.parametrize("turn", [0, pytest.param(1, marks=pytest.mark.weekly)])
def test_every_schedule_and_count_equals_one_process(stages, turn):
    """One turn has every pair of schedule, count and shape; both have all three crossed."""
    cases = [
        (name, m, *SHAPES[(i + j + turn) % 2])
        for i, name in enumerate(("1f1b", "gpipe"))
        for j, m in enumerate((1, 2, 3, 5, 8))
    ]
    ranks = pico.run(in_stages, cases, world_size=stages)
    for i, (_, m, layers, tied) in enumerate(cases):
        expected = one_process(shape(layers, tied), m)
        assert max(worst(rank[i], expected) for rank in ranks) < 1e-12, cases[i]
        held = [set(rank[i][1]) for rank in ranks]
        assert set.union(*held) == set(expected[1])
        assert len(set.intersection(held[0], held[-1])) == (1 if tied else 0)  # the embedding


def test_mutants_are_caught():
    case = ("1f1b", 4, 4, True)
    expected = one_process(shape(4, True), 4)
    undivided = pico.run(in_stages, [case], undivided=True, world_size=2)
    ratio = undivided[1][0][0] / expected[0]
    assert ratio > 10  # every tensor is too large by the same factor, which AdamW would hide
    forgotten = pico.run(in_stages, [case], forget_the_tie=True, world_size=2)
    assert worst(forgotten[0][0], expected) > 0.01


def test_layers_are_dealt_out_and_each_stage_starts_from_its_own():
    assert [list(r) for r in costs.stage_layers(7, 3)] == [[0, 1, 2], [3, 4], [5, 6]]
    with pytest.raises(ValueError, match="3 layers cannot be dealt out to 4 stages"):
        costs.stage_layers(3, 4)

    def weights():
        comm.build_mesh("pp4")
        model = Transformer(shape(4, False))
        PipelineParallelOptimizer(model)
        initialise(model, 0)
        return model.layers[0].mlp.down.weight.detach()

    first, *others = pico.run(weights, world_size=4)
    # Mutant: one seed for all and weights drawn in order of construction makes stages alike.
    assert not any(torch.equal(first, other) for other in others)


def test_what_was_sent_is_freed_and_one_f_one_b_keeps_fewer():
    """Bytes of live activations at their peak, on the first stage: all micro-batches, or p of
    them.
    """

    def peak(name):
        comm.build_mesh("pp2")
        model = Transformer(shape(4, False))
        pipeline = PipelineParallelOptimizer(model)
        initialise(model, 0)
        tokens, labels = batch(8)
        live, most = {}, [0]

        class Kept(dict):
            def __setitem__(self, m, xy):
                super().__setitem__(m, xy)
                live[m] = True
                most[0] = max(most[0], len(live))

            def pop(self, m):
                del live[m]
                return super().pop(m)

        freed = []
        original = pipeline._free_what_was_sent

        def spy(wait=False):
            sent = [x for _, x in pipeline._sending]
            original(wait)
            still = {id(x) for _, x in pipeline._sending}
            freed.extend(x.untyped_storage().size() for x in sent if id(x) not in still)

        pipeline._free_what_was_sent = spy
        pipeline._kept = Kept()
        pipeline.run(schedules.make(name, 2, 8), tokens, labels, 100)
        return most[0], freed

    for name, first_stage in (("gpipe", 8), ("1f1b", 2)):
        ranks = pico.run(peak, name, world_size=2)
        assert ranks[0][0] == first_stage == costs.in_flight(name, 2, 8, 0)
        for _, freed in ranks:
            assert len(freed) == 8 and set(freed) == {0}


STAGE_COST_S = (0.08, 0.16)  # forward and backward; long against what a step costs besides
WEEKLY = [pytest.param(n, marks=pytest.mark.weekly) for n in ("gpipe", "interleaved", "zb-v")]


@cache
def costly_run(name, stages, micro_batches, attempt=0):
    """Four steps of stages that sleep, so that they overlap also where they share cores. Each stage
    of a rank sleeps as long as if it were alone, and longer at each further attempt: what a busy
    machine adds is less beside it."""
    share = ScheduleName.parse(name).stages_a_rank
    costs_s = tuple(cost * share * 2**attempt for cost in STAGE_COST_S)
    return pico.train(
        layout=pico.Layout(pp=stages, schedule=name),
        steps=4,
        accumulate=micro_batches,
        micro_batch=1,
        layers=4 * share,
        hidden=32,
        ffn=32,
        heads=4,
        kv_heads=2,
        seq=16,
        stage_cost_s=costs_s,
        progress=False,
    )


def undisturbed(check, *of):
    """The first of three runs that the check holds for. What else the machine does can spoil a
    measurement of time, and spoils few of three; a wrong way to measure fails on all.
    """
    for attempt in range(3):
        run = costly_run(*of, attempt)
        try:
            check(run)
        except AssertionError:
            if attempt == 2:
                raise
        else:
            return run


def ready(schedule, timeline):
    """When an action could begin, in seconds of the run: its rank is done with the action before,
    and the result that it needs is made."""
    made, found = {span.action: span.end for span in timeline.spans}, {}
    free = dict.fromkeys(range(timeline.ranks), timeline.start)
    for span in timeline.spans:  # a rank's in the order of time
        found[span.action] = max(free[span.rank], made.get(schedule.needs(span.action), 0))
        free[span.rank] = span.end
    return found


def undisturbed_step(schedule, timelines):
    """A step in which each action takes the least that it did in any of these, from when it could
    begin: what else the machine does only ever adds to it, and seldom four times in one place. What
    belongs to the run is there every time."""
    took = {}
    for timeline in timelines:
        rows = [[s.action for s in timeline.spans if s.rank == r] for r in range(timeline.ranks)]
        assert rows == [list(row) for row in schedule.actions]
        could = ready(schedule, timeline)
        for span in timeline.spans:
            took.setdefault(span.action, []).append(span.end - could[span.action])
    spans, free, end = [], dict.fromkeys(range(schedule.ranks), 0), {}
    for action in sorted(took, key=could.get):  # an order that respects the needs
        rank = schedule.rank_of(action.stage)
        start = max(free[rank], end.get(schedule.needs(action), 0))
        free[rank] = end[action] = start + min(took[action])
        spans.append(Span(rank, action, start, end[action]))
    return Timeline(spans)


def is_the_simulators(step, schedule, slack):
    """Its bubble, where the simulator is told what a stage's actions took on the mean. They took
    little but what they sleep: a machine that is slow has some more to compute, and to send."""
    took = {}
    for span in step.spans:
        took.setdefault(span.action.kind, {}).setdefault(span.action.stage, []).append(
            span.end - span.start
        )
    told = {}
    for kind, of_stage in took.items():
        told[kind] = [sum(of_stage[s]) / len(of_stage[s]) for s in range(schedule.stages)]
        assert max(told[kind]) < 1.4 * min(map(min, of_stage.values()))
    simulated = schedules.simulate(
        schedule,
        forward=told["F"],
        backward_input=told["B"],
        backward_weight=told.get("W", 0),
    )
    expected = pytest.approx(float(simulated.bubble_of_total), abs=slack)
    assert float(step.bubble_of_total) == expected


@pytest.mark.alone
@pytest.mark.parametrize("name", ["1f1b", "zb-h1", *WEEKLY])
def test_the_bubble_in_real_spans_is_the_simulators(name):
    """With a fixed cost a stage the measured bubble is the simulated one, within 5 % of 1F1B's. B
    and W share the backward's. (How much a stage computes besides, and how long a message takes, is
    the machine's: a slow one was seen to take 15 ms more for each action.)"""
    schedule = schedules.make(name, 4, 8)
    forward, backward = STAGE_COST_S
    halves = {"backward_input": backward / 2, "backward_weight": backward / 2}
    simulated = schedules.simulate(schedule, forward=forward, **halves)
    slack = 0.05 * costs.bubble_of_total(4, 8)

    def check(timelines):
        step = undisturbed_step(schedule, timelines)
        is_the_simulators(step, schedule, slack)
        assert float(step.bubble_of_total) > formula - slack

    def check_run(run):
        check([run.timeline(step) for step in range(4)])

    formula = costs.bubble_of_total(4, 8, name)  # of F = B = W
    run = undisturbed(check_run, name, 4, 8)
    assert float(simulated.bubble_of_total) == pytest.approx(formula)
    assert run.timeline().peak_in_flight == simulated.peak_in_flight
    check([simulated])
    # Mutants: the other definition, over the ideal, which is 37.5 % of 1F1B and not 27.3 %, and of
    # little bubbles the same; each result sent an action late; a stage that costs twice as much;
    # the steps of another schedule.
    if formula == costs.bubble_of_total(4, 8):
        assert float(simulated.bubble_of_ideal) > formula + slack
    late = schedules.simulate(schedule, forward=forward, **halves, latency=forward)
    one_dear = [2] + [1] * (schedule.stages - 1)
    uneven = schedules.simulate(schedule, forward=one_dear, backward_input=one_dear)
    other = schedules.make("zb-h1" if name == "1f1b" else "1f1b", 4, 8)
    theirs = schedules.simulate(other, forward=forward, **halves)
    for mutant in (late, uneven, theirs):
        with pytest.raises(AssertionError):
            check([mutant])


PIPELINES = [("1f1b", 2, 4), ("1f1b", 4, 8), pytest.param("gpipe", 4, 8, marks=pytest.mark.weekly)]


@pytest.mark.alone
@pytest.mark.parametrize(("name", "stages", "micro_batches"), PIPELINES)
def test_the_bubble_in_the_ledger_is_that_of_the_spans(name, stages, micro_batches, monkeypatch):
    """The split, which knows collectives only, against the timeline of the same steps, which knows
    when each stage was busy: idle until what it needed was made. What a message takes after that is
    no bubble. Both clocks run on the busy machine alike, so its speed cancels."""
    schedule = schedules.make(name, stages, micro_batches)

    def check(run):
        state, waited = run_state(run), Counter()
        timelines = [run.timeline(step) for step in range(1, 4)]
        for timeline in timelines:
            could = ready(schedule, timeline)
            late = Counter()
            for span in timeline.spans:
                late[span.rank] += span.start - could[span.action]
            for rank, idle in enumerate(timeline.idle):
                waited[rank] += (idle - late[rank]) / len(timelines)
        split = state.split()
        for rank, parts in split.items():
            bubble = parts.bubble_s / parts.seconds
            assert waited[rank] / parts.seconds == pytest.approx(bubble, abs=0.03)
        share = sum(waited.values()) / sum(parts.seconds for parts in split.values())
        assert state.bubble()[0] == pytest.approx(share, abs=0.03)

    run = undisturbed(check, name, stages, micro_batches)
    state = run_state(run)
    share, formula = state.bubble()
    assert run.bubble() == share
    assert formula == pytest.approx((stages - 1) / (micro_batches + stages - 1), rel=1e-12)
    text = f"bubble {100 * share:.0f} % of the step (formula {100 * formula:.0f} %)"
    assert text in state.sentence() and "no rank is much slower" not in state.sentence()
    # Mutant: a receive counts as communication, since no send is matched with it.
    monkeypatch.setattr(step_split, "_MESSAGES", ())
    with pytest.raises(AssertionError):
        check(run)
    assert run_state(run).bubble()[0] < share - 0.03


def test_no_stage_is_in_the_bubble_while_it_computes(monkeypatch):
    """Exact, however busy the machine: what the split calls bubble meets none of the rank's own
    spans. And the wait for a message ends after the span of the sender that made it, and before the
    sender's next."""
    run, reasons = (
        costly_run("1f1b", 4, 8),
        {"F": "pp: activations", "B": "pp: gradients of activations"},
    )
    rounding = 1e-6

    def check():
        ends = 0
        for step in range(4):
            spans = run.timeline(step).spans
            of_rank = [[s for s in spans if s.rank == rank] for rank in range(4)]
            waits = step_split.waiting_of(run.ledger.step(step))
            for entry, waited in waits:
                begin, end = entry.start + rounding, entry.start + waited - rounding
                assert all(end <= s.start or s.end <= begin for s in of_rank[entry.rank])
            for rank, kind in product(range(4), "FB"):
                got = [w for w in waits if (w[0].rank, w[0].op) == (rank, "recv")]
                got = [w for w in got if w[0].reason == reasons[kind]]
                theirs = of_rank[got[0][0].peer] if got else []
                made = [i for i, s in enumerate(theirs) if s.action.kind == kind]
                for (entry, waited), i in zip(got, made, strict=True):
                    end = entry.start + waited
                    assert not waited or theirs[i].end <= end + rounding
                    assert not waited or theirs[i + 1 :] == [] or end <= theirs[i + 1].start
                    ends += waited > 0
        assert ends > 4 * 4  # a stage waits at least once a step

    check()
    # Mutant: a message travels while its sender still computes it.
    monkeypatch.setattr(step_split, "arrival", lambda e: e.start + e.exposed_s - e.seconds - 0.01)
    with pytest.raises(AssertionError):
        check()


def test_a_real_run_in_time_and_as_a_trace(tmp_path):
    """Of every step: intervals without a gap, as many seconds as the split, an arrow for every
    activation and every gradient, and in the trace the same, with the pipeline's own spans."""
    run = costly_run("1f1b", 4, 8)
    path = run.write_trace(tmp_path / "run.json")
    trace = json.loads(path.read_text())["traceEvents"]
    kinds = "compute", "communication", "waiting", "bubble"
    in_us = {kind: 0.0 for kind in kinds}
    for step in range(4):
        found = activity_of(run.events, run.ledger, step)
        assert len(found.messages) == 2 * 3 * 8
        assert all(m.sent < m.received and abs(m.source - m.target) == 1 for m in found.messages)
        seconds = {e.rank: e.data["seconds"] for e in run.events.where("step", step)}
        split = step_split.step_split(run.ledger.step(step), seconds)
        for rank, parts in found.split().items():
            mine = [i for i in found.intervals if i.rank == rank]
            assert all(a.end == b.start for a, b in pairwise(mine))
            assert mine[-1].end - mine[0].start == pytest.approx(seconds[rank], abs=1e-9)
            assert parts == pytest.approx(split[rank], abs=1e-9)
            for kind, part in zip(kinds, parts):
                in_us[kind] += 1e6 * part
    for kind in kinds:
        durations = [e["dur"] for e in trace if e.get("cat") == kind]
        assert sum(durations) == pytest.approx(in_us[kind], abs=2e-3 * len(durations))
    flows = [(e["ph"], e["id"]) for e in trace if e.get("cat") == "message"]
    assert len(set(flows)) == len(flows) == 2 * 4 * 48
    busy = sum(sum(run.timeline(step).busy) for step in range(4))
    actions = [e["dur"] for e in trace if e["name"][0] in "FB" and e["pid"] == 2 and "dur" in e]
    assert len(actions) == 4 * 4 * 16
    assert sum(actions) == pytest.approx(1e6 * busy, abs=2e-3 * len(actions))
    last = run.write_trace(tmp_path / "last.json", steps=[3])
    steps = {e["name"] for e in json.loads(last.read_text())["traceEvents"] if e["ph"] == "X"}
    assert "step 3" in steps and "step 2" not in steps
    with pytest.raises(ValueError, match="no step 4: this run has 0 to 3"):
        run.write_trace(tmp_path / "none.json", steps=[4])
    assert repr(run.activity()).startswith("step 3: ")


def test_equal_to_torchs_own_pipeline():
    """torch.distributed.pipelining on the same stages, weights and micro-batches."""
    import torch.distributed as dist

    def both():
        from torch.distributed.pipelining import PipelineStage, Schedule1F1B

        comm.build_mesh("pp2")
        config, m = shape(4, False), 4
        tokens, labels = batch(m)
        labels = labels.clamp_min(0)  # torch's schedule averages micro-batches of equal weight
        found = []
        for twin in (False, True):
            model = Transformer(config, dtype=torch.float64)
            pipeline = PipelineParallelOptimizer(model)
            initialise(model, 0)
            if not twin:
                pipeline.run(schedules.make("1f1b", 2, m), tokens, labels, labels.numel())
            else:
                rank = dist.get_rank()
                stage = PipelineStage(model, rank, 2, torch.device("cpu"))
                schedule = Schedule1F1B(stage, n_microbatches=m, loss_fn=mean_loss)
                if rank == 0:
                    schedule.step(tokens.flatten(0, 1))
                else:
                    schedule.step(target=labels.flatten(0, 1))
            found.append([q.grad.clone() for q in model.parameters()])
        ours, theirs = found
        return max(float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs))

    assert max(pico.run(both, world_size=2)) < 1e-12


def mean_loss(logits_BSV, labels_BS):
    return cross_entropy(logits_BSV, labels_BS) / labels_BS.numel()
