"""What a layer of experts costs, as ratios within one run.

    python tests/benchmarks/moe.py

1. Against the matrix products alone: forward and backward of the layer, over those of one dense
   product for each of its matrices with as many rows. What is above 1 is routing, sorting, and
   products that are smaller.
2. Against transformers' Mixtral and Qwen3-MoE blocks, at the same shapes and with the same weights
   in number.

Turns are taken in short rounds, and the median of the rounds' ratios is printed: a machine that is
slow for a while is slow for both.
"""

import statistics
import sys
import time

import torch

from picolab.model import initialise
from picolab.moe import ExpertLayer
from picolab.specs import ModelConfig

ROUNDS = 9
SHAPES = {
    "Mixtral": dict(hidden=256, expert_ffn=896, experts=8, experts_per_token=2),
    "Qwen3Moe": dict(hidden=256, expert_ffn=192, experts=32, experts_per_token=8),
}


def config_of(shape: dict) -> ModelConfig:
    return ModelConfig(
        ffn=shape["expert_ffn"], layers=1, heads=4, kv_heads=4, vocab=256, seq=512, **shape
    )


def seconds(work) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def ratio(one, other) -> float:
    one(), other()
    return statistics.median(seconds(one) / seconds(other) for _ in range(ROUNDS))


def trained(module, x):
    def work():
        for parameter in module.parameters():
            parameter.grad = None
        out = module(x)
        out = out[0] if isinstance(out, tuple) else out
        out.backward(torch.ones_like(out))

    return work


def dense(shape: dict, tokens: int):
    """The products of the active experts, as if one expert had all rows: three forward, six
    backward."""
    rows, size, ffn = tokens * shape["experts_per_token"], shape["hidden"], shape["expert_ffn"]
    x, h = torch.randn(rows, size), torch.randn(rows, ffn)
    both, down = torch.randn(2 * ffn, size), torch.randn(size, ffn)
    d_both, d_out = torch.randn(rows, 2 * ffn), torch.randn(rows, size)

    def work():
        x @ both.T, h @ down.T
        d_out @ down, d_out.T @ h
        d_both @ both, d_both.T @ x

    return work


def theirs(name: str, shape: dict):
    import transformers

    common = dict(
        hidden_size=shape["hidden"], num_experts_per_tok=shape["experts_per_token"],
        num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4, vocab_size=256,
    )  # fmt: skip
    if name == "Mixtral":
        config = transformers.MixtralConfig(
            intermediate_size=shape["expert_ffn"], num_local_experts=shape["experts"], **common
        )
    else:
        config = transformers.Qwen3MoeConfig(
            moe_intermediate_size=shape["expert_ffn"], num_experts=shape["experts"],
            norm_topk_prob=True, **common,
        )  # fmt: skip
    return getattr(transformers, f"{name}ForCausalLM")(config).model.layers[0].mlp


def main() -> None:
    torch.set_num_threads(1)
    for name, shape in SHAPES.items():
        layer = initialise(ExpertLayer(config_of(shape), 0), seed=0)
        for rows in (128, 512):
            tokens = rows * shape["experts"] // shape["experts_per_token"]
            x = torch.randn(1, tokens, shape["hidden"])
            over = ratio(trained(layer, x), dense(shape, tokens))
            line = f"{name}: {rows} tokens an expert: {over:.2f} x the dense products"
            if "--alone" not in sys.argv:
                line += f", {ratio(trained(layer, x), trained(theirs(name, shape), x)):.2f} x "
                line += "transformers' block"
            print(line, flush=True)


if __name__ == "__main__":
    main()
