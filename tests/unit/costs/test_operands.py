"""What the products read, against the operands that a model's own linears are given.

Wrong versions these catch: an operand that is counted once, a head forgotten.
"""

import pytest
import torch

from picolab import costs
from picolab.model import Linear, Transformer
from picolab.specs import ModelConfig

CONFIG = ModelConfig(hidden=24, ffn=40, layers=2, heads=4, kv_heads=2, vocab=50, seq=8)


def counted(config, tokens: int) -> int:
    model, found = Transformer(config, device="cpu", seed=0), []

    def heard(linear, args, y):
        found.append(2 * (args[0].numel() + linear.weight.numel() + y.numel()))

    for module in model.modules():
        if isinstance(module, Linear):
            module.register_forward_hook(heard)
    ids = torch.zeros(tokens // config.seq, config.seq, dtype=torch.long)
    model.loss(ids, ids)
    return sum(found)


def test_all_operands_are_counted_twice():
    numbers = costs.operand_numbers(CONFIG, 32)
    assert sum(numbers.values()) == counted(CONFIG, 32)
    assert numbers["head"] == 2 * (32 * 24 + 24 * 50 + 32 * 50)
    assert sum(numbers.values()) - numbers["head"] != counted(CONFIG, 32)


def test_other_models_are_refused():
    for name in ("tiny-moe", "gpt-3-175b", "deepseek-v3"):
        with pytest.raises(ValueError, match="dense Llama decoders"):
            costs.operand_numbers(ModelConfig.preset(name), 32)
