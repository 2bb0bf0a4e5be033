import threading
import time

import pytest
import torch

from vecall.training.batches import SampleBatch
from vecall.training.prefetch import PrefetchedBatches


class CountedBatches:
    """Ten batches; counts those that were built, and fails at the last one if told to."""

    def __init__(self, *, fails=False):
        self.n_built, self._fails = 0, fails

    def __len__(self):
        return 10

    def __iter__(self):
        for number in range(10):
            if self._fails and number == 9:
                raise ValueError("no more")
            self.n_built += 1
            yield SampleBatch(*[torch.tensor([number])] * 5)


def list_prefetch_threads():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_batches_come_in_order_and_the_thread_ends():
    batches = PrefetchedBatches(CountedBatches(), is_pinned=False)
    assert len(batches) == 10
    assert [batch.users.item() for batch in batches] == list(range(10))
    assert not list_prefetch_threads()


def test_few_batches_are_built_ahead():
    source = CountedBatches()
    iterator = iter(PrefetchedBatches(source, is_pinned=False))
    next(iterator)
    deadline = time.monotonic() + 5
    while source.n_built < 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert source.n_built == 6  # one taken, four that wait, one that waits for room
    iterator.close()
    assert not list_prefetch_threads()


def test_error_in_a_batch_is_raised_where_it_is_taken():
    taken = []
    with pytest.raises(ValueError, match="no more"):
        taken.extend(batch.users.item() for batch in PrefetchedBatches(CountedBatches(fails=True), is_pinned=False))
    assert not list_prefetch_threads()
