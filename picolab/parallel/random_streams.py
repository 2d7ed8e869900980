"""Random numbers in parallel: ranks must agree where they hold the same, and must not where they
hold different things.

    what is dropped                      tp ranks hold     so their random numbers are
    residual branch, without sp          the same tokens   the same: else replicas of one tensor
                                                           differ, and nobody notices
    residual branch, with sp             other tokens      different: else every share of the
                                                           sequence loses the same places
    heads' output, before o              other heads       different, with sp or without

Ranks of dp and cp have other samples or tokens, and stages of pp other layers: always different. So
there are two streams a rank, seeded by where it stands,

    replicated   (seed, pp, dp, cp)          sharded   (seed, pp, dp, cp, tp)

and each dropout draws from the one that fits. A model with dropout then computes what one process
computes that is given the same masks (tests/distributed/parallel/test_random_streams.py gives it
them). Source: Megatron-LM's `tensor_parallel/random.py` (arXiv 1909.08053, section 3, last
paragraph). Twin in torch: `torch.distributed.tensor._random`, which moves one stream's offset.
Leaves out: streams in checkpoints, recomputation.
"""

import hashlib

import torch

from picolab import comm
from picolab.model import Dropout, Transformer


class RandomStreams:
    """The two streams of this rank."""

    def __init__(self, seed: int, device: torch.device | str = "cpu"):
        place = dict.fromkeys(("pp", "dp", "cp", "tp"), 0)
        if torch.distributed.is_initialized():
            place = comm.mesh().coordinates
        outer = [place[axis] for axis in ("pp", "dp", "cp")]
        self.replicated = _generator(f"{seed}/{outer}", device)
        self.sharded = _generator(f"{seed}/{outer}/tp{place['tp']}", device)

    def install(self, model: Transformer, sequence: bool) -> None:
        """Let each dropout of the model draw from the stream that fits. sequence: with sp."""
        for module in model.modules():
            if isinstance(module, Dropout):
                module.generator = self.sharded if sequence or module.cut_by_tp else self.replicated


def _generator(text: str, device: torch.device | str) -> torch.Generator:
    digest = hashlib.sha256(text.encode()).digest()
    generator = torch.Generator(device)
    return generator.manual_seed(int.from_bytes(digest[:8], "little", signed=True))
