"""Layers that the chapter counts: the one that a table in print is about, and the work of one of
ours."""

import math

import torch
import torch.nn.functional as F


def gpt_layer(
    x_BSD: torch.Tensor, weights: dict[str, torch.Tensor], heads: int, share: float = 0.1
) -> torch.Tensor:
    """A layer of GPT as arXiv 2205.05198 counts it: LayerNorm, attention whose scores are there,
    GELU, and dropout of `share` of the scores and of both branches. weights: qkv, o, up, down.

    `F.dropout` keeps a mask in the dtype of its input on a CPU; `native_dropout`, which is what it
    is on a GPU, one of a byte a number.
    """
    b, s, h = x_BSD.shape

    def drop(t: torch.Tensor) -> torch.Tensor:
        return torch.native_dropout(t, share, True)[0]

    y = F.layer_norm(x_BSD, (h,)) @ weights["qkv"]
    q, k, v = y.view(b, s, 3, heads, h // heads).permute(2, 0, 3, 1, 4).unbind()
    scores = (q @ k.mT / math.sqrt(h // heads)).softmax(-1)
    result = (drop(scores) @ v).transpose(1, 2).reshape(b, s, h)
    x_BSD = x_BSD + drop(result @ weights["o"])
    y = F.gelu(F.layer_norm(x_BSD, (h,)) @ weights["up"])
    return x_BSD + drop(y @ weights["down"])


def product_work(config, run_block) -> int:
    """Operations of the matrix products of a model's first block, forward and backward, run in
    this way."""
    from torch.utils.flop_counter import FlopCounterMode

    from picolab.model import Transformer

    model = Transformer(config, device="cpu", seed=0)
    x = torch.randn(4, config.seq, config.hidden, requires_grad=True)
    tables = model.rotary(config.seq, x.device, x.dtype)
    with FlopCounterMode(display=False) as counted:
        run_block(model.layers[0], x, tables).sum().backward()
    return counted.get_flop_counts()["Global"][torch.ops.aten.mm]
