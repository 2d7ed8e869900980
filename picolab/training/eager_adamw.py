"""torch's AdamW for steps that nobody compiles.

`torch.optim` keeps its methods from the compiler, and imports the compiler to do so
(`torch._dynamo`, more than a second) when the first optimizer is made. A rank compiles nothing, and
the first run of a notebook would wait for it: so these are the same methods without that wrapping.
Where a torch does not wrap them, `unwrap` changes nothing.
"""

import inspect

import torch


class EagerAdamW(torch.optim.AdamW):
    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))
