"""Work too small to be shared among threads, done by one, as in a rank.

Of products and sums this small, several threads make two to five times the CPU seconds, most of
them spent waiting for each other; on a busy machine they take ten times as long.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """A context or a decorator; the number of torch's threads is afterwards what it was."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
