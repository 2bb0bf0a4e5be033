import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vecall.data.ragged import RaggedArray
from vecall.training import sets as sets_module
from vecall.training.sets import SetBatches, Sets
from vecall.training.shards import Shard

HISTORIES = RaggedArray.from_lists([np.arange(100 * user, 100 * user + user % 14) for user in range(60)])


def make_batches(sets, *, max_length=50, hidden_share=0.5, batch_size=7, seed=0, epoch=0, shard=None):
    batches = SetBatches(
        sets,
        max_length=max_length,
        hidden_share=hidden_share,
        batch_size=batch_size,
        seed=seed,
        epoch=epoch,
        shard=shard,
    )
    built = list(batches)
    assert len(built) == len(batches)
    return built


def list_users(batches):
    """Sorted items that are read and sorted items that are hidden, by user."""
    users = {}
    for batch in batches:
        inputs, targets = (
            torch.split(items, counts.tolist())
            for items, counts in ((batch.input_items, batch.input_counts), (batch.target_items, batch.target_counts))
        )
        for user, read, hidden in zip(batch.users.tolist(), inputs, targets, strict=True):
            assert user not in users
            users[user] = sorted(read.tolist()), sorted(hidden.tolist())
    return users


@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=8),
    max_length=st.integers(1, 12),
    hidden_share=st.sampled_from([0.1, 0.5, 0.8]),
    epoch=st.integers(0, 3),
)
@settings(max_examples=60)
def test_every_item_is_either_read_or_hidden_and_none_twice(lengths, max_length, hidden_share, epoch):
    histories = RaggedArray.from_lists([100 * user + np.arange(count) for user, count in enumerate(lengths)])
    batches = make_batches(
        Sets.from_histories(histories), max_length=max_length, hidden_share=hidden_share, batch_size=3, epoch=epoch
    )
    users = list_users(batches)
    assert sorted(users) == [user for user, count in enumerate(lengths) if count >= 2]
    for user, (read, hidden) in users.items():
        count = min(lengths[user], max(1, int(max_length / (1 - hidden_share))))
        assert set(read).isdisjoint(hidden)
        assert set(read) | set(hidden) <= set(histories[user].tolist())
        assert len(hidden) == max(1, min(round(hidden_share * count), lengths[user] - 1))
        assert len(read) == min(max_length, lengths[user] - len(hidden))
        if lengths[user] <= max_length:
            assert len(read) + len(hidden) == lengths[user]


def test_repeats_are_hidden_together_or_read_once():
    histories = RaggedArray.from_lists([[5, 1, 5, 2, 5, 3], [4, 4], [7, 8, 8]])
    sets = Sets.from_histories(histories)
    assert [items.tolist() for items in map(sets.items.__getitem__, range(3))] == [[5, 1, 2, 3], [4], [7, 8]]
    assert sets.users.tolist() == [0, 2]
    hidden_items = set()
    for epoch in range(20):
        users = list_users(make_batches(sets, epoch=epoch))
        for user, (read, hidden) in users.items():
            assert sorted(read + hidden) == sorted(set(histories[user].tolist()))
            assert len(hidden) == len(set(hidden)) == sets.items.lengths[user] // 2
            hidden_items |= set(hidden)
    assert hidden_items == {5, 1, 2, 3, 7, 8}


def test_sets_of_large_data_are_those_of_its_parts(monkeypatch):
    rng = np.random.default_rng(0)
    histories = RaggedArray.from_lists([rng.integers(9, size=count) for count in [0, 3, 12, 0, 0, 7, 1, 5, 0]])
    weights = rng.integers(3, size=len(histories.values)).astype(np.float32)
    whole = Sets.from_histories(histories, weights)
    monkeypatch.setattr(sets_module, "_BLOCK_ITEMS", 4)
    by_parts = Sets.from_histories(histories, weights)
    for field in dataclasses.fields(Sets):
        expected, actual = getattr(whole, field.name), getattr(by_parts, field.name)
        if field.name == "items":
            assert (actual.offsets.tolist(), actual.values.tolist()) == (
                expected.offsets.tolist(),
                expected.values.tolist(),
            )
        else:
            np.testing.assert_array_equal(actual, expected)


def test_repeated_item_has_its_highest_weight_and_weight_0_is_only_read():
    histories = RaggedArray.from_lists([[1, 2, 1, 3], [4, 5], [6, 7], list(range(10, 30))])
    weights = np.array([0, 2, 0.5, 0, 0, 3, 0, 0, *[1.0, 0, 0, 0] * 5], dtype=np.float32)
    sets = Sets.from_histories(histories, weights)
    assert sets.users.tolist() == [0, 1, 3]  # of user 2 nothing weighs
    assert sets.hideable_counts.tolist() == [2, 1, 0, 5]
    for epoch in range(8):
        users = list_users(make_batches(sets, epoch=epoch))
        assert users[0] in (([1, 3], [2]), ([2, 3], [1]))
        assert users[1] == ([4], [5])
        read, hidden = users[3]
        assert len(hidden) == 2  # half of the five that weigh, so that such ones are read too
        assert set(hidden) < set(range(10, 30, 4))
        assert sorted(read + hidden) == list(range(10, 30))


def test_targets_of_a_user_weigh_the_root_of_their_number():
    weights = np.linspace(0.5, 2, len(HISTORIES.values)).astype(np.float32)
    weight_of_item = dict(zip(HISTORIES.values.tolist(), weights.tolist(), strict=True))
    for own_weights in (None, weights):
        for batch in make_batches(Sets.from_histories(HISTORIES, own_weights)):
            counts = batch.target_counts[batch.target_owners]
            expected = [1.0 if own_weights is None else weight_of_item[item] for item in batch.target_items.tolist()]
            torch.testing.assert_close(batch.weights, torch.tensor(expected) / counts.sqrt())


def test_what_is_hidden_depends_on_seed_and_epoch_only():
    sets = Sets.from_histories(HISTORIES)
    first, repeated = (list_users(make_batches(sets)) for _ in range(2))
    assert list(first.items()) == list(repeated.items())
    for changes in ({"epoch": 1}, {"seed": 1}):
        other = list_users(make_batches(sets, **changes))
        assert sorted(other) == sorted(first)
        assert list(other) != list(first)  # the order
        assert sum(other[user] == first[user] for user in first) < len(first) / 2


@pytest.mark.parametrize(("batch_size", "n_processes"), [(7, 2), (7, 3), (1, 3)])
def test_parts_of_all_processes_are_the_whole_batch(batch_size, n_processes):
    weights = np.linspace(0.5, 2, len(HISTORIES.values)).astype(np.float32)
    sets = Sets.from_histories(HISTORIES, weights)
    batches = make_batches(sets, batch_size=batch_size)
    shards = [Shard(rank, n_processes) for rank in range(n_processes)]
    by_process = [make_batches(sets, batch_size=batch_size, shard=shard) for shard in shards]
    n_padding = 0
    for batch, *parts in zip(batches, *by_process, strict=True):
        counted = [part for part in parts if not part.whole.is_padding]
        n_padding += len(parts) - len(counted)
        assert counted
        for name in ("users", "input_items", "input_counts", "target_items", "target_counts", "weights"):
            assert torch.equal(torch.cat([getattr(part, name) for part in counted]), getattr(batch, name)), name
        for part in parts:
            assert len(part.users)
            assert [tensor.tolist() for tensor in part.step_targets] == [
                tensor.tolist() for tensor in batch.step_targets
            ]
            assert torch.equal(part.select_part(batch.target_items), part.target_items)
            assert torch.equal(part.select_part(batch.weights), part.weights)
        assert sum(part.whole.weight for part in parts) == pytest.approx(n_processes)
    assert (n_padding > 0) == (batch_size == 1)


@pytest.mark.parametrize("weighted", [False, True])
def test_target_frequencies_are_those_of_many_epochs(weighted):
    histories = RaggedArray.from_lists([[0, 1], [0, 2, 1, 3, 3], [0, 3, 4, 5, 6, 7, 8], [9]])
    weights = np.array([1, 0.5, 1, 0, 3, 0, 2, *[1] * 7, 1], dtype=np.float32) if weighted else None
    sets = Sets.from_histories(histories, weights)
    expected = sets.compute_target_frequencies(11, max_length=2, hidden_share=0.5)
    counts = np.zeros(11)
    for epoch in range(1500):
        (batch,) = make_batches(sets, max_length=2, batch_size=10, epoch=epoch)
        counts += np.bincount(batch.target_items, minlength=11)
    np.testing.assert_allclose(counts / counts.sum(), expected, atol=0.01)
    assert (expected[:2] > 0).all()  # items that are first in their histories, too
    assert (expected[[9, 10]] == 0).all()


def test_users_of_one_item_are_learned_from_without_a_history_only_if_asked_for():
    histories = RaggedArray.from_lists([[1], [], [2, 3]])
    assert Sets.from_histories(histories).users.tolist() == [2]
    sets = Sets.from_histories(histories, min_history=0)
    users = list_users(make_batches(sets))
    assert users[0] == ([], [1])
    assert users.keys() == {0, 2}


@pytest.mark.parametrize("lists", [[], [[]], [[1], [2, 2]]])
def test_too_few_items_are_no_sets(lists):
    assert len(Sets.from_histories(RaggedArray.from_lists(lists)).users) == 0
