"""Mystery runs: the fault is at work, the looks show what is claimed of them, and the score counts.

Every case, and every suspect of every case, is trained on real ranks; what its looks show beyond
rounding must be what `Suspect.shows` says, no less and no more. The wrong versions this file
catches (the first six are kept as mutants below): a look that compares the run with itself (loss
and norm, ledger, shards), a case whose fault is not at work, a score that ignores looks, one that
ignores wrong names; a tell that says the first loss would be right where it is not; a fault that
shows where the story says that it does not, a look that trains again or counts twice, a failed run
that counts as a look, a case that can be answered twice.
"""

import json
from functools import cache
from types import SimpleNamespace

import pytest

from picolab.exercises import mystery as public
from picolab.exercises import mystery_looks as looks
from picolab.exercises.mystery import MysteryRun, cases, mystery
from picolab.exercises.mystery_case import LOOKS
from picolab.exercises.mystery_faults import OWN, find
from picolab.exercises.mystery_looks import ROUNDING, Trial, found
from picolab.exercises.mystery_run_faults import LATE_S
from picolab.exercises.mystery_runs import one_process, record
from picolab.specs import assemble

CASES = cases()


# The culprit of each case in a push, all that it could have been in a week.
SUSPECTS = [
    pytest.param(case.id, letter, marks=[] if letter == case.culprit else pytest.mark.weekly)
    for case in CASES.values()
    for letter in case.letters
]


def setting(case) -> tuple:
    """What runs of different cases may have in common."""
    asked = json.dumps([case.settings, case.scaler, case.odd])
    return case.layout, asked, case.memory, case.watched


OF_SETTING = {setting(case): case for case in CASES.values()}


@cache
def recording(of_setting, fault, alone=False):
    case = OF_SETTING[of_setting]
    config = assemble(layout=case.layout, **case.settings)
    return record(one_process(config) if alone else config, find(fault), case)


def trial_of(id, letter=None):
    """What the case's looks would have, were this suspect the culprit."""
    case = CASES[id]
    fault = case.letters[letter or case.culprit].fault
    of = setting(case)
    return Trial(recording(of, fault), recording(of, None), recording(of, None, alone=True))


def fresh(id="4d.mystery.1"):
    """A case of its own, trained already."""
    case = MysteryRun(CASES[id])
    case._trial = trial_of(id)
    return case


def claimed(id, letter=None):
    case = CASES[id]
    return set(case.letters[letter or case.culprit].shows) - set(looks.TIMED)


def check_shown(id, letter=None, trial=None):
    assert found(trial or trial_of(id, letter)) == claimed(id, letter)


def first_off(trial):
    return abs(trial.this.losses[0] - trial.one.losses[0]) / trial.one.losses[0]


# -- the looks


@pytest.mark.parametrize(("id", "letter"), SUSPECTS)
def test_looks_show_what_is_claimed_of_a_suspect(id, letter):
    check_shown(id, letter)


@pytest.mark.parametrize(("id", "letter"), SUSPECTS)
def test_what_a_suspect_says_of_the_first_loss(id, letter):
    """A wrong forward pass shows before any update, a wrong backward pass or norm does not."""
    tell = CASES[id].letters[letter].tell
    if "first loss" in tell:
        trial = trial_of(id, letter)
        is_right = first_off(trial) < looks.rounding(trial)
        assert is_right == ("first loss would be right" in tell)


@pytest.mark.parametrize("id", CASES)
def test_a_right_run_shows_nothing_beside_which_the_fault_stands_out(id):
    trial = trial_of(id)
    assert found(Trial(trial.right, trial.right, trial.one)) == set()
    assert all(pair.start == pair.end == 0 for pair in trial.copies[1] if "copies" in pair.kind)


def test_one_norm_is_four_times_too_large_and_the_loss_does_not_move():
    trial = trial_of("4d.mystery.1")
    ratios = [a / b for a, b in zip(trial.this.norms, trial.one.norms)]
    assert ratios == pytest.approx([4] * 24, rel=ROUNDING)
    assert "4 times one process's in every step" in looks.summary(trial, "norm")
    assert min(trial.one.norms) > trial.one.config.clip  # or the loss would move
    doubled = trial_of("4d.mystery.1", "B")
    ratios = [a / b for a, b in zip(doubled.this.norms, doubled.one.norms)]
    assert ratios == pytest.approx([2] * 24, rel=ROUNDING)


def test_shards_inside_the_layers_are_copies_for_ever():
    pairs = {pair.group: pair for pair in trial_of("4d.mystery.2").copies[0]}
    for group in ("attention", "MLP"):
        assert pairs[group].kind == "shards over tp" and pairs[group].start == pairs[group].end == 0
    for group in ("embedding", "head"):
        assert pairs[group].start == 0 and pairs[group].end > ROUNDING
    assert not pairs["norms"].wrong


MORE_DEAR = [("G", 15, 1), ("D", 1, 1)]


@pytest.mark.parametrize(
    ("letter", "count", "size"),
    [("F", 4, 4), ("A", 1, 2), *(pytest.param(*of, marks=pytest.mark.weekly) for of in MORE_DEAR)],
)
def test_dear_gradients_are_told_apart_by_count_and_bytes(letter, count, size):
    lines = trial_of("4d.mystery.3", letter).collectives
    (line,) = (line for line in lines if line.reason == "dp: gradient bucket")
    assert line.count == count * line.formula_count
    assert line.bytes == size * line.formula_bytes
    assert [other for other in lines if other.differs] == [line] * line.differs


def test_wrong_positions_are_off_from_the_first_step_and_by_little():
    trial, labels = trial_of("4d.mystery.4"), trial_of("4d.mystery.4", "B")
    assert 100 * ROUNDING > first_off(trial) > 10 * ROUNDING
    assert first_off(labels) > 10 * first_off(trial)
    assert labels.this.losses[-1] > 1.05 * labels.one.losses[-1]
    halved = trial_of("4d.mystery.4", "F")
    assert [2 * a for a in halved.this.losses] == pytest.approx(halved.one.losses, rel=ROUNDING)


def test_the_healthy_run_is_off_by_rounding_and_not_by_nothing():
    """Else there would be nothing to learn from it."""
    assert CASES["4d.mystery.5"].fault is None
    trial = trial_of("4d.mystery.5")
    off = looks.relative(trial.this.losses, trial.one.losses)
    assert sum(value > 0 for value in off) > len(off) / 2 and max(off) < ROUNDING


def test_the_late_rank_computes_longer_and_no_number_shows_it():
    """A rank sleeps at least as long as it was told, however busy the machine is."""
    for letter, rank in (("C", 1), ("E", 0)):
        trial = trial_of("4d.mystery.6", letter)
        assert trial.this.split[rank].compute_s >= LATE_S
        assert trial.this.losses == trial.right.losses and trial.this.norms == trial.right.norms
    assert "rank 1 computes" in looks.summary(trial, "spans")


def test_the_tied_matrix_drifts_apart_where_its_gradients_are_not_added():
    (pair,) = trial_of("4d.mystery.7").copies[0]
    assert (pair.group, pair.kind, pair.start) == ("embedding", "copies over pp", 0)
    assert pair.end > 0.01


@pytest.mark.parametrize(
    "letter", ["B", *(pytest.param(letter, marks=pytest.mark.weekly) for letter in "CDEF")]
)
def test_no_other_suspect_lets_the_tied_matrix_drift_apart(letter):
    (pair,) = trial_of("4d.mystery.7", letter).copies[0]
    assert pair.start == pair.end == 0


@pytest.mark.parametrize("id", CASES)
def test_every_look_is_a_table_that_says_what_to_compare(id):
    case = fresh(id)
    for name in case.about.looks:
        table = case.look(name)
        assert "Compare" in table.title and table.rows
        assert f"right {case.about.layout}" in repr(table)
        assert table._repr_html_().count("<tr>") == len(table.rows) + 1
        assert all(len(row) == len(table.columns) == len(set(table.columns)) for row in table.rows)


# -- the mutants of the looks


def test_mutant_loss_and_norm_compare_the_run_with_itself():
    for id in ("4d.mystery.1", "4d.mystery.4"):
        this = trial_of(id).this
        with pytest.raises(AssertionError):
            check_shown(id, trial=Trial(this, this, this))


def test_mutant_the_ledger_compares_the_run_with_itself(monkeypatch):
    trial = trial_of("4d.mystery.3")
    done = lambda *_, rank, **__: trial.this.ledger.rank(rank).step(0).by("op", "axis", "reason")  # noqa: E731
    check_shown("4d.mystery.3")
    monkeypatch.setattr(looks, "costs", SimpleNamespace(step_ledger=done))
    with pytest.raises(AssertionError):
        check_shown("4d.mystery.3")


def test_mutant_a_rank_is_compared_with_itself(monkeypatch):
    monkeypatch.setattr(looks, "_apart", lambda a, b, name: float((a[name][1] - a[name][1]).norm()))
    with pytest.raises(AssertionError):
        check_shown("4d.mystery.7")


def test_mutant_scales_are_looked_at_on_the_second_rank_alone(monkeypatch):
    """Where the first one took the step that the second one skipped."""
    real = looks._apart_in_scale
    monkeypatch.setattr(
        looks, "_apart_in_scale", lambda of, trial: of is trial.this.ranks[1] and real(of, trial)
    )
    with pytest.raises(AssertionError):
        check_shown("precision.mystery.1")


def test_a_rank_that_decides_alone_logs_losses_that_are_divided_by_another_scale():
    """What the story tells: half in step 10, a quarter in step 11, and low since."""
    trial = trial_of("precision.mystery.1")
    ratios = [a / b for a, b in zip(trial.this.losses, trial.one.losses)]
    assert ratios[:9] == [1.0] * 9 and ratios[9] == pytest.approx(0.5, rel=0.05)
    assert trial.this.losses[8:11] == pytest.approx([3.96, 1.84, 0.87], rel=5e-3)
    assert max(ratios[10:]) < 0.55
    first, last = trial.this.ranks
    assert last.skipped == [8] and first.skipped == []


def test_half_of_the_steps_of_a_right_run_are_skipped():
    """Nine that begin it, and some later ones: just which of these, rounding has a say in."""
    trial = trial_of("precision.mystery.2")
    assert trial.this.ranks[0].skipped[:9] == list(range(9))
    assert 10 <= len(trial.this.ranks[0].skipped) <= 13


@pytest.mark.parametrize("id", [id for id, case in CASES.items() if claimed(id)])
def test_mutant_the_fault_is_not_at_work(id):
    right = trial_of(id)
    with pytest.raises(AssertionError):
        check_shown(id, trial=Trial(right.right, right.right, right.one))


# -- the answer and its score


def other_letters(case):
    return [letter for letter in case.about.letters if letter != case.about.culprit]


def check_scores():
    for number, expected in enumerate((50, 100, 90, 80, 65, 50)):
        for wrong in (0, 1, 2):
            case = fresh()
            for name in list(LOOKS)[:number]:
                case.look(name)
            for letter in other_letters(case)[:wrong]:
                answer = case.name(letter)
                assert not answer.right and not answer.closed and answer.score is None
            answer = case.name(case.about.culprit)
            assert answer.right and case.closed
            assert answer.score == case.score == max(0, expected - 25 * wrong)


def test_scores():
    check_scores()


@pytest.mark.parametrize("wrong", [lambda looks, wrong: 100 - 25 * wrong, lambda looks, wrong: 90])
def test_mutant_a_score_that_ignores_what_was_done(monkeypatch, wrong):
    monkeypatch.setattr(public, "points", wrong)
    with pytest.raises(AssertionError):
        check_scores()


@pytest.mark.parametrize("id", CASES)
def test_the_right_name_closes_and_explains_every_case(id):
    case, about = fresh(id), CASES[id]
    case.look(about.gives_away)
    answer = case.name(about.culprit.lower())
    fault = find(about.fault)
    assert answer.right and answer.score == 100
    assert about.gives_away in (*looks.TIMED, *found(case._trial)) or about.fault is None
    for part in (about.why, about.gives_away, about.seen or fault.where_seen, "100"):
        assert part in repr(answer)
    assert all(suspect.tell in repr(answer) for suspect in about.suspects)
    assert "<table>" in answer._repr_html_()


@pytest.mark.parametrize("id", CASES)
def test_every_wrong_name_is_told_why(id):
    for letter in other_letters(fresh(id)):
        case = fresh(id)
        case.look("norm")
        answer = case.name(letter)
        assert not answer.right and case.about.letters[letter].tell in repr(answer)
        assert "wrong" in repr(case.suspects)
        assert case.name(case.about.culprit).score == 75


def test_three_wrong_names_close_a_case():
    case = fresh()
    case.look("loss")
    first, second, third, *_ = other_letters(case)
    assert "2 names left" in repr(case.name(first))
    assert "1 name left" in repr(case.name(second))
    assert "costs nothing" in repr(case.name(second)) and case.wrong == [first, second]
    answer = case.name(third)
    assert not answer.right and case.closed and case.score == 0
    assert f"It was {case.about.culprit}" in repr(answer) and case.about.why in repr(answer)
    assert case.name(case.about.culprit) is answer  # too late


def test_a_guess_says_that_it_is_one_and_starts_no_run():
    case = MysteryRun(CASES["4d.mystery.1"])
    assert "guess" in repr(case.name("A"))
    answer = case.name("D")
    assert answer.score == 25 and "guess" in repr(answer) and case._trial is None


def test_a_case_trains_once_and_looks_count_once(monkeypatch, capsys):
    from picolab.exercises import mystery_runs

    asked = []

    def counted(config, fault, about):
        asked.append((str(config.layout), fault.name if fault else None))
        return record(config, fault, about)

    monkeypatch.setattr(mystery_runs, "record", counted)
    monkeypatch.setattr(public, "_open", {})
    case = mystery("4d.mystery.3")
    repr(case), repr(case.suspects)
    assert asked == []
    table = case.look("ledger")
    assert case.look("ledger") is table and case.looks == ["ledger"]
    case.look("loss")
    assert asked == [("dp2", "no-sync-forgotten"), ("dp2", None), ("dp1", None)]
    for which in ("this", "right", "one"):  # the same every time
        again, before = getattr(case._trial, which), getattr(trial_of(case.id), which)
        assert (again.losses, again.norms) == (before.losses, before.norms)
    assert mystery("4d.mystery.3") is case
    assert case.name("F").score == 90
    case.look("spans")  # free now
    assert case.looks == ["ledger", "loss"] and case.name("A").score == 90
    shown = capsys.readouterr().out
    assert "training this run, a right dp2, one process" in shown and "loss" not in shown
    rows = {row[0]: row for row in mystery().rows}
    assert rows["4d.mystery.3"][3:] == [2, 0, "closed", 90]
    assert rows["4d.mystery.1"][3:] == [0, 0, "", None]
    assert f"1 of {len(CASES)} mystery runs closed: 90 of 100 points" in mystery().title


def test_a_run_that_fails_is_no_look(monkeypatch):
    from picolab.exercises import mystery_runs

    def failing(*_):
        raise RuntimeError("a rank failed")

    case = MysteryRun(CASES["4d.mystery.1"])
    monkeypatch.setattr(mystery_runs, "record", failing)
    with pytest.raises(RuntimeError):
        case.look("loss")
    assert case.looks == []


# -- bad input


@pytest.mark.parametrize("name", ["los", "", 3, None, ["loss"]])
def test_a_look_that_does_not_exist(name):
    case = fresh()
    with pytest.raises(ValueError, match="the five are loss, norm, ledger, shards, spans"):
        case.look(name)
    assert case.looks == []


@pytest.mark.parametrize("letter", ["H", "", "AB", "micro-batches-not-scaled", 3, None, ["A"]])
def test_a_name_that_is_no_suspect(letter):
    case = fresh()
    with pytest.raises(ValueError, match="a letter from A to G"):
        case.name(letter)
    assert case.wrong == [] and not case.closed


def test_own_faults_are_taken_back():
    """A patch left behind would be at work in the next run of a rank that lives on."""
    from picolab import comm
    from picolab.comm import collectives
    from picolab.model import Block, Transformer
    from picolab.parallel import ThreeDParallelOptimizer
    from picolab.parallel.data import DataParallelOptimizer as owner
    from picolab.precision import LossScaler
    from picolab.specs import TrainConfig
    from picolab.training import precision, trainer

    watched = [(comm, "all_reduce"), (trainer, "next_batch"), (precision, "agreed")]
    watched += [(Block, "forward"), (Transformer, "loss"), (trainer, "train_step")]
    watched += [(collectives, "_irecv"), (TrainConfig, "learning_rate")]
    watched += [(ThreeDParallelOptimizer, "clip"), (ThreeDParallelOptimizer, "after_step")]
    watched += [(precision.ScaledPrecision, "unscale"), (LossScaler, "update")]
    watched += [(owner, name) for name in ("no_sync", "finish", "_fill_buckets")]
    before = [getattr(*place) for place in watched]
    for fault in OWN.values():
        with fault.applied(None):
            assert [getattr(*place) for place in watched] != before
        assert [getattr(*place) for place in watched] == before
