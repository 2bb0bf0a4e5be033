"""Splits in which only some kinds are held out, on small logs and against what must hold of each."""

import dataclasses

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from support.ragged import to_lists
from support.splits import by_user, make_interactions, to_tuples

from vecall.data.settings import DataSettings
from vecall.data.split import TEST, TRAIN, VALID
from vecall.data.splitting import split_interactions
from vecall.errors import DataError

VIEW, BUY, SKIP = range(3)


def make_log(kinds, *args, parts=None, **kwargs):
    """Interactions whose views weigh 0.5 and are not held out, in order of user and time."""
    kinds = np.asarray(kinds)
    log = make_interactions(*args, is_positive=kinds != SKIP, **kwargs)
    kinds = kinds[np.lexsort((args[1], args[0]))]
    weights = np.where(kinds == BUY, 1.0, 0.5).astype(np.float32)
    return dataclasses.replace(log, weights=weights, is_target=kinds == BUY, target_kinds=["buy"], parts=parts)


def make_settings(**settings):
    return DataSettings(interactions=("log.csv",), **settings)


def test_last_two_targets_of_each_user_are_held_out_with_all_before_them():
    """User 0 views 0 and 1, buys 2 and 3, views 4, buys 5, views 6. User 1 has no history, and user 2 one buy."""
    users = [0] * 7 + [1] * 2 + [2] * 3
    kinds = [VIEW, VIEW, BUY, BUY, VIEW, BUY, VIEW, BUY, BUY, VIEW, BUY, VIEW]
    split = split_interactions(make_log(kinds, users, list(range(12))), 4, make_settings())
    assert to_lists(split.train) == [[0, 1, 2], [7, 8], [9, 10, 11], []]
    assert split.train_weights.tolist() == [0.5, 0.5, 1.0, 1.0, 1.0, 0.5, 1.0, 0.5]
    assert by_user(split.valid) == {0: ([0, 1, 2], [3])}
    assert by_user(split.test) == {0: ([0, 1, 2, 3, 4], [5])}
    assert split.positive_parts.tolist() == [TRAIN] * 3 + [VALID] * 2 + [TEST] * 2 + [TRAIN] * 5
    assert split.user_counts_by_reason == {"users with fewer than 2 positives of kind buy after the first positive": 3}
    assert split.protocol.startswith("leave-one-out: each user's last positive of kind buy is the test")


def test_targets_of_a_period_are_those_of_target_kinds():
    users, times = [0] * 6 + [1] * 3, [1, 2, 11, 12, 21, 22, 1, 11, 21]
    kinds = [VIEW, BUY, VIEW, BUY, BUY, VIEW, BUY, VIEW, VIEW]
    settings = make_settings(split="global_time", valid_from=10, test_from=20)
    split = split_interactions(make_log(kinds, users, times), 2, settings)
    assert to_lists(split.train) == [[0, 1], [6]]
    assert by_user(split.valid) == {0: ([0, 1], [3])}
    assert by_user(split.test) == {0: ([0, 1, 2, 3], [4])}
    assert split.user_counts_by_reason == {"users without positives of kind buy in the test period": 1}
    assert "evaluated on those of kind buy from 20 on" in split.protocol


def test_items_that_were_viewed_alone_are_never_drawn():
    """The user buys five items, views each of them before, and views ten others."""
    items = [*range(5), *range(5), *range(5, 15)]
    log = make_log([VIEW] * 5 + [BUY] * 5 + [VIEW] * 10, [0] * 20, list(range(20)), items=items)
    split = split_interactions(log, 1, make_settings(split="random"))
    held_out = [*split.valid.targets.values, *split.test.targets.values]
    assert len(set(held_out)) == 2
    assert max(held_out) < 5
    assert split.train[0].tolist() == [item for item in items if item not in held_out]
    assert split.train_weights.sum() == 3 + 0.5 * 13


def test_given_parts_judge_target_kinds_alone():
    log = make_log(
        [VIEW, BUY, VIEW, BUY, VIEW, BUY],
        [0] * 6,
        list(range(6)),
        parts=np.array([TRAIN, TRAIN, VALID, VALID, TEST, TEST], dtype=np.int8),
    )
    split = split_interactions(log, 1, make_settings(split="given", split_column="part"))
    assert by_user(split.valid) == {0: ([0, 1], [3])}
    assert by_user(split.test) == {0: ([0, 1, 2, 3], [5])}
    assert split.train_weights.tolist() == [0.5, 1.0]
    assert split.protocol.endswith("names; evaluated on positives of kind buy; all items are ranked")


ROWS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 5), st.sampled_from([VIEW, VIEW, BUY, BUY, SKIP])),
    min_size=40,
    max_size=60,
).filter(lambda rows: {BUY, VIEW} <= {kind for *_, kind in rows})
SETTINGS = [{}, {"split": "global_time", "valid_from": 4, "test_from": 7}, {"split": "random"}]


@given(ROWS, st.sampled_from(SETTINGS))
def test_every_positive_is_in_one_part_and_every_target_in_its_own(rows, settings):
    users, times, items, kinds = zip(*rows, strict=True)
    log = make_log(kinds, users, times, items=items)
    try:
        split = split_interactions(log, 4, make_settings(**settings))
    except DataError:  # a part is empty
        return
    positives = log.positives
    rows_by_part = {
        part: list(
            zip(
                *(column[split.positive_parts == part].tolist() for column in (positives.users, positives.items)),
                strict=True,
            )
        )
        for part in (TRAIN, VALID, TEST)
    }
    assert sum(map(len, rows_by_part.values())) == len(positives.users)
    assert list(zip(split.train.segment_ids.tolist(), split.train.values.tolist(), strict=True)) == rows_by_part[TRAIN]
    assert split.train_weights.tolist() == positives.weights[split.positive_parts == TRAIN].tolist()
    bought = {(user, item) for user, _, item, kind in rows if kind == BUY}
    for part, cases in ((VALID, split.valid), (TEST, split.test)):
        for user, (_, targets) in by_user(cases).items():
            assert {(user, item) for item in targets} <= set(rows_by_part[part]) & bought
    for user, _, position in to_tuples(split.hard_negatives):
        assert position <= len(split.train[user])
