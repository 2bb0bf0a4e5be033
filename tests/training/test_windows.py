import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecall.data.ragged import RaggedArray
from vecall.training.windows import WindowBatches, cut_windows


def learned(train, length, least, *, batch=3, seed=0, epoch=0):
    """(user, what was read, the positive) of every place that is learned."""
    windows = cut_windows(train, length, min_history=least)
    found = []
    for one in WindowBatches(windows, train, batch_size=batch, seed=seed, epoch=epoch):
        for row, (owner, place, item) in enumerate(zip(one.window_index, one.positions, one.target_items, strict=True)):
            read = one.histories[row, : one.lengths[row]].tolist()
            assert read == one.input_items[owner, :place].tolist()
            found.append((int(one.users[owner]), tuple(read), int(item)))
    return found


@given(
    lengths=st.lists(st.integers(0, 23), min_size=1, max_size=6),
    length=st.integers(1, 7),
    least=st.integers(0, 2),
)
@settings(max_examples=80)
def test_every_position_is_learned_once_from_what_came_before(lengths, length, least):
    train = RaggedArray.from_lists([100 * user + np.arange(1, count + 1) for user, count in enumerate(lengths)])
    found = learned(train, length, least)
    expected = [100 * user + place + 1 for user, count in enumerate(lengths) for place in range(least, count)]
    assert sorted(item for _, _, item in found) == expected
    for user, read, item in found:
        place = item - 100 * user - 1
        assert read == tuple(range(item - len(read), item))
        assert min(place, length // 2) <= len(read) <= min(place, length)


def test_windows_of_a_long_history_by_hand():
    train = RaggedArray.from_lists([[7], list(range(10))])
    windows = cut_windows(train, 4, min_history=1)
    starts = train.offsets[windows.users] + windows.ends - windows.lengths
    cut = sorted(zip(starts.tolist(), windows.lengths.tolist(), windows.loss_starts.tolist(), strict=True))
    # 10 items, 5 at a time: the last two places of each, the earliest window from its second item on.
    assert cut == [(1, 4, 1), (2, 5, 3), (4, 5, 3), (6, 5, 3)]
    assert windows.users.tolist() == [1] * 4
    assert sorted(windows.target_counts) == [2, 2, 2, 3]


def test_an_epoch_follows_from_seed_and_number():
    train = RaggedArray.from_lists([np.arange(1, n) for n in range(2, 40)])
    first, again = learned(train, 5, 1), learned(train, 5, 1)
    assert first == again
    assert learned(train, 5, 1, epoch=1) != first
    assert sorted(learned(train, 5, 1, epoch=1)) == sorted(first)


def test_windows_of_like_length_lie_together():
    random = np.random.default_rng(0)
    train = RaggedArray.from_lists([np.arange(1, n + 1) for n in random.integers(2, 50, 400)])
    windows = cut_windows(train, 50, min_history=1)
    batches = list(WindowBatches(windows, train, batch_size=20, seed=0, epoch=0))
    assert sum(one.input_items.numel() for one in batches) < 1.2 * windows.lengths.sum()


@pytest.mark.parametrize("batch", [1, 7, 60, 10**6])
def test_batches_have_about_as_many_positives_as_asked(batch):
    random = np.random.default_rng(0)
    train = RaggedArray.from_lists([np.arange(1, n + 1) for n in random.integers(2, 90, 400)])
    windows = cut_windows(train, 50, min_history=1)
    batches = WindowBatches(windows, train, batch_size=batch, seed=0, epoch=0)
    sizes = np.array([len(one.target_items) for one in batches])
    assert (len(sizes), sizes.sum()) == (len(batches), windows.target_counts.sum())
    if batch == 1:
        assert len(sizes) == len(windows)
    if batch == 60:
        assert sizes.mean() == pytest.approx(60, rel=0.05)
        assert sizes.max() < 60 + windows.target_counts.max()
    if batch > windows.target_counts.sum():
        assert len(sizes) == 1


@pytest.mark.parametrize("lists", [[[]], [[1], [2]]])
def test_histories_too_short_have_no_windows(lists):
    assert len(cut_windows(RaggedArray.from_lists(lists), 5, min_history=1)) == 0
