import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vecall.data.ragged import RaggedArray
from vecall.data.split import LabeledNegatives
from vecall.training.batches import SampleBatches, add_negative_samples, build_positive_samples, gather_histories

HISTORIES = RaggedArray.from_lists([[10, 11, 12, 13], [], [20], [30, 31]])


def batches(samples, train=HISTORIES, *, length=3, batch=4, seed=0, epoch=0):
    return list(SampleBatches(samples, train, history_length=length, batch_size=batch, seed=seed, epoch=epoch))


def test_every_position_is_a_positive():
    samples = build_positive_samples(HISTORIES)
    assert samples.users.tolist() == [0, 0, 0, 0, 2, 3, 3]
    assert samples.items.tolist() == [10, 11, 12, 13, 20, 30, 31]
    assert samples.positions.tolist() == [0, 1, 2, 3, 0, 0, 1]
    assert samples.labels.tolist() == [1.0] * 7
    assert build_positive_samples(HISTORIES, min_history=1).items.tolist() == [11, 12, 13, 31]


def test_labelled_negatives_see_what_came_before_them():
    negatives = LabeledNegatives(np.array([0, 3, 1]), np.array([99, 98, 97]), np.array([2, 0, 0]))
    samples = add_negative_samples(build_positive_samples(HISTORIES), negatives)
    (one,) = batches(samples, batch=10)
    place = {int(item): at for at, item in enumerate(one.target_items)}
    for item, label, history in (
        (99, 0.0, [10, 11]),
        (98, 0.0, []),
        (97, 0.0, []),
        (12, 1.0, [10, 11]),
        (13, 1.0, [10, 11, 12]),
    ):
        at = place[item]
        assert one.labels[at] == label
        assert one.histories[at, : one.lengths[at]].tolist() == history


@given(
    lists=st.lists(st.lists(st.integers(1, 500), max_size=9), min_size=1, max_size=6),
    length=st.integers(1, 5),
)
@settings(max_examples=60)
def test_a_history_holds_what_came_before_its_position_and_nothing_else(lists, length):
    train = RaggedArray.from_lists(lists)
    samples = build_positive_samples(train)
    histories, lengths = gather_histories(train, samples.users, samples.positions, length)
    assert histories.shape == (len(samples), lengths.max(initial=0))
    for user, position, row, filled in zip(samples.users, samples.positions, histories, lengths, strict=True):
        assert row[:filled].tolist() == lists[user][:position][-length:]
        assert (row[filled:] == 0).all()


def test_batches_follow_from_seed_and_epoch():
    samples = build_positive_samples(RaggedArray.from_lists([list(range(100))]))

    def order(**which):
        made = batches(samples, RaggedArray.from_lists([list(range(100))]), batch=10, **which)
        return torch.cat([batch.target_items for batch in made]).tolist()

    assert order(seed=1, epoch=2) == order(seed=1, epoch=2)
    assert len({tuple(order(seed=seed, epoch=epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    assert sorted(order()) == list(range(100))


@pytest.mark.parametrize(("batch", "sizes"), [(3, [3, 3]), (7, [7]), (50, [7])])
def test_batches_are_full_and_an_epoch_is_never_empty(batch, sizes):
    samples = build_positive_samples(HISTORIES)
    made = SampleBatches(samples, HISTORIES, history_length=3, batch_size=batch, seed=0, epoch=0)
    assert [len(one.users) for one in made] == sizes
    assert len(made) == len(sizes)
