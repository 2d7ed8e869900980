"""`pico.source`: the text that runs, where it stands, and nothing that an exercise asks for first.

Wrong versions these tests catch (mutants below): a first line that leaves the decorator out, a text
that is not the running function's, a solution that is shown before it was tried, a covered method
that is shown with its class.
"""

import importlib
import inspect
import subprocess
import sys
import textwrap

import pytest

from picolab.chapters import all_chapters
from picolab.exercises import record
from picolab.lab import package_source
from picolab.lab.package_source import source


@pytest.fixture(autouse=True)
def nothing_tried(monkeypatch):
    monkeypatch.setattr(record, "has_tried", lambda exercise: False)


NAMES = [
    "picolab.parallel.tensor_comm.g",
    "picolab.parallel.tensor_comm._G",
    "picolab.parallel.tensor_comm._G.backward",  # a static method, twice decorated
    "picolab.costs.collectives.ring_bytes",
    "picolab.parallel.ring._RingAttention.forward",
    "picolab.specs.layout.Layout",
]


def check_text(source, name):
    thing = importlib.import_module(".".join(name.split(".")[:3]))
    for part in name.split(".")[3:]:
        thing = inspect.getattr_static(thing, part)
    thing = getattr(thing, "__func__", thing)
    lines, start = inspect.getsourcelines(inspect.unwrap(thing))
    shown = source(name, now=True)
    assert shown.text == textwrap.dedent("".join(lines)).rstrip()
    assert shown.line == start and f"picolab/{'/'.join(name.split('.')[1:3])}.py" == shown.path


@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_text_that_runs(name):
    check_text(source, name)


def test_a_text_without_its_decorators_is_noticed(monkeypatch):
    real = package_source._within

    def mutant(*arguments):
        found = real(*arguments)
        lines = found.text.split("\n")
        at = next(i for i, line in enumerate(lines) if line.startswith(("def", "class")))
        return found._replace(line=found.line + at, text="\n".join(lines[at:]))

    monkeypatch.setattr(package_source, "_within", mutant)
    with pytest.raises(AssertionError):
        check_text(source, "picolab.parallel.tensor_comm._G.backward")


def test_a_name_that_is_handed_on_leads_to_where_it_is_written():
    pytest.importorskip("torch")
    from picolab.parallel import g

    assert source("picolab.parallel.g").where == source("picolab.parallel.tensor_comm.g").where
    assert source(g).where == source("picolab.parallel.g").where
    assert source("picolab.parallel.ring", now=True).line == 1


def check_covered(source):
    for name in (
        "picolab.parallel.ring.merge",
        "picolab.parallel.ring",  # the file it stands in
        "picolab.parallel.ring._RingAttention",  # its backward is an exercise
        "picolab.parallel.sequence_split.split_sequence",
        "picolab.schedules.generators.one_f_one_b",
    ):
        shown = source(name)
        text = repr(shown) + shown._repr_markdown_()
        assert "def " not in text and "asks you to write this" in text and shown.path in text


def test_what_an_exercise_asks_for_is_covered_until_it_was_tried(monkeypatch):
    check_covered(source)
    assert "def merge" in repr(source("picolab.parallel.ring.merge", now=True))
    monkeypatch.setattr(record, "has_tried", lambda exercise: exercise == "4d.cp.merge")
    assert "def merge" in source("picolab.parallel.ring.merge")._repr_markdown_()
    assert "def backward" not in repr(source("picolab.parallel.ring._RingAttention"))


def test_a_solution_that_is_shown_first_is_noticed():
    with pytest.raises(AssertionError):
        check_covered(lambda name: source(name, now=True))


def test_a_covered_method_shown_with_its_class_is_noticed(monkeypatch):
    def mutant(name):
        of = [c.covered[name] for c in all_chapters() if name in c.covered]
        return of[0] if of else None

    monkeypatch.setattr(package_source, "_asked_by", mutant)
    with pytest.raises(AssertionError):
        check_covered(source)


@pytest.mark.parametrize("chapter", all_chapters(), ids=lambda chapter: chapter.notebook)
def test_what_is_covered_is_there(chapter):
    for name, exercise in chapter.covered.items():
        assert exercise in chapter.exercises and source(name).covered_by


# Blocked in an exercise since it would do the work, but it does not tell how: it hands on to an
# autograd function, or does the same by other means.
TELLS_NOTHING = {
    "picolab.moe.dispatch.ExpertCommunication.dispatch",
    "picolab.parallel.data.naive_sync",
    "picolab.parallel.gathered.gathered_attention",
    "picolab.parallel.ring.ring_attention",
    "picolab.parallel.tensor_comm.g",
    "picolab.parallel.tensor_comm.g_",
    "picolab.parallel.tensor_comm.scatter_sum",
    "picolab.parallel.ulysses.ulysses_attention",
}


@pytest.mark.parametrize("chapter", all_chapters(), ids=lambda chapter: chapter.notebook)
def test_what_cannot_be_handed_in_is_not_shown_either(chapter):
    pytest.importorskip("torch")
    from picolab.exercises.catalogue import find, ids

    for exercise in ids(chapter.key):
        for name in set(find(exercise).blocked) - TELLS_NOTHING:
            if not name.startswith("picolab."):
                continue  # of torch, which `source` does not show
            assert source(name).covered_by, f"{name}: {exercise} asks for it, and source shows it"


@pytest.mark.parametrize(
    "name, says",
    [
        ("picolab.parallel.ring.ring_atention", "did you mean 'ring_attention'"),
        ("picolab.paralel.ring", "did you mean 'parallel'"),
        ("picolab.specs.layout.Layout.chek", "did you mean 'check'"),
        ("picolab.costs.zzz", "there are "),
        ("torch.nn.Linear", "begins with 'picolab.'"),
        (3, "not a int"),
    ],
)
def test_a_wrong_name_is_told_the_nearest(name, says):
    with pytest.raises(ValueError, match=says):
        source(name)


def test_in_a_terminal_it_is_highlighted(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = repr(source("picolab.parallel.tensor_comm.g"))
    assert "\x1b[" in shown and "tensor_comm.py" in shown


def test_it_takes_no_torch():
    code = "import picolab as pico; pico.source('picolab.parallel.tensor_comm.g'); import sys\n"
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
