"""One block of attention, with the log-sum-exp that says how much it weighs.

    scores = q k^T / sqrt(E)      out = softmax(scores) v      lse = log sum exp(scores)

`lse` has one number for each query: the logarithm of what the softmax divided by. Whoever has `out`
and `lse` of two blocks of keys can merge them into those of both (ring.py), and whoever has the
`lse` over *all* keys can take any one block's gradients without the others:

    p  = exp(scores - lse)                      dv = p^T dout
    ds = p (dout v^T - rowsum(dout out))        dq = ds k / sqrt(E)      dk = ds^T q / sqrt(E)

That is how flash attention (arXiv 2205.14135, section 3.1 and appendix B) goes through tiles in one
kernel, and how ring attention goes through ranks. The kernels are torch's own, one level below
`F.scaled_dot_product_attention`, which keeps the lse to itself:

    cpu                   _scaled_dot_product_flash_attention_for_cpu: any floating dtype, fp64 too
    cuda, bf16 and fp16   _scaled_dot_product_flash_attention: no fp32 or fp64, and E in eights
    everything else       the formulas above, with the whole block of scores in memory

All take fewer key heads than query heads (GQA) without repeating K and V. The choice is made in one
function for each direction. The CUDA line is written from torch's signatures and the way
torch.distributed's own context parallelism calls them; the tests here run on a CPU and do not
execute it.

Letters in names: B batch, N query heads, K key-value heads, S queries, T keys, E size of a head.
"""

import torch

_aten = torch.ops.aten


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums over blocks are kept in: fp32, or fp64 where the inputs are fp64."""
    return torch.promote_types(dtype, torch.float32)


def attend(
    q_BNSE: torch.Tensor, k_BKTE: torch.Tensor, v_BKTE: torch.Tensor, causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """out_BNSE in q's dtype, and lse_BNS in fp32 or better. Causal: query i sees keys 0 ... i."""
    q, k, v = (_rows(x) for x in (q_BNSE, k_BKTE, v_BKTE))
    kernel = _kernel(q)
    if kernel == "cpu":
        return _aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal)
    if kernel == "cuda":
        return _aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal)[:2]
    return math_attend(q, k, v, causal)


def attend_backward(
    dout_BNSE: torch.Tensor,
    q_BNSE: torch.Tensor,
    k_BKTE: torch.Tensor,
    v_BKTE: torch.Tensor,
    out_BNSE: torch.Tensor,
    lse_BNS: torch.Tensor,
    causal: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """This block's share of dq, dk and dv, in q's dtype. `out` and `lse` are those over all
    blocks.
    """
    dout, q, k, v, out = (_rows(x) for x in (dout_BNSE, q_BNSE, k_BKTE, v_BKTE, out_BNSE))
    kernel = _kernel(q)
    if kernel == "cpu":
        return _aten._scaled_dot_product_flash_attention_for_cpu_backward(
            dout, q, k, v, out, lse_BNS, 0.0, causal
        )
    if kernel == "cuda":
        # The kernel's random state is for dropout, of which there is none.
        state = torch.empty(2, dtype=torch.uint64, device=q.device)
        unused = torch.empty((), dtype=torch.uint64, device=q.device)
        lengths = (None, None, q.shape[2], k.shape[2])  # the first two: for packed sequences
        return _aten._scaled_dot_product_flash_attention_backward(
            dout, q, k, v, out, lse_BNS.contiguous(), *lengths, 0.0, causal, state, unused
        )
    return math_attend_backward(dout, q, k, v, out, lse_BNS, causal)


def math_attend(q_BNSE, k_BKTE, v_BKTE, causal: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """`attend`, from the formulas."""
    scores = _scores(q_BNSE, k_BKTE, causal)
    lse = scores.logsumexp(-1)
    p = (scores - lse.unsqueeze(-1)).exp()
    out = p @ v_BKTE.to(p.dtype).unsqueeze(2)
    return out.flatten(1, 2).to(q_BNSE.dtype), lse.flatten(1, 2)


def math_attend_backward(dout_BNSE, q_BNSE, k_BKTE, v_BKTE, out_BNSE, lse_BNS, causal: bool):
    """`attend_backward`, from the formulas."""
    kv_heads, dtype = k_BKTE.shape[1], accumulation_dtype(q_BNSE.dtype)
    # (B, K, N/K, ., E): the query heads that share a key head lie side by side.
    dout, q, out = (x.to(dtype).unflatten(1, (kv_heads, -1)) for x in (dout_BNSE, q_BNSE, out_BNSE))
    k, v = (x.to(dtype).unsqueeze(2) for x in (k_BKTE, v_BKTE))
    lse = lse_BNS.unflatten(1, (kv_heads, -1)).unsqueeze(-1)
    p = (_scores(q_BNSE, k_BKTE, causal) - lse).exp()
    ds = p * (dout @ v.mT - (dout * out).sum(-1, keepdim=True)) * q.shape[-1] ** -0.5
    dq, dk, dv = (ds @ k).flatten(1, 2), (ds.mT @ q).sum(2), (p.mT @ dout).sum(2)
    return tuple(x.to(q_BNSE.dtype) for x in (dq, dk, dv))


def _scores(q_BNSE, k_BKTE, causal: bool) -> torch.Tensor:
    """(B, K, N/K, S, T), minus infinity where a query does not see a key."""
    dtype = accumulation_dtype(q_BNSE.dtype)
    q = q_BNSE.to(dtype).unflatten(1, (k_BKTE.shape[1], -1))
    scores = q @ k_BKTE.to(dtype).unsqueeze(2).mT * q.shape[-1] ** -0.5
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    return scores


def _kernel(q: torch.Tensor) -> str:
    if q.device.type == "cpu":
        return "cpu"
    short = q.dtype in (torch.bfloat16, torch.float16)
    return "cuda" if q.device.type == "cuda" and short and q.shape[-1] % 8 == 0 else "math"


def _rows(x: torch.Tensor) -> torch.Tensor:
    """The kernels read each head's vector as adjacent numbers; given another stride, torch 2.13's
    returns wrong numbers without a word.
    """
    return x if x.stride(-1) == 1 else x.contiguous()
