"""Floating-point operations of training."""

from picolab.costs.parameters import attention_weights, mlp_weights
from picolab.specs import ModelConfig


def flops_per_token(config: ModelConfig, seq: int | None = None) -> int:
    """Operations of forward and backward for one token of a sequence of `seq` (config.seq if None).

        6 N + 12 L a d s      N numbers in matrices, L layers, a heads of width d, s tokens

    A multiplication and an addition count as two, backward as twice forward: 6 for each number in a
    matrix that the token passes, and 2 * 2 * 3 for each pair of tokens in the two products of
    attention. N is the active experts' and the head's matrices too; it has no embedding (a
    look-up), no norms and no biases. The full square of attention is counted, as is the custom,
    although a causal mask makes half of it useless.

    Source: arXiv 2204.02311 (PaLM), appendix B. For a GPT block of ffn = 4h it is 72 h^2 (1 +
    s/(6h)) a layer, and 6 h V for the head: arXiv 2104.04473, section 5.1 and appendix, whose 96
    includes recomputing the forward pass.
    """
    seq = config.seq if seq is None else seq
    if seq < 1:
        raise ValueError(f"seq is {seq}; a sequence has at least 1 token")
    matrices = config.layers * attention_weights(config) + config.vocab * config.hidden
    for layer in range(config.layers):
        mlp = mlp_weights(config, layer)
        matrices += mlp.passed + mlp.router
    if config.latent is None:
        widths = 2 * config.head_dim  # of queries and keys, and of values
    else:
        widths = config.latent.nope_dim + config.latent.rope_dim + config.latent.value_dim
    return 6 * matrices + 6 * config.layers * config.heads * widths * seq
