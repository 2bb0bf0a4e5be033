import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vecall.data.ragged import RaggedArray
from vecall.data.split import HardNegatives
from vecall.training.batches import SampleBatches, add_negative_samples, build_positive_samples, gather_histories

HISTORIES = RaggedArray.from_lists([[10, 11, 12, 13], [], [20], [30, 31]])


def make_batches(samples, histories=HISTORIES, *, history_length=3, batch_size=4, seed=0, epoch=0):
    return list(
        SampleBatches(samples, histories, history_length=history_length, batch_size=batch_size, seed=seed, epoch=epoch)
    )


def test_every_position_is_a_positive_sample():
    samples = build_positive_samples(HISTORIES)
    assert samples.users.tolist() == [0, 0, 0, 0, 2, 3, 3]
    assert samples.items.tolist() == [10, 11, 12, 13, 20, 30, 31]
    assert samples.positions.tolist() == [0, 1, 2, 3, 0, 0, 1]
    assert samples.labels.tolist() == [1.0] * 7
    assert build_positive_samples(HISTORIES, min_history=1).items.tolist() == [11, 12, 13, 31]


def test_negative_samples_have_the_history_before_their_position():
    negatives = HardNegatives(np.array([0, 3, 1]), np.array([99, 98, 97]), np.array([2, 0, 0]))
    samples = add_negative_samples(build_positive_samples(HISTORIES), negatives)
    (batch,) = make_batches(samples, batch_size=10)
    row_by_item = {int(item): row for row, item in enumerate(batch.target_items)}
    for item, label, history in (
        (99, 0.0, [10, 11]),
        (98, 0.0, []),
        (97, 0.0, []),
        (12, 1.0, [10, 11]),
        (13, 1.0, [10, 11, 12]),
    ):
        row = row_by_item[item]
        assert batch.labels[row] == label
        assert batch.histories[row, : batch.lengths[row]].tolist() == history


def test_positions_of_weight_0_are_read_and_are_no_samples():
    weights = np.array([0.5, 0, 2, 0.5, 0, 0, 1], dtype=np.float32)
    samples = build_positive_samples(HISTORIES, min_history=1, weights=weights)
    assert (samples.items.tolist(), samples.positions.tolist()) == ([12, 13, 31], [2, 3, 1])
    assert samples.weights.tolist() == [2, 0.5, 1]
    negatives = HardNegatives(np.array([0]), np.array([99]), np.array([2]))
    (batch,) = make_batches(add_negative_samples(samples, negatives), batch_size=10)
    weight_by_item = dict(zip(batch.target_items.tolist(), batch.weights.tolist(), strict=True))
    assert weight_by_item == {12: 2, 13: 0.5, 31: 1, 99: pytest.approx(3.5 / 3)}  # the mean of the others
    row = batch.target_items.tolist().index(13)
    assert batch.histories[row].tolist() == [10, 11, 12]
    assert make_batches(build_positive_samples(HISTORIES))[0].weights is None


@given(
    lists=st.lists(st.lists(st.integers(1, 500), max_size=9), min_size=1, max_size=6),
    max_length=st.integers(1, 5),
)
@settings(max_examples=60)
def test_gathered_history_holds_exactly_the_items_before_the_position(lists, max_length):
    histories = RaggedArray.from_lists(lists)
    samples = build_positive_samples(histories)
    gathered, lengths = gather_histories(histories, samples.users, samples.positions, max_length)
    assert gathered.shape == (len(samples), lengths.max(initial=0))
    for user, position, row, length in zip(samples.users, samples.positions, gathered, lengths, strict=True):
        assert row[:length].tolist() == lists[user][:position][-max_length:]
        assert (row[length:] == 0).all()


def test_order_of_batches_depends_on_seed_and_epoch_only():
    histories = RaggedArray.from_lists([list(range(100))])
    samples = build_positive_samples(histories)

    def order(**seeds):
        batches = make_batches(samples, histories, batch_size=10, **seeds)
        return torch.cat([batch.target_items for batch in batches]).tolist()

    assert order(seed=1, epoch=2) == order(seed=1, epoch=2)
    assert len({tuple(order(seed=seed, epoch=epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    assert sorted(order()) == list(range(100))


@pytest.mark.parametrize(("batch_size", "sizes"), [(3, [3, 3]), (7, [7]), (50, [7])])
def test_batches_are_full_and_an_epoch_has_at_least_one(batch_size, sizes):
    samples = build_positive_samples(HISTORIES)
    batches = SampleBatches(samples, HISTORIES, history_length=3, batch_size=batch_size, seed=0, epoch=0)
    assert [len(batch.users) for batch in batches] == sizes
    assert len(batches) == len(sizes)
