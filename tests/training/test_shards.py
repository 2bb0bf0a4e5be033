import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vecall.data.ragged import RaggedArray
from vecall.training.batches import SampleBatches, build_positive_samples
from vecall.training.shards import Shard
from vecall.training.windows import WindowBatches, cut_windows

HISTORIES = RaggedArray.from_lists([np.arange(1, n) for n in (2, 5, 9, 3, 14, 4, 30, 2, 7)])


@given(weights=st.lists(st.integers(1, 9), min_size=1, max_size=30), size=st.integers(1, 8))
def test_parts_cover_all_elements_once_and_weigh_about_the_same(weights, size):
    weights = np.array(weights)
    parts = [Shard(rank, size).select(weights) for rank in range(size)]
    assert [index for part in parts for index in range(part.start, part.stop)] == list(range(len(weights)))
    assert all(abs(weights[part].sum() - weights.sum() / size) <= weights.max() for part in parts)


def build_batches(kind, shard, batch_size):
    options = {"batch_size": batch_size, "seed": 3, "epoch": 1, "shard": shard}
    if kind == "samples":
        return SampleBatches(build_positive_samples(HISTORIES), HISTORIES, history_length=4, **options)
    return WindowBatches(cut_windows(HISTORIES, 4, min_history=1), HISTORIES, **options)


def list_targets(batch):
    """(user, items read, target) of each target of a batch."""
    read = [row[:length].tolist() for row, length in zip(batch.histories, batch.lengths, strict=True)]
    return list(zip(batch.target_users.tolist(), read, batch.target_items.tolist(), strict=True))


@pytest.mark.parametrize("kind", ["samples", "windows"])
@pytest.mark.parametrize(("size", "batch_size"), [(2, 16), (3, 7), (5, 3)])
def test_parts_of_all_processes_are_the_whole_batch(kind, size, batch_size):
    sharded = [build_batches(kind, Shard(rank, size), batch_size) for rank in range(size)]
    for whole, *parts in zip(build_batches(kind, None, batch_size), *sharded, strict=True):
        assert whole.whole is None
        counted = [part for part in parts if not part.whole.is_padding]
        assert [target for part in counted for target in list_targets(part)] == list_targets(whole)
        for part in parts:
            assert torch.equal(part.whole.items, whole.target_items)
            assert torch.equal(part.whole.users, whole.target_users)
            assert torch.equal(part.whole.items[part.whole.part], part.target_items)
            assert torch.equal(part.whole.users[part.whole.part], part.target_users)
        assert sum(part.whole.weight for part in parts) / size == pytest.approx(1)


@pytest.mark.parametrize("kind", ["samples", "windows"])
def test_weighted_means_of_the_parts_average_to_the_mean_of_the_batch(kind):
    parts = zip(*(build_batches(kind, Shard(rank, 3), 8) for rank in range(3)), strict=True)
    for whole, batch in zip(build_batches(kind, None, 8), parts, strict=True):
        means = [part.target_items.double().mean() * part.whole.weight for part in batch]
        assert torch.stack(means).mean() == pytest.approx(whole.target_items.double().mean())


def test_process_without_a_target_computes_one_of_another_with_weight_0():
    parts = [next(iter(build_batches("windows", Shard(rank, 5), 1))) for rank in range(5)]
    assert sum(part.whole.is_padding for part in parts) >= 1
    assert all(len(part.target_items) for part in parts)
    assert {part.whole.weight for part in parts if part.whole.is_padding} == {0.0}
