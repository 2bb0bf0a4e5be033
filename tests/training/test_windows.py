import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vecall.data.ragged import RaggedArray
from vecall.training.shards import Shard
from vecall.training.windows import WindowBatches, cut_windows


def list_targets(histories, history_length, min_history, *, weights=None, batch_size=3, seed=0, epoch=0):
    """(user, items read, target item) of every position with a loss."""
    windows = cut_windows(histories, history_length, min_history=min_history, weights=weights)
    targets = []
    for batch in WindowBatches(windows, histories, batch_size=batch_size, seed=seed, epoch=epoch):
        positions = zip(batch.window_index, batch.positions, batch.target_items, strict=True)
        for row, (window, position, item) in enumerate(positions):
            items_read = batch.histories[row, : batch.lengths[row]].tolist()
            assert items_read == batch.input_items[window, :position].tolist()
            assert weights is None or batch.weights[row] == item % 3
            targets.append((int(batch.users[window]), tuple(items_read), int(item)))
    return targets


@given(
    lengths=st.lists(st.integers(0, 23), min_size=1, max_size=6),
    history_length=st.integers(1, 7),
    min_history=st.integers(0, 2),
)
@settings(max_examples=80)
def test_every_position_has_one_loss_and_reads_only_earlier_items(lengths, history_length, min_history):
    histories = RaggedArray.from_lists([100 * user + np.arange(1, count + 1) for user, count in enumerate(lengths)])
    targets = list_targets(histories, history_length, min_history)
    expected = [
        100 * user + position + 1 for user, count in enumerate(lengths) for position in range(min_history, count)
    ]
    assert sorted(item for _, _, item in targets) == expected
    for user, items_read, item in targets:
        position = item - 100 * user - 1
        assert items_read == tuple(range(item - len(items_read), item))
        assert min(position, history_length // 2) <= len(items_read) <= min(position, history_length)


@given(
    lengths=st.lists(st.integers(0, 23), min_size=1, max_size=6),
    history_length=st.integers(1, 7),
    min_history=st.integers(0, 2),
)
@settings(max_examples=80)
def test_positions_of_weight_0_have_no_loss_and_are_read_by_the_others(lengths, history_length, min_history):
    """The weight of an item is its number modulo 3."""
    histories = RaggedArray.from_lists([100 * user + np.arange(1, count + 1) for user, count in enumerate(lengths)])
    weights = (histories.values % 3).astype(np.float32)
    targets = list_targets(histories, history_length, min_history, weights=weights)
    expected = [target for target in list_targets(histories, history_length, min_history) if target[2] % 3]
    assert sorted(targets) == sorted(expected)


def test_parts_of_a_batch_have_the_weights_of_the_whole():
    histories = RaggedArray.from_lists([np.arange(1, count + 1) for count in range(2, 12)])
    weights = (histories.values % 3).astype(np.float32)
    windows = cut_windows(histories, 4, min_history=1, weights=weights)
    batches, *parts = (
        list(WindowBatches(windows, histories, batch_size=9, seed=0, epoch=0, shard=shard))
        for shard in (None, Shard(0, 2), Shard(1, 2))
    )
    for batch, *both in zip(batches, *parts, strict=True):
        for name in ("target_items", "weights", "target_users"):
            whole = getattr(batch, name)
            assert torch.cat([getattr(part, name) for part in both]).tolist() == whole.tolist()
        assert all(part.whole.items.tolist() == batch.target_items.tolist() for part in both)


def test_windows_of_a_long_history_overlap_by_half():
    histories = RaggedArray.from_lists([[7], list(range(10))])
    windows = cut_windows(histories, 4, min_history=1)
    starts = histories.offsets[windows.users] + windows.ends - windows.lengths
    cut = sorted(zip(starts.tolist(), windows.lengths.tolist(), windows.loss_starts.tolist(), strict=True))
    # 10 items in windows of 5: the last two positions of each have a loss, those of the first from its second item on.
    assert cut == [(1, 4, 1), (2, 5, 3), (4, 5, 3), (6, 5, 3)]
    assert windows.users.tolist() == [1] * 4
    assert sorted(windows.target_counts) == [2, 2, 2, 3]


def test_order_of_windows_depends_on_seed_and_epoch_only():
    histories = RaggedArray.from_lists([np.arange(1, n) for n in range(2, 40)])
    first, repeated = list_targets(histories, 5, 1), list_targets(histories, 5, 1)
    assert first == repeated
    assert list_targets(histories, 5, 1, epoch=1) != first
    assert sorted(list_targets(histories, 5, 1, epoch=1)) == sorted(first)


def test_windows_of_similar_length_are_batched_together():
    rng = np.random.default_rng(0)
    histories = RaggedArray.from_lists([np.arange(1, n + 1) for n in rng.integers(2, 50, 400)])
    windows = cut_windows(histories, 50, min_history=1)
    batches = list(WindowBatches(windows, histories, batch_size=20, seed=0, epoch=0))
    assert sum(batch.input_items.numel() for batch in batches) < 1.2 * windows.lengths.sum()


@pytest.mark.parametrize("batch_size", [1, 7, 60, 10**6])
def test_batches_have_about_batch_size_targets(batch_size):
    rng = np.random.default_rng(0)
    histories = RaggedArray.from_lists([np.arange(1, n + 1) for n in rng.integers(2, 90, 400)])
    windows = cut_windows(histories, 50, min_history=1)
    batches = WindowBatches(windows, histories, batch_size=batch_size, seed=0, epoch=0)
    sizes = np.array([len(batch.target_items) for batch in batches])
    assert (len(sizes), sizes.sum()) == (len(batches), windows.target_counts.sum())
    if batch_size == 1:
        assert len(sizes) == len(windows)
    if batch_size == 60:
        assert sizes.mean() == pytest.approx(60, rel=0.05)
        assert sizes.max() < 60 + windows.target_counts.max()
    if batch_size > windows.target_counts.sum():
        assert len(sizes) == 1


@pytest.mark.parametrize("lists", [[[]], [[1], [2]]])
def test_too_short_histories_have_no_windows(lists):
    assert len(cut_windows(RaggedArray.from_lists(lists), 5, min_history=1)) == 0
