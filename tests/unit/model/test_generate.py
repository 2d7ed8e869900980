"""Generated text follows the model, the seed and the temperature.

The wrong versions this file catches: a window that is longer than the model's sequence, sampling
from the global generator, a temperature that is ignored.
"""

import pytest
import torch

from picolab.model import Transformer, generate
from picolab.specs import ModelConfig

CONFIG = ModelConfig(hidden=16, ffn=16, layers=1, heads=2, kv_heads=1, vocab=256, seq=8)


@pytest.fixture(scope="module")
def model():
    """A model that writes the alphabet: a few steps on one line of text."""
    model = Transformer(CONFIG, device="cpu")
    text = torch.tensor(list(b"abcdefgh"))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        model.loss(text[None, :-1], text[None, 1:]).backward()
        optimizer.step()
    return model


def test_it_writes_what_it_learned(model):
    assert generate(model, "a", 7, temperature=0) == "abcdefgh"
    assert generate(model, b"ab", 6, temperature=0) == b"abcdefgh"
    assert generate(model, [97], 2, temperature=0) == [97, 98, 99]


def test_the_seed_decides(model):
    torch.manual_seed(1)
    first = generate(model, "a", 30, temperature=5.0, seed=3)
    torch.manual_seed(2)
    assert generate(model, "a", 30, temperature=5.0, seed=3) == first
    assert generate(model, "a", 30, temperature=5.0, seed=4) != first


def test_only_the_last_tokens_are_seen(model):
    """Beyond seq the window slides: what lies before it cannot matter."""
    long = [1, 2, 3, *b"abcdefgh"]
    assert (
        generate(model, long, 1, temperature=0)[-1]
        == generate(model, long[-8:], 1, temperature=0)[-1]
    )
    assert len(generate(model, long, 20)) == len(long) + 20


def test_bad_input_gets_a_sentence(model):
    with pytest.raises(ValueError, match="the prompt is empty"):
        generate(model, "")
    with pytest.raises(ValueError, match="temperature should be 0 or more"):
        generate(model, "a", temperature=-1)
    with pytest.raises(ValueError, match="outside the vocabulary of 256"):
        generate(model, [256])
    with pytest.raises(ValueError, match="cannot write bytes"):
        generate(Transformer(CONFIG.replace(vocab=300), device="cpu"), "a", 1)
