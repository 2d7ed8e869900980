"""A question bank comes from somebody: whatever it says, it runs no code and takes no time.

Each attack is refused within a second of processor time, with one sentence that names the question
and the expression. The wrong versions stand at the end: an `eval` over modules (which ran
`schedules.ir.re.enum.sys.modules["os"].system(...)`), a walk without one of its bounds, a loader
that follows aliases.
"""

import os
import time

import pytest

from picolab.interview import allowed, expressions, values
from picolab.interview.bank import BankError, Question, load
from picolab.interview.lint import lint
from picolab.show import yaml_file

CONFIG = 'ModelConfig.preset("tiny")'

WALKS = [  # to another object than the one on the list
    'schedules.ir.re.enum.sys.modules["os"].system("id")',
    'costs.ledger.even_slices.__globals__["__builtins__"]["eval"]("1")',
    "costs.parameters.__globals__",
    "costs.parameters.__wrapped__",
    "costs",
    "schedules.ir",
    "().__class__.__mro__[1].__subclasses__()",
    "().__class__",
    "(1).real.__class__",
    f"{CONFIG}.__class__.__init__.__globals__",
    f"{CONFIG}.__dict__",
    f"{CONFIG}.replace.__func__",
    f"{CONFIG}.presets()",
    f"{CONFIG}.name.format",
    'Layout.parse("dp2").parse.__func__',
    'Layout.parse("dp2").check',
    'schedules.simulate(schedules.make("1f1b", 2, 2)).schedule',
    "costs.BYTES_16_BF16.copy()",
    "costs.BYTES_16_BF16.get",
    "'{0.__class__}'.format(1)",
    "'a'.join(['b'])",
    "f'{costs}'",
    "(lambda: 1)()",
    "(x := costs.parameters)",
    "[].append",
    "max(*[1, 2])",
    "max([1, 2], key=abs)",
    "sum([[1]], [])",
    "min",
    "[f for f in [max]]",
    "getattr(costs, 'ledger')",
    "__import__('os')",
    "open('/etc/passwd')",
    "[c for c in ().__class__.__bases__]",
    "yield 1",
    "(await costs)",
    "{**costs.BYTES_16_BF16}",
    "x.__class__ if x else 1",
    "pico.launch.run",
    "pico.costs._check",
]

BOMBS = [  # for memory or time
    "9**9**9",
    "9**9**9**9",
    "2 ** 10 ** 9",
    "10 ** 100000 % 7",
    "(10 ** 300) ** 300",
    "-9**9**9",
    "[0] * 10**9",
    "[0] * 10**9 * 10**9",
    "([1] * 9999) + ([1] * 9999)",
    "'x' * 10**9",
    "('x',) * 10**9",
    "'%2000000000d' % 1",
    "'x' + 'x'",
    "1 << 10**10",
    "sum(1 for a in [1] * 9999 for b in [1] * 9999 for c in [1] * 9999)",
    "len([[0 for b in [1] * 9999] for a in [1] * 9999])",
    "[(t, t) for t in [(t, t) for t in [(t, t) for t in [1]]]]",
    "round(5, -10**9)",
    "round(0.5, 10**9)",
    "sum(range(10**12))",
    "len(costs.even_slices(10**9, 10**9))",
    "len(costs.stage_layers(10**9, 10**9))",
    'schedules.make("gpipe", 10**5, 10**5).ranks',
    f"costs.parameters({CONFIG}.replace(layers=10**9)).total",
    f"{CONFIG}.replace(hidden=2**89 - 1, heads=10**18).heads",
    "Layout(dp=10**9).grid()[0]",
    'Layout.parse("dp1000000").grid()[0]',
    'Layout.parse("dp" + "9")',
    f'costs.step_ledger({CONFIG}, "dp720720sp", micro_batch=1)',
    f'costs.step_ledger({CONFIG}, "dp1", micro_batch=1, accumulate=10**9)',
    f'len(costs.step_ledger({CONFIG}, layout="dp900000000", micro_batch=1))',
    "(" * 400 + "1" + ")" * 400,
    "-" * 900 + "1",
    "[" * 90 + "]" * 90,
    "1" + " + 1" * 5000,
    "9" * 999 + " * 1",
    "1 if " * 150 + "1" + " else 1" * 150,
    "\0",
]


def refused(make, *names: str) -> str:
    """The sentence, which names these; and it came soon, on a slow machine too."""
    before = time.thread_time()
    with pytest.raises(ValueError) as error:
        make()
    assert time.thread_time() - before < 5
    said = str(error.value)
    assert "\n" not in said and len(said) < 2000
    for name in names:
        assert name in said
    return said


def question(make, **changes) -> Question:
    return Question.model_validate(make.question(1, **changes))


@pytest.mark.parametrize("attack", [*WALKS, *BOMBS], ids=lambda text: text[:50])
def test_an_expression_runs_nothing_and_takes_no_time(attack, make):
    asked = question(make, values={"x": 3, "total": attack})
    refused(asked.computed, "s-001", repr(attack)[:60])


def test_what_is_slow_within_the_sizes_ends_all_the_same(make, monkeypatch):
    monkeypatch.setattr(expressions, "SECONDS", 0.1)
    slow = 'sum(schedules.make("1f1b", 32, 128).ranks for i in [1] * 2000)'
    refused(question(make, values={"total": slow}).computed, "takes too long", "s-001")


@pytest.mark.parametrize(
    "text",
    [
        "{{total.__class__}}",
        "{{total:>2000000000}}",
        "{{total:2000000000}}",
        "{{total:02000000000d}}",
        "{{total:.2000000000f}}",
        "{{total:.999f}}",
        "{{total!r}}",
        "{{total[0]}}",
        "{{total:{p}}}",
        "{{__import__('os')}}",
        "{{total",
    ],
)
def test_a_placeholder_formats_a_number_and_no_more(text, make):
    asked = question(make, question=f"How much is {text} of it?")
    refused(asked.rendered, "s-001", text[:7])


@pytest.mark.parametrize(
    "bomb",
    ["{{" * 4000, "`" * 9001, "1," * 4000, "{{a" + " " * 9000, "```" * 3000 + "``", "#" * 9999],
    ids=lambda text: text[:4],
)
def test_no_text_is_a_bomb_for_what_searches_it(bomb, bank_files, make):
    """Many openings and no end: what goes back over the rest of the text each time takes long."""
    folder = bank_files(make.question(1, answer=bomb, title=bomb[:2000])).write()
    before = time.process_time()
    assert lint(folder, counts=make.counts)
    assert time.process_time() - before < 5


def test_a_text_has_an_end(make):
    with pytest.raises(ValueError, match="at most 10000 characters"):
        question(make, question="x" * 100_000)
    with pytest.raises(ValueError, match="at most 100"):
        question(make, values={f"v{i}": 1 for i in range(1000)})


LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(12)
)


@pytest.mark.parametrize(
    "text, says",
    [
        (LAUGHS, "an alias; write it out"),
        ("topic: &t x\nmore: *t\n", "an alias; write it out"),
        ("a: &a [*a]\n", "an alias"),
        ("topic: !!python/object/apply:os.system [id]\n", "could not determine a constructor"),
        ("topic: !!python/name:os.system\n", "could not determine a constructor"),
        ("topic: !evil x\n", "could not determine a constructor"),
        ("[" * 5000, "more than 20 levels"),
        ("{a: " * 5000, "more than 20 levels"),
        ("- " * 5000, "more than 20 levels"),
        ("a: " + "9" * 5000, "a number or a date that is none"),
        ("a: 2001-13-45", "a number or a date that is none"),
        ("? [a]\n: b\n", "unhashable"),
        ("a: \0", "special characters"),
        ("x" * 4_000_001, "larger than 4,000,000 bytes"),
    ],
    ids=lambda text: text[:20],
)
def test_a_file_is_bounded(text, says, tmp_path):
    (tmp_path / "evil.yaml").write_text(text)
    load.cache_clear()
    refused(lambda: load(tmp_path), "evil.yaml", says)
    assert any(says in finding.what for finding in lint(tmp_path))


def test_the_lint_names_question_and_expression_of_an_attack(bank_files, make):
    attack = 'schedules.ir.re.enum.sys.modules["os"].system("id")'
    files = bank_files(make.question(1))
    files.questions[0]["values"]["total"] = attack
    files.questions[0]["question"] += " {{total:>2000000000}}"
    files.questions[0]["numeric"][0]["wrong"][0]["value"] = "9**9**9"
    told = [finding.what for finding in lint(files.write(), counts=make.counts)]
    assert any(what.startswith(f"s-001: {attack!r}: there is no 'schedules.ir") for what in told)


def test_every_function_on_the_list_is_one_that_computes():
    """No module, no class but Layout, and no function from elsewhere."""
    for name, found in allowed.names().items():
        assert not isinstance(found, type(os)), name
        if callable(found):
            home = getattr(found, "__module__", "")
            rooms = ("picolab.costs", "picolab.schedules", "picolab.planner", "picolab.specs")
            assert home.startswith(rooms) or name in allowed.PLAIN, name


# --- the wrong versions ---------------------------------------------------------------------------


def test_an_eval_over_modules_is_noticed(make, monkeypatch):
    """The version that was there: attributes without an underscore lead to every module."""
    from picolab import costs, schedules

    def over_modules(text, known):
        return eval(text, {"__builtins__": {}, "costs": costs, "schedules": schedules, **known})

    monkeypatch.setattr(values, "work_out", over_modules)
    attack = 'schedules.ir.re.enum.sys.modules["os"].sep'
    with pytest.raises(AssertionError):
        refused(question(make, values={"total": attack}).computed, "there is no")


@pytest.mark.parametrize(
    "bound, attack",
    [
        ("BITS", "9 ** 99999 % 7"),
        ("ITEMS", "len([0] * 10**6)"),
        ("LAYERS", f"{CONFIG}.replace(layers=300).layers"),
        ("STEPS", "sum(1 for a in [1] * 300 for b in [1] * 300)"),
        ("DEEPEST", "-" * 70 + "1"),
        ("LONGEST", "1" + " " * 1000),
    ],
)
def test_a_walk_without_a_bound_is_noticed(bound, attack, make, monkeypatch):
    asked = question(make, values={"total": attack})
    refused(asked.computed)
    monkeypatch.setattr(expressions, bound, 10**7)
    monkeypatch.setitem(allowed.MOST, "ModelConfig.replace", {})
    with pytest.raises(pytest.fail.Exception):
        refused(asked.computed)


def test_a_loader_that_follows_aliases_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(yaml_file._Bounded, "compose_node", lambda self, *a: None)
    monkeypatch.delattr(yaml_file._Bounded, "compose_node")
    (tmp_path / "evil.yaml").write_text("a: &a [x]\nb: *a\n")
    _, data = yaml_file.read(tmp_path / "evil.yaml")
    assert data == {"a": ["x"], "b": ["x"]}
    with pytest.raises(BankError, match="topic"):
        load(tmp_path)
