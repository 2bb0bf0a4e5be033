"""Training on one thread: more only wait for each other over layers this small, and a run repeats itself to the bit."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def single_torch_thread() -> Iterator[None]:
    """Within; afterwards as before, since torch's number of threads is OpenMP's, and so that of faiss."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
