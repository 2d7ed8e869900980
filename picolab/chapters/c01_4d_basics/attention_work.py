"""How many scores each rank of a cut sequence computes, counted while the package's ring runs.

What the chapter measures beside `costs.causal_share`: the kernel under `ring_attention` is
replaced, in this rank only, by one that counts, and the output is compared with attention over the
whole sequence. A chapter's record needs no torch, so it is imported in the function.
"""


def attention_work(split: str, seq: int) -> tuple[int, float]:
    """To be run in ranks: the scores that this one computed, and how far its output is from
    attention over the whole sequence, both cut by `split` ("contiguous" or "zigzag").
    """
    import torch
    import torch.distributed as dist
    from torch.nn.functional import scaled_dot_product_attention

    from picolab import comm
    from picolab.parallel import attention_block, ring, sequence_split
    from picolab.specs import Layout

    comm.build_mesh(Layout(cp=dist.get_world_size()))
    cp, me, counted = dist.get_world_size(), dist.get_rank(), []
    kernel = attention_block.attend

    def counting(q, k, v, causal):
        rows, columns = q.shape[2], k.shape[2]
        counted.append(rows * (rows + 1) // 2 if causal else rows * columns)
        return kernel(q, k, v, causal)

    ring.attend = counting
    draw = torch.Generator().manual_seed(0)
    whole = [torch.randn(1, 2, seq, 32, generator=draw) for _ in "qkv"]
    right = scaled_dot_product_attention(*whole, is_causal=True)
    cut = sequence_split.split_sequence
    mine = [cut(x, me, cp, 2, split) for x in (*whole, right)]
    apart = (ring.ring_attention(*mine[:3], split=split) - mine[3]).abs().max().item()
    return sum(counted), apart
