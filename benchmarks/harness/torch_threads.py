"""Training on a single thread.

More threads only wait for one another on layers this small, and a run on one thread is reproducible to the bit.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def single_torch_thread() -> Iterator[None]:
    """Run the block on one thread.

    The previous number is restored at the end: torch sets the number of OpenMP threads, which faiss shares.
    """
    previous = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(previous)
