"""The layer of experts: a router, many small feed-forwards of which a token passes a few, and,
if the model has them, shared ones that every token passes.

    y = sum over the experts e that token x goes to of  weight[x, e] * expert_e(x),  + shared(x)

All experts of a layer are one parameter of shape (E, ...), and are computed together: tokens are
sorted by expert, and each run of rows meets its own matrix. That product is `grouped_linear`, with
a loop as its plain version. An expert without tokens has no rows, and a gradient of zeros (not
None: replicas wait for it).

    x --> router --> weights
    x --> rows sorted by expert --> [dispatch] --> experts --> [back] --> * weight, added up --> y
          shared experts are computed while rows travel

Letters in names: A rows, one for each (token, expert) that was admitted; D hidden, F ffn of an
expert; I, O inputs and outputs of a matrix. Source: arXiv 1701.06538, 2401.06066 (shared experts),
2211.15841 (grouped products in place of padding). Twin in torch: `torch._grouped_mm`. Leaves out:
biases.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from picolab.costs.parameters import has_experts
from picolab.model import Piece, SwiGLU, meta_parameter
from picolab.moe.balance import attach
from picolab.moe.dispatch import ExpertCommunication
from picolab.moe.router import Router
from picolab.specs import ModelConfig


def feed_forward(config: ModelConfig, layer: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    """What a block's second half is in this model: what `Transformer` takes as its factory."""
    if has_experts(config, layer):
        return ExpertLayer(config, layer, dtype)
    return SwiGLU(config, layer, dtype)


class SwiGLUExperts(nn.Module):
    """rows (A, D), sorted by expert, and how many rows each has -> (A, D).

    gate and up are one matrix of (E, 2, F, D); down is (E, D, F).
    """

    # The dims of the parameters that tensor parallelism cuts: F, as in any feed-forward.
    cut_by_tp: ClassVar = {"gate_up": 2, "down": 2}

    def __init__(self, config: ModelConfig, layer: int, dtype: torch.dtype = torch.float32):
        super().__init__()
        name, size, ffn = f"layers.{layer}.mlp.experts", config.hidden, config.expert_ffn
        gate_up, down = (config.experts, 2, ffn, size), (config.experts, size, ffn)
        std = (ffn * 2 * config.layers) ** -0.5
        self.gate_up = meta_parameter(
            (Piece(f"{name}.gate_up.weight", gate_up, std=size**-0.5),), dtype
        )
        self.down = meta_parameter((Piece(f"{name}.down.weight", down, std=std),), dtype)
        # Replaced by a precision.
        self.product: Callable[..., torch.Tensor] = grouped_linear

    def forward(self, x_AD: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        both = self.product(x_AD, rows, self.gate_up.flatten(1, 2))
        gate_AF, up_AF = both.chunk(2, dim=-1)
        return self.product(F.silu(gate_AF) * up_AF, rows, self.down)


Experts = Callable[[ModelConfig, int, torch.dtype], nn.Module]


class ExpertLayer(nn.Module):
    """x (B, S, D) -> (B, S, D).

    experts: the networks, (config, layer, dtype) -> a module whose parameters have the experts as
    their first dim, and that is called with rows sorted by expert and the number of each one's.

    What is around the experts is replaced where ranks share the layer: `enter` and `leave` where
    they share its matrices, `communication` where they share its experts.
    """

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        dtype: torch.dtype = torch.float32,
        experts: Experts = SwiGLUExperts,
    ):
        super().__init__()
        self.config = config
        self.router = Router(config, layer, dtype)
        self.experts = experts(config, layer, dtype)
        self.shared = None
        if config.shared_experts:
            ffn = config.shared_experts * config.expert_ffn
            self.shared = SwiGLU(config, layer, dtype, part="mlp.shared", ffn=ffn)
        self.communication = ExpertCommunication(None)
        # x as experts read it, their output as the residual stream takes it, and weights.
        self.enter: Callable[[torch.Tensor], torch.Tensor] = _same
        self.leave: Callable[[torch.Tensor], torch.Tensor] = _same
        self.weights: Callable[[torch.Tensor], torch.Tensor] = _same
        # The part of the pool's balance loss in the loss of the step: 1 / pools in it.
        self.loss_share = 1.0

    @property
    def number(self) -> int:
        """Of the layer, in the whole model."""
        return self.router.number

    def forward(self, x_BSD: torch.Tensor) -> torch.Tensor:
        routed = self.router(x_BSD)
        x_BSD = self.enter(x_BSD)
        x_TD = x_BSD.flatten(0, 1)
        # Sorted by expert, and by token within each: `nonzero` goes row by row.
        expert_A, token_A = routed.admitted_TE.T.nonzero(as_tuple=True)
        rows_E = routed.admitted_TE.sum(0)
        if self.communication.slots is not None:  # some experts have copies: each row to one
            rows_E, order_A = self.communication.share_out(rows_E)
            expert_A, token_A = expert_A[order_A], token_A[order_A]
        weight_A = self.weights(routed.weights_TE[token_A, expert_A])
        travelling = self.communication.dispatch(x_TD.index_select(0, token_A), rows_E)
        out_TD = torch.zeros_like(x_TD) if self.shared is None else self.shared(x_TD)
        x_AD = travelling.arrived()
        y_AD = travelling.back(self.experts(x_AD, travelling.rows))
        out_TD = out_TD.index_add(0, token_A, y_AD * weight_A.unsqueeze(1).to(y_AD.dtype))
        out_BSD = self.leave(out_TD.view_as(x_BSD))
        return attach(out_BSD, routed.loss, self.loss_share)


def grouped_linear(x_AI: torch.Tensor, rows: Sequence[int], w_EOI: torch.Tensor) -> torch.Tensor:
    """Each expert's rows times its matrix: (A, I) -> (A, O). rows: how many each has, in order."""
    if _kernel_takes(x_AI, w_EOI):
        return _Grouped.apply(x_AI, tuple(rows), w_EOI)
    return naive_grouped_linear(x_AI, rows, w_EOI)


def naive_grouped_linear(
    x_AI: torch.Tensor, rows: Sequence[int], w_EOI: torch.Tensor
) -> torch.Tensor:
    """The same, one expert after the other."""
    parts = x_AI.split(list(rows))
    return torch.cat([F.linear(part, w) for part, w in zip(parts, w_EOI.unbind())])


def _kernel_takes(x_AI: torch.Tensor, w_EOI: torch.Tensor) -> bool:
    """torch's kernel knows no fp64, and wants rows that begin at multiples of 16 bytes."""
    widths = (w_EOI.shape[1] * x_AI.element_size(), w_EOI.shape[2] * x_AI.element_size())
    return (
        x_AI.dtype in (torch.float32, torch.bfloat16)
        and len(x_AI) > 0
        and all(width % 16 == 0 for width in widths)
    )


class _Grouped(torch.autograd.Function):
    """torch's kernel, which refuses a gradient that is an expanded view."""

    @staticmethod
    def forward(ctx, x_AI, rows, w_EOI):
        ends = torch.tensor(rows, device=x_AI.device).cumsum(0).to(torch.int32)
        ctx.save_for_backward(x_AI, w_EOI, ends)
        return torch._grouped_mm(x_AI.contiguous(), w_EOI.transpose(1, 2), offs=ends)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy_AO):
        x_AI, w_EOI, ends = ctx.saved_tensors
        dy_AO = dy_AO.contiguous()
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx = torch._grouped_mm(dy_AO, w_EOI, offs=ends)
        if ctx.needs_input_grad[2]:
            dw = torch._grouped_mm(dy_AO.T, x_AI.contiguous(), offs=ends)
        return dx, None, dw


def _same(x: torch.Tensor) -> torch.Tensor:
    return x
