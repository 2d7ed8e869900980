"""Text from a trained model, one token at a time.

    p(next) = softmax(logits of the last position / temperature)

The whole text so far goes through the model for each new token. Leaves out the key-value cache,
which would make a token cost the same however long the text is; for a few hundred tokens of a small
model it does not matter.
"""

import torch

from picolab.model.transformer import Transformer


@torch.no_grad()
def generate(
    model: Transformer,
    prompt: str | bytes | list[int],
    n: int = 200,
    *,
    temperature: float = 0.8,
    seed: int = 0,
):
    """The prompt and `n` more tokens, in the kind the prompt was: text and bytes (one token a
    byte), or a list of tokens.

    temperature 0 takes the most likely token each time. Beyond the model's `seq` the model sees the
    last `seq` tokens only. Raises ValueError for an empty prompt, a negative temperature, and for
    tokens the model does not know.
    """
    tokens = list(prompt.encode() if isinstance(prompt, str) else prompt)
    if not tokens:
        raise ValueError("the prompt is empty; give at least one character to continue from")
    if temperature < 0:
        raise ValueError(f"temperature should be 0 or more, but is {temperature}")
    vocab, text = model.config.vocab, isinstance(prompt, str | bytes)
    if max(tokens) >= vocab or min(tokens) < 0:
        raise ValueError(f"the prompt has tokens outside the vocabulary of {vocab}")
    if text and vocab > 256:
        raise ValueError(
            f"a model with {vocab} tokens cannot write bytes; give the prompt as tokens"
        )
    device = model.embed.weight.device
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same text on every device
    for _ in range(n):
        window = torch.tensor([tokens[-model.config.seq :]], device=device)
        logits_V = model(window)[0, -1].to("cpu", torch.float32)
        if temperature == 0:
            token = int(logits_V.argmax())
        else:
            probabilities_V = torch.softmax(logits_V / temperature, dim=-1)
            token = int(torch.multinomial(probabilities_V, 1, generator=generator))
        tokens.append(token)
    if isinstance(prompt, str):
        return bytes(tokens).decode(errors="replace")
    return bytes(tokens) if isinstance(prompt, bytes) else tokens
