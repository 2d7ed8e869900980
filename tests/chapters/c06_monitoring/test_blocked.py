"""What the package has of an exercise refuses to do it, and shows itself after a try.

Here by two answers that hand on to it: an alert manager with the learner's rules, and the package's
own blame. Kept as a mutant: an exercise that blocks nothing lets either run.
"""

from dataclasses import replace

import pytest

from picolab.exercises.catalogue import find
from picolab.exercises.check import judged
from picolab.exercises.record import has_tried
from picolab.lab.package_source import source
from picolab.monitoring import blame
from picolab.monitoring.alert_rules import Duration, Hit, Rule
from picolab.monitoring.alerts import AlertManager
from picolab.monitoring.beacon import Reading


def a_manager(steps, hold, quiet, hides):
    names = sorted({name for true in steps for name, _ in true} | {*hides})
    rules = [
        Rule(
            name,
            metric="loss",
            above=0.0,
            held=Duration(hold, hold),
            quiet=Duration(quiet, quiet),
            hides_same_rank=tuple(of for of in hides.get(name, ()) if of in names),
        )
        for name in names
    ]
    alerts = AlertManager(rules=rules)
    found = []
    for step, true in enumerate(steps):
        made = alerts.observe({key: Hit(None, "") for key in true}, step, float(step))
        found += [
            (step, t.state, t.name, t.rank) for t in made if t.state in ("firing", "resolved")
        ]
    return found


def the_blame(groups, entered, inside):
    readings = {rank: Reading(1, 1 - (call is not None), "", 1) for rank, call in inside.items()}
    return list(blame.of_hang(readings).suspects)


ANSWERS = [("monitoring.alerts.inhibit", a_manager), ("monitoring.hang.who_waits", the_blame)]


def is_refused(exercise, answer) -> bool:
    return "is what this exercise asks you to write" in judged(exercise, answer).text


@pytest.mark.parametrize("name, answer", ANSWERS)
def test_the_packages_own_refuses(name, answer):
    assert is_refused(find(name), answer)


@pytest.mark.parametrize("name, answer", ANSWERS)
def test_mutant_nothing_is_blocked(name, answer):
    assert not is_refused(replace(find(name), blocked=()), answer)


@pytest.mark.parametrize(
    "name",
    [
        "picolab.monitoring.alerts.AlertManager._hidden",
        "picolab.monitoring.alerts.AlertManager",  # the class has it
        "picolab.monitoring.blame.awaits",
        "picolab.monitoring.who_waits",  # and the file
    ],
)
def test_its_source_is_covered(name):
    shown = source(name)
    assert shown.covered_by and not has_tried(shown.covered_by) and "def " not in repr(shown)
