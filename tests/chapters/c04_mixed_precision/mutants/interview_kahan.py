"""Wrong answers to interview.precision.kahan, what each author must be told, and right ones."""

import torch

from picolab.chapters.c04_mixed_precision.interview_kahan import solution


def _moments(grad, m, v, betas):
    return (
        betas[0] * m + (1 - betas[0]) * grad,
        betas[1] * v + (1 - betas[1]) * grad.square(),
    )


def _update(m, v, step, betas, eps):
    return m / (1 - betas[0] ** step) / ((v / (1 - betas[1] ** step)).sqrt() + eps)


def _split(s):
    w = s.bfloat16()
    return w, (s - w.float()).bfloat16()


def rounds_and_forgets(w, c, grad, m, v, step, lr, betas, eps, decay):
    w, _, m, v = solution(w, torch.zeros_like(c), grad, m, v, step, lr, betas, eps, decay)
    return w, torch.zeros_like(c), m, v


def adds_c_in_bf16(w, c, grad, m, v, step, lr, betas, eps, decay):
    return solution(w + c, torch.zeros_like(c), grad, m, v, step, lr, betas, eps, decay)


def leaves_c_as_it_was(w, c, grad, m, v, step, lr, betas, eps, decay):
    w, _, m, v = solution(w, c, grad, m, v, step, lr, betas, eps, decay)
    return w, c, m, v


def adds_to_c(w, c, grad, m, v, step, lr, betas, eps, decay):
    new, rest, m, v = solution(w, c, grad, m, v, step, lr, betas, eps, decay)
    return new, c + rest, m, v


def subtracts_c(w, c, grad, m, v, step, lr, betas, eps, decay):
    return solution(w, -c, grad, m, v, step, lr, betas, eps, decay)


def keeps_minus_c(w, c, grad, m, v, step, lr, betas, eps, decay):
    w, c, m, v = solution(w, c, grad, m, v, step, lr, betas, eps, decay)
    return w, -c, m, v


def ignores_the_old_c(w, c, grad, m, v, step, lr, betas, eps, decay):
    return solution(w, torch.zeros_like(c), grad, m, v, step, lr, betas, eps, decay)


def keeps_c_in_fp32(w, c, grad, m, v, step, lr, betas, eps, decay):
    m, v = _moments(grad, m, v, betas)
    s = (w.float() + c.float()) * (1 - lr * decay) - lr * _update(m, v, step, betas, eps)
    return s.bfloat16(), s - s.bfloat16().float(), m, v


def returns_an_fp32_weight(w, c, grad, m, v, step, lr, betas, eps, decay):
    w, c, m, v = solution(w, c, grad, m, v, step, lr, betas, eps, decay)
    return w.float() + c.float(), torch.zeros_like(c), m, v


def forgets_the_decay(w, c, grad, m, v, step, lr, betas, eps, decay):
    return solution(w, c, grad, m, v, step, lr, betas, eps, 0.0)


def decays_without_lr(w, c, grad, m, v, step, lr, betas, eps, decay):
    return solution(w, c, grad, m, v, step, lr, betas, eps, decay / lr)


def decays_in_the_gradient(w, c, grad, m, v, step, lr, betas, eps, decay):
    grad = grad + decay * (w.float() + c.float())
    return solution(w, c, grad, m, v, step, lr, betas, eps, 0.0)


def never_corrects_the_bias(w, c, grad, m, v, step, lr, betas, eps, decay):
    m, v = _moments(grad, m, v, betas)
    s = (w.float() + c.float()) * (1 - lr * decay) - lr * m / (v.sqrt() + eps)
    return *_split(s), m, v


def exchanges_the_betas(w, c, grad, m, v, step, lr, betas, eps, decay):
    return solution(w, c, grad, m, v, step, lr, betas[::-1], eps, decay)


def keeps_the_corrected_mean(w, c, grad, m, v, step, lr, betas, eps, decay):
    w, c, m, v = solution(w, c, grad, m, v, step, lr, betas, eps, decay)
    return w, c, m / (1 - betas[0] ** step), v


def forgets_the_root(w, c, grad, m, v, step, lr, betas, eps, decay):
    m, v = _moments(grad, m, v, betas)
    update = m / (1 - betas[0] ** step) / (v / (1 - betas[1] ** step) + eps)
    return *_split((w.float() + c.float()) * (1 - lr * decay) - lr * update), m, v


def goes_up(w, c, grad, m, v, step, lr, betas, eps, decay):
    m, v = _moments(grad, m, v, betas)
    s = (w.float() + c.float()) * (1 - lr * decay) + lr * _update(m, v, step, betas, eps)
    return *_split(s), m, v


def takes_the_old_mean(w, c, grad, m, v, step, lr, betas, eps, decay):
    new_m, new_v = _moments(grad, m, v, betas)
    s = (w.float() + c.float()) * (1 - lr * decay) - lr * _update(m, new_v, step, betas, eps)
    return *_split(s), new_m, new_v


def keeps_moments_in_bf16(w, c, grad, m, v, step, lr, betas, eps, decay):
    w, c, m, v = solution(w, c, grad, m, v, step, lr, betas, eps, decay)
    return w, c, m.bfloat16(), v.bfloat16()


def gives_all_to_c(w, c, grad, m, v, step, lr, betas, eps, decay):
    """The weight never moves; the pair is right until c is large."""
    m, v = _moments(grad, m, v, betas)
    s = (w.float() + c.float()) * (1 - lr * decay) - lr * _update(m, v, step, betas, eps)
    return w, (s - w.float()).bfloat16(), m, v


def changes_in_place(w, c, grad, m, v, step, lr, betas, eps, decay):
    new = solution(w, c, grad, m, v, step, lr, betas, eps, decay)
    w.copy_(new[0])
    c.copy_(new[1])
    return new


def forgets_the_moments(w, c, grad, m, v, step, lr, betas, eps, decay):
    return solution(w, c, grad, m, v, step, lr, betas, eps, decay)[:2]


def rounds_the_update_first(w, c, grad, m, v, step, lr, betas, eps, decay):
    """As some optimizers have it: c plus the update in bf16, and what w did not take of it."""
    m, v = _moments(grad, m, v, betas)
    move = -lr * decay * (w.float() + c.float()) - lr * _update(m, v, step, betas, eps)
    rest = (c.float() + move).bfloat16()
    new = w + rest
    return new, (rest.float() + (w.float() - new.float())).bfloat16(), m, v


def in_fp64(w, c, grad, m, v, step, lr, betas, eps, decay):
    m = torch.lerp(m, grad, 1 - betas[0])
    v = (v * betas[1]).addcmul(grad, grad, value=1 - betas[1])
    mean, square = m.double() / (1 - betas[0] ** step), v.double() / (1 - betas[1] ** step)
    s = (w.double() + c.double()).mul(1 - lr * decay).addcdiv(mean, square.sqrt() + eps, value=-lr)
    new = s.to(torch.bfloat16)
    return new, (s - new.double()).to(torch.bfloat16), m, v


def by_torch(w, c, grad, m, v, step, lr, betas, eps, decay):
    pair = torch.nn.Parameter(w.float() + c.float())
    optimizer = torch.optim.AdamW([pair], lr=lr, betas=betas, eps=eps, weight_decay=decay)
    optimizer.state[pair] = {
        "step": torch.tensor(float(step - 1)), "exp_avg": m.clone(), "exp_avg_sq": v.clone()
    }  # fmt: skip
    pair.grad = grad.clone()
    optimizer.step()
    state = optimizer.state[pair]
    return *_split(pair.detach()), state["exp_avg"], state["exp_avg_sq"]


MUTANTS = {
    rounds_and_forgets: "what rounding takes away is lost",
    adds_c_in_bf16: "in bf16 w + c is w again",
    leaves_c_as_it_was: "what rounding takes away is lost",
    adds_to_c: "c counts twice",
    subtracts_c: "c has the wrong sign",
    keeps_minus_c: "the new c has the wrong sign",
    ignores_the_old_c: "c of the step before is not in it",
    keeps_c_in_fp32: "c is in torch.float32",
    returns_an_fp32_weight: "w is in torch.float32",
    forgets_the_decay: "the weight decay is missing",
    decays_without_lr: "not multiplied by lr",
    decays_in_the_gradient: "the moment m is wrong",
    never_corrects_the_bias: "the bias correction is missing",
    exchanges_the_betas: "the two betas are exchanged",
    keeps_the_corrected_mean: "the moment m is wrong",
    forgets_the_root: "the root of the second moment is missing",
    goes_up: "it goes up the gradient",
    takes_the_old_mean: "the old first moment was used",
    keeps_moments_in_bf16: "is in torch.bfloat16",
    rounds_the_update_first: "so digits of the update",
    gives_all_to_c: "all of the update went to c",
    changes_in_place: "it changed its input `w`",
    forgets_the_moments: "asked for is `return w, c, m, v`",
}
RIGHT = (in_fp64, by_torch)
