"""The layers that a decoder is made of. Each declares its parameters on the meta device as named
pieces (see parameters.py).

Letters in names: B batch, S sequence, D hidden, N query heads, K key-value heads, E size of a head,
F ffn, V vocabulary.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from picolab.model.parameters import Piece, meta_parameter
from picolab.specs.model_config import Llama3Rope


class Product:
    """The three products of a linear: called, it is y = x W^T for autograd; `y`, `dx` and `dw` are
    what it consists of, for whoever differentiates by hand. A precision replaces all of them."""

    splits = False
    """Whether its backward leaves the weight's gradient for later."""

    def __call__(self, x: torch.Tensor, weight: nn.Parameter) -> torch.Tensor:
        return F.linear(x, weight)

    def y(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        """(..., in), (out, in) -> (..., out)."""
        return F.linear(x, w)

    def dx(self, dy: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        """The gradient of x: (..., out), (out, in) -> (..., in)."""
        return dy @ w

    def dw(self, dy: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The gradient of W, summed over tokens: (..., out), (..., in) -> (out, in)."""
        return dy.flatten(0, -2).T @ x.flatten(0, -2)

    def copies(self) -> list[torch.Tensor]:
        """What it keeps of the weight until the update, for whoever counts memory."""
        return []


PLAIN = Product()
"""In the dtype that x and W have."""


class Linear(nn.Module):
    """y = x W^T (+ b). W holds one matrix, or several that read the same x, stacked (q, k, v; gate,
    up); where there are biases, b holds theirs, in the same order.

    x: (..., in), y: (..., sum of the parts' outputs). `sizes` are the rows of each part held here;
    split y by them.
    """

    def __init__(
        self,
        pieces: Sequence[Piece],
        dtype: torch.dtype = torch.float32,
        biases: Sequence[Piece] = (),
    ):
        super().__init__()
        self.weight = meta_parameter(tuple(pieces), dtype)
        self.bias = meta_parameter(tuple(biases), dtype) if biases else None
        # How x W^T is computed: replaced by a precision, and by whoever splits its backward.
        self.product = PLAIN

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(piece.local_shape[0] for piece in self.weight.pieces)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.biased(self.product(x, self.weight))

    def biased(self, y: torch.Tensor) -> torch.Tensor:
        """y + b, in y's dtype: a bias that stays fp32 makes no fp32 of what is short."""
        return y if self.bias is None else (y + self.bias).to(y.dtype)


class Embedding(nn.Module):
    """Row `token` of a (V, D) matrix for each token. What it gives is the residual stream's first
    value, so its dtype is that of all that follows."""

    def __init__(self, piece: Piece, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.weight = meta_parameter((piece,), dtype)
        # Of what it gives; None: the weight's. A precision lowers it.
        self.gives: torch.dtype | None = None

    def forward(self, tokens_BS: torch.Tensor) -> torch.Tensor:
        return self.rows(tokens_BS)

    def rows(self, tokens_BS: torch.Tensor) -> torch.Tensor:
        return F.embedding(tokens_BS, self.weight).to(self.gives or self.weight.dtype)


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * w over the last dim (arXiv 1910.07467); computed in the dtype
    of w, which a precision leaves high, and given in that of x."""

    def __init__(self, name: str, size: int, eps: float, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.weight = meta_parameter((Piece(name, (size,), "ones"),), dtype)
        self.eps = eps

    def forward(self, x_BSD: torch.Tensor) -> torch.Tensor:
        x_exact = x_BSD.to(self.weight.dtype)
        return F.rms_norm(x_exact, self.weight.shape, self.weight, self.eps).to(x_BSD.dtype)


class Dropout(nn.Module):
    """x with a share p of its numbers set to zero while training, and the others divided by 1 - p
    (arXiv 1207.0580). It draws from `generator`, None for torch's own: where ranks share a model,
    it matters which of them draw the same (parallel/random_streams.py).
    """

    def __init__(self, p: float, cut_by_tp: bool = False):
        super().__init__()
        self.p, self.cut_by_tp = p, cut_by_tp
        self.generator: torch.Generator | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or not self.p:
            return x
        kept = torch.empty_like(x, requires_grad=False)
        return x * kept.bernoulli_(1 - self.p, generator=self.generator).div_(1 - self.p)


class RotaryTables(nn.Module):
    """cos and sin of position * theta^(-2i/E), with which queries and keys are rotated (RoPE, arXiv
    2104.09864).

    The tables are fp32 also where the model is bf16 (at position 2000, bf16 angles would be wrong
    by whole radians), and fp64 where it is fp64. They are computed from positions when first
    needed, once for each length; not being parameters, they are no buffers either: a buffer would
    lose its values on the way through the meta device.
    """

    def __init__(self, head_dim: int, theta: float, scaling: Llama3Rope | None = None):
        super().__init__()
        self.head_dim, self.theta, self.scaling = head_dim, theta, scaling
        self._cache: dict[tuple, tuple[torch.Tensor, torch.Tensor]] = {}

    def forward(
        self,
        length: int,
        device: torch.device,
        dtype: torch.dtype,
        positions_S: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin, each (S, 1, E). Without positions: 0 ... length-1. With them (a rank that
        holds only part of a sequence passes global positions): one position for each of the length
        tokens."""
        if positions_S is not None:
            if positions_S.shape != (length,):
                raise ValueError(
                    f"positions should be ({length},), one for each token; "
                    f"they are {tuple(positions_S.shape)}"
                )
            return self._compute(positions_S, dtype)
        key = (length, device, dtype)
        if key not in self._cache:
            self._cache[key] = self._compute(torch.arange(length, device=device), dtype)
        return self._cache[key]

    def _compute(self, positions_S: torch.Tensor, dtype: torch.dtype):
        exponents = torch.arange(
            0, self.head_dim, 2, dtype=torch.float64, device=positions_S.device
        )
        frequencies = self.theta ** (-exponents / self.head_dim)
        if self.scaling is not None:
            frequencies = stretched(frequencies, self.scaling)
        angles = torch.outer(positions_S.to(torch.float64), frequencies)
        angles = torch.cat((angles, angles), dim=-1).unsqueeze(1)
        table_dtype = torch.promote_types(dtype, torch.float32)
        return angles.cos().to(table_dtype), angles.sin().to(table_dtype)


def stretched(frequencies: torch.Tensor, scaling: Llama3Rope) -> torch.Tensor:
    """Low frequencies divided by the factor, high ones as they are, and a blend of the two."""
    turns = scaling.original_seq * frequencies / (2 * math.pi)
    kept = ((turns - scaling.low) / (scaling.high - scaling.low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / scaling.factor)


def rotate(x_BSNE: torch.Tensor, cos_S1E: torch.Tensor, sin_S1E: torch.Tensor) -> torch.Tensor:
    """Turn each pair (x[i], x[i + E/2]) by its angle. The halves are paired as in Hugging Face's
    Llama (the original code pairs neighbours; the weights of one are a permutation of the
    other's)."""
    first, second = x_BSNE.chunk(2, dim=-1)
    return (x_BSNE * cos_S1E + torch.cat((-second, first), dim=-1) * sin_S1E).to(x_BSNE.dtype)
