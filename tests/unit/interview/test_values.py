"""The numbers of a question: expressions over the package's formulas, and nothing else.

Catches an expression that reaches beyond its list (an import, a private name, a lambda), one that
yields no finite number, a value that uses one defined below it, and a placeholder that is left in
the text or filled with something else.
"""

import math

import pytest

from picolab import costs
from picolab.interview.values import evaluate, evaluate_all, render
from picolab.specs import ModelConfig


@pytest.mark.parametrize(
    "expression, value",
    [
        (3, 3),
        (2.5, 2.5),
        ("2 ** 10 - 24", 1000),
        ("100 * costs.bubble_of_total(8, 32)", 100 * 7 / 39),
        ("costs.ring_bytes('all_reduce', 1e9, n=8)", 1.75e9),
        ("ModelConfig.preset('tiny').layers", ModelConfig.preset("tiny").layers),
        ("Layout.parse('dp2tp2').world", 4),
        ("Layout(dp=2, tp=4).world // 3", 2),
        ("costs.parameters(ModelConfig.preset('llama-3-8b')).total / 1e9", 8.030261248),
        ("max(1, 2) + min(3, 4) + ceil(0.5) + floor(1.5) + round(2.4) + abs(-1)", 10),
        ("sum(i * i for i in [1, 2, 3]) + len([1, 2]) + log2(8) + sqrt(9)", 22),
        ("1 if 3 > 2 and 2 >= 2 else 0", 1),
        ("  7 % 4  ", 3),
    ],
)
def test_what_an_expression_may_say(expression, value):
    assert evaluate(expression) == pytest.approx(value, rel=1e-12)


def test_the_formula_is_the_packages_own():
    """Mutant: a number typed in its place would not follow the formula."""
    for p, m in ((2, 2), (8, 32), (16, 5)):
        assert evaluate("costs.bubble_of_ideal(p, m)", {"p": p, "m": m}) == costs.bubble_of_ideal(
            p, m
        )


@pytest.mark.parametrize(
    "expression, says",
    [
        ("import os", "is not an expression"),
        ("x = 3", "is not an expression"),
        ("", "is not an expression"),
        ("__import__('os')", "there is no '__import__'"),
        ("open('x')", "there is no 'open'; known are Hardware.preset, Layout"),
        ("eval('1')", "there is no 'eval'"),
        ("costs.__builtins__", "__builtins__ is private"),
        ("().__class__.__bases__", "is private"),
        ("costs._check", "_check is private"),
        ("(lambda: 1)()", "Lambda is not allowed"),
        ("(x := 3)", "NamedExpr is not allowed"),
        ("f'{1}'", "JoinedStr is not allowed"),
        ("{i for i in (1, 2)}", "is not allowed"),
        ("totl * 2", "there is no 'totl'"),
        ("1 / 0", "divides by zero"),
        ("costs.bubble_of_total(0, 1)", "fails: stages: a whole number from 1, not 0"),
        ("costs.no_such", "there is no 'costs.no_such'"),
        ("'3'", "a finite number is needed"),
        ("costs.bubble_of_total", "a finite number is needed"),
        ("2 > 1", "a finite number is needed"),
        ("1e308 * 10", "a finite number is needed"),
        ("10 ** 400", "a finite number is needed"),
        ("(-8) ** 0.5", "a finite number is needed"),
        (math.inf, "a finite number is needed"),
        (math.nan, "a finite number is needed"),
        (True, "a finite number is needed"),
    ],
)
def test_what_it_may_not(expression, says):
    with pytest.raises(ValueError) as refused:
        evaluate(expression)
    assert says in str(refused.value) and repr(expression)[:20] in str(refused.value)


def test_a_value_may_use_those_above_it():
    assert evaluate_all({"p": 8, "idle": "p - 1", "twice": "2 * idle"}) == {
        "p": 8,
        "idle": 7,
        "twice": 14,
    }
    with pytest.raises(ValueError, match="there is no 'idle'"):
        evaluate_all({"twice": "2 * idle", "idle": 7})


def test_rendering():
    values = {"share": 17.948717, "n": 4096, "big": 123456.7}
    text = "{{share:.1f}} % of {{n}}, {{ share }} and {{n:.2e}}; {{big}}; { {n} }"
    assert render(text, values) == "17.9 % of 4,096, 17.95 and 4.10e+03; 123,457; { {n} }"
    assert render("nothing", {}) == "nothing"


def test_an_unknown_placeholder_is_told_with_those_that_are_there():
    with pytest.raises(ValueError, match=r"\{\{m\}\} is not among the values .* \(p, n\)"):
        render("{{m}}", {"p": 1, "n": 2})
    with pytest.raises(ValueError, match="none"):
        render("{{m}}", {})
    with pytest.raises(ValueError, match="format"):
        render("{{m:d}}", {"m": 2.5})
