"""Exercise: AdamW on a bf16 weight, with what rounding took away kept beside it (mp-018).

Judged in two ways. Single steps, from states that the judge has: moments are AdamW's, the pair
w + c is what fp64 gives from the same pair, to sixteen digits, and w is the pair rounded. And a few
hundred small steps, each from what the learner's own gave back: w follows, where a bare bf16 weight
stands still.
"""

import math

import torch

from picolab.exercises.attempt import Attempt
from picolab.exercises.case import Case
from picolab.exercises.definition import Exercise

LR, BETAS, EPS, DECAY = 1e-3, (0.9, 0.95), 1e-8, 0.1
STEPS = 300
PAIR = 2.0**-14
"""Of the weight: c is a bf16 number of at most half a step of w, so the pair is good to 2^-16."""
NEAREST = 2.0**-8 * 1.05
"""Of the weight: half a step of w at most, and a little for ties."""


def my_adamw(w, c, grad, m, v, step, lr, betas, eps, decay):
    raise NotImplementedError("return w, c, m, v")


def solution(w, c, grad, m, v, step, lr, betas, eps, decay):
    m = betas[0] * m + (1 - betas[0]) * grad
    v = betas[1] * v + (1 - betas[1]) * grad.square()
    update = m / (1 - betas[0] ** step) / ((v / (1 - betas[1] ** step)).sqrt() + eps)
    pair = w.float() + c.float()
    s = pair - lr * decay * pair - lr * update
    w = s.bfloat16()
    c = (s - w.float()).bfloat16()
    return w, c, m, v


def judge(learner, attempt: Attempt) -> None:
    for about, step, lr in attempt.case.values["settings"]:
        attempt.setting(about)
        w, c, grad, m, v = _state(attempt, zero=step == 1)
        given = {
            "w": w, "c": c, "grad": grad, "m": m, "v": v, "step": step, "lr": lr, "betas": BETAS,
            "eps": EPS, "decay": DECAY,
        }  # fmt: skip
        result = attempt.call(learner, given)
        if not attempt.returned(result, "w", "c", "m", "v"):
            return
        _judge_moments(attempt, result[2:], grad, m, v)
        if not attempt.problems:
            _judge_pair(attempt, result, (w, c), (grad, m, v), step, lr)
        attempt.only()
        attempt.budget(count=0)
        if attempt.problems:
            return
    attempt.setting(f"{STEPS} steps of {LR / 10:g}, each from what the step before gave")
    _judge_long(learner, attempt)
    attempt.only()
    attempt.budget(count=0)


def _state(attempt: Attempt, zero: bool):
    """Weights of many sizes, a compensation that fits each, gradients with zeros."""
    size = 64
    w = (attempt.tensor(size) * torch.logspace(-4, 0, size)).bfloat16()
    w[:3] = torch.tensor([0.0, 1.0, -0.5])
    half = w.float().abs() * 2.0**-9
    c = (half * attempt.tensor(size).clamp(-1, 1)).bfloat16()
    grad = attempt.tensor(size, dtype=torch.float32) * 0.1
    grad[::7] = 0
    if zero:
        return w, torch.zeros_like(c), grad, torch.zeros(size), torch.zeros(size)
    m = attempt.tensor(size, dtype=torch.float32) * 0.05
    v = attempt.tensor(size, dtype=torch.float32).square() * 0.01 + 1e-4
    return w, c, grad, m, v


def _judge_moments(attempt: Attempt, got, grad, m, v) -> None:
    b1, b2 = BETAS
    for name, t, expected, mistakes in (
        ("m", got[0], b1 * m + (1 - b1) * grad, {
            "the two betas are exchanged": b2 * m + (1 - b2) * grad,
            "1 - beta is missing before the gradient": b1 * m + grad,
            "it is bias-corrected already: what is kept is the plain mean": None,
        }),
        ("v", got[1], b2 * v + (1 - b2) * grad.square(), {
            "the two betas are exchanged": b1 * v + (1 - b1) * grad.square(),
            "the gradient is not squared": b2 * v + (1 - b2) * grad,
            "1 - beta is missing before the square": b2 * v + grad.square(),
        }),
    ):  # fmt: skip
        known = {says: of for says, of in mistakes.items() if of is not None}
        attempt.equal(f"the moment {name}", t, expected, mistakes=known)


def _judge_pair(attempt: Attempt, result, pair, moments, step: int, lr: float) -> None:
    got = [one for one in result[:2]]
    for name, t in zip(("w", "c"), got):
        if not attempt.equal(f"the shape of {name}", _shape(t), _shape(pair[0])):
            return
        if not attempt.require(
            t.dtype == torch.bfloat16,
            f"{name} is in {t.dtype}; both are bf16, or nothing is saved",
        ):
            return
    w, c = (t.double() for t in got)
    expected, suspects = _steps(pair, moments, step, lr)
    if torch.equal(w, pair[0].double()):
        attempt.wrong("w is what it was: all of the update went to c, and products read w alone")
        return
    scale = expected.abs().clamp(min=1e-30)
    # (an update is rounded in fp32; a weight of 0 is the update itself)
    slack = PAIR * scale + 1e-6 * lr

    def is_(t: torch.Tensor) -> bool:
        return bool(((w + c - t).abs() <= PAIR * t.abs() + 1e-6 * lr).all())

    if not is_(expected):
        says = next((says for says, t in suspects.items() if is_(t)), None)
        worst = int(((w + c - expected).abs() / slack).argmax())
        attempt.wrong(
            f"w + c is wrong: {says}" if says else
            f"w + c is wrong: where w was {pair[0][worst].item():.6g} and c "
            f"{pair[1][worst].item():.3g} "
            f"it is {(w + c)[worst].item():.8g}, and should be {expected[worst].item():.8g}, to "
            "sixteen digits"
        )  # fmt: skip
        return
    off = (w - expected).abs() > NEAREST * scale + 1e-6 * lr
    attempt.require(
        not off.any(),
        f"w + c is right, and {int(off.sum())} of {len(w)} weights are not its nearest bf16 "
        "number: what is read by products is w alone",
    )


def _shape(t) -> torch.Tensor:
    return torch.tensor(getattr(t, "shape", ()), dtype=torch.float64)


def _steps(pair, moments, step: int, lr: float) -> tuple[torch.Tensor, dict]:
    """The pair after a step in fp64, and what known mistakes make of it."""
    w, c = (t.double() for t in pair)
    grad, m, v = (t.double() for t in moments)
    b1, b2 = BETAS
    m, v = b1 * m + (1 - b1) * grad, b2 * v + (1 - b2) * grad.square()
    corrected_m, corrected_v = m / (1 - b1**step), v / (1 - b2**step)
    update = corrected_m / (corrected_v.sqrt() + EPS)
    kept = 1 - lr * DECAY

    def low(t: torch.Tensor) -> torch.Tensor:
        return t.float().bfloat16().double()

    stepped = kept * (w + c) - lr * update
    bare = low(kept * w - lr * update)
    return stepped, {
        "what rounding takes away is lost: c is not what is missing": (low(stepped)),
        "c and the update were rounded to bf16 before they came to w, so digits of the update are "
        "lost; round the sum": w + low(c - lr * DECAY * (w + c) - lr * update),
        "c of the step before is not in it (in bf16 w + c is w again)": kept * w - lr * update,
        "nothing of c is in it, and nothing was kept": bare,
        "c has the wrong sign: it is what is missing, and is added": kept * (w - c) - lr * update,
        "the new c has the wrong sign: it is the sum minus the new w": 2 * low(stepped) - stepped,
        "c counts twice: what was in it has been added, so it is replaced": kept * (w + 2 * c)
        - lr * update,
        "the weight decay is missing": w + c - lr * update,
        "the weight decay is not multiplied by lr": (1 - DECAY) * (w + c) - lr * update,
        "the bias correction is missing": kept * (w + c) - lr * m / (v.sqrt() + EPS),
        "only the first moment is corrected for its bias": kept * (w + c)
        - lr * corrected_m / (v.sqrt() + EPS),
        "it goes up the gradient": kept * (w + c) + lr * update,
        "the root of the second moment is missing": kept * (w + c)
        - lr * corrected_m / (corrected_v + EPS),
        "it is SGD: the second moment is not used": kept * (w + c) - lr * corrected_m,
        "the old first moment was used, not the new one": kept * (w + c)
        - lr * (moments[1].double() / (1 - b1**step)) / (corrected_v.sqrt() + EPS),
    }


def _judge_long(learner, attempt: Attempt) -> None:
    """Gradients of one sign, of a size at which a bare bf16 weight stands still."""
    lr = LR / 10
    w = torch.tensor([1.0, -1.5, 0.75, -0.3, 2.5, 0.11]).bfloat16()
    state = [w, torch.zeros_like(w), torch.zeros(6), torch.zeros(6)]
    exact, m, v = w.double(), torch.zeros(6).double(), torch.zeros(6).double()
    b1, b2 = BETAS
    for step in range(1, STEPS + 1):
        grad = attempt.tensor(6, dtype=torch.float32).abs() * 0.01 + 0.01
        w, c, m32, v32 = state
        result = learner(w, c, grad, m32, v32, step, lr, BETAS, EPS, DECAY)
        state = list(result)
        m, v = b1 * m + (1 - b1) * grad.double(), b2 * v + (1 - b2) * grad.double().square()
        update = (m / (1 - b1**step)) / ((v / (1 - b2**step)).sqrt() + EPS)
        exact = (1 - lr * DECAY) * exact - lr * update
    got = state[0].double()
    size = exact.abs()
    apart = float(((got - exact).abs() / size).max())
    attempt.require(
        bool(apart <= 2 * NEAREST) and not math.isnan(apart),
        f"after {STEPS} steps w is off by {apart:.1%} of what fp64 has; half a step of bf16 is "
        f"{2.0**-8:.1%} at most. What rounding takes away has to count in the next step",
    )


EXERCISE = Exercise(
    id="interview.precision.kahan",
    goal="A step of AdamW on a weight in bf16 that has no fp32 copy. What rounding the new weight "
    "takes away is kept in `c`, a second bf16 tensor, and counts in the next step: w + c follows "
    "what fp32 would do, to about sixteen digits, and w is the nearest bf16 number to it.",
    interface="`my_adamw(w, c, grad, m, v, step, lr, betas, eps, decay)` returns the new `w, c, m, "
    "v` and changes nothing that it is given. w and c are bf16; grad, m and v fp32; step counts "
    "from 1. As in `torch.optim.AdamW`: decoupled decay `w (1 - lr decay)`, here of w + c, bias "
    "correction of both moments, eps outside of the root.",
    budget="Nothing is sent. w and c stay bf16; within the step anything may be fp32.",
    hints=(
        "After w was rounded: which number says exactly what is missing?",
        "Form the sum of w, c and the update in fp32. Round it once to w. What is left over is "
        "exact in fp32: keep it as c.",
        "`s = (w.float() + c.float()) * (1 - lr * decay) - lr * update`, `w = s.bfloat16()`, "
        "`c = (s - w.float()).bfloat16()`.",
    ),
    stub_function=my_adamw,
    solution_function=solution,
    why="w + c is a number of about sixteen digits in two of eight. The sum is formed once, in "
    "fp32, and rounded to w; the remainder is exact in fp32, since w is near it, and only its own "
    "rounding to bf16 is lost, a 256th of half a step. So updates far below half a step add up in "
    "c, until they move w. The remainder is against the weight that is stored, and c is replaced: "
    "what was in it has been added. In bf16 w + c would be w again (arXiv 2010.06192).",
    judge=judge,
    cases=(
        Case(
            "dp1",
            "",
            {
                "settings": (
                    ("the first step", 1, LR),
                    ("step 7", 7, LR),
                    ("step 1000, a small lr", 1000, LR / 100),
                )
            },
        ),
    ),
)
