"""Splits of small logs, and checks that no history or training data come from the future of a target."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.ragged import to_lists
from support.splits import by_user, make_interactions, to_tuples

from vecall.data.interactions import Interactions
from vecall.data.settings import DataSettings
from vecall.data.split import TEST, TRAIN, VALID
from vecall.data.splitting import split_interactions
from vecall.data.time_splits import split_global_time, split_last_positives
from vecall.data.unordered_splits import split_at_random
from vecall.errors import DataError

HALFWAY = 100.0


def test_last_positives_of_known_interactions():
    """User 0 ends on a tie and user 1 has a repeat; 2 has two positives, 3 only a negative, 4 no interactions."""
    users = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3]
    times = [1, 2, 9, 9, 1, 2, 3, 4, 1, 2, 3, 1]
    items = [5, 6, 8, 7, 1, 2, 1, 9, 3, 4, 5, 6]
    is_positive = [1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 0, 0]
    split = split_last_positives(make_interactions(users, times, is_positive, items), 5)
    assert to_lists(split.train) == [[5, 6], [1], [3, 4], [], []]
    assert by_user(split.valid) == {0: ([5, 6], [8]), 1: ([1], [1])}
    assert by_user(split.test) == {0: ([5, 6, 8], [7]), 1: ([1, 1], [9])}
    assert to_tuples(split.hard_negatives) == [(1, 2, 1), (2, 5, 2), (3, 6, 0)]
    assert split.user_counts_by_reason == {"users with fewer than 3 positives": 3}
    assert split.protocol.startswith("leave-one-out")


def test_negatives_after_the_validation_item_of_their_user_are_not_in_the_training():
    """All times are equal, so the order of the file counts. Items 1, 3, 5 are negative; 2 is the validation item."""
    split = split_last_positives(make_interactions([0] * 6, [7] * 6, [1, 0, 1, 0, 1, 0]), 1)
    assert by_user(split.valid) == {0: ([0], [2])}
    assert to_tuples(split.hard_negatives) == [(0, 1, 1)]


def test_global_time_of_known_interactions():
    users = [0, 0, 0, 0, 1, 1, 2, 2, 3]
    times = [1, 10, 10, 20, 5, 9, 15, 25, 10]
    items = [1, 2, 2, 3, 4, 5, 1, 3, 6]
    is_positive = [1, 1, 1, 1, 1, 0, 1, 1, 0]
    split = split_global_time(make_interactions(users, times, is_positive, items), 5, 10, 20)
    assert to_lists(split.train) == [[1], [4], [], [], []]
    assert by_user(split.valid) == {
        0: ([1], [2]),
        2: ([], [1]),
    }  # distinct targets; a cutoff belongs to the later period
    assert by_user(split.test) == {0: ([1, 2, 2], [3]), 2: ([1], [3])}
    assert to_tuples(split.hard_negatives) == [(1, 5, 1)]
    assert split.user_counts_by_reason == {"users without positives in the test period": 3}
    assert "trained on interactions before 10, evaluated on those from 20 on" in split.protocol


LOGS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6), st.booleans()), min_size=1, max_size=40)


@given(LOGS, st.sampled_from([None, (2, 4), (0, 1), (5, 6)]))
def test_no_history_contains_the_future(rows, cutoffs):
    """The item of an interaction is its position, so items tell the user and the time of their interaction."""
    log = make_interactions(*zip(*rows, strict=True))
    split = split_last_positives(log, 5) if cutoffs is None else split_global_time(log, 5, *cutoffs)
    for cases in (split.valid, split.test):
        for user, (history, targets) in by_user(cases).items():
            assert targets
            assert (log.users[history + targets] == user).all()
            assert log.is_positive[history + targets].all()
            positives = np.flatnonzero((log.users == user) & log.is_positive)
            assert history == positives[positives < min(targets)].tolist()  # exactly the earlier ones, in order
            assert (log.times[history] <= log.times[targets].min()).all()
    for user in range(5):
        held_out = by_user(split.valid).get(user, ([], []))[1] + by_user(split.test).get(user, ([], []))[1]
        positives = np.flatnonzero((log.users == user) & log.is_positive)
        assert split.train[user].tolist() + held_out == positives.tolist()
    valid_start = {user: targets[0] for user, (_, targets) in by_user(split.valid).items()}
    is_in_training = [
        not positive and (time < cutoffs[0] if cutoffs else item < valid_start.get(user, len(rows)))
        for item, (user, time, positive) in enumerate(zip(log.users, log.times, log.is_positive, strict=True))
    ]
    assert split.hard_negatives.items.tolist() == np.flatnonzero(is_in_training).tolist()
    held_out = {
        item: part for part, cases in ((VALID, split.valid), (TEST, split.test)) for item in cases.targets.values
    }
    positive_items = log.items[log.is_positive].tolist()
    assert split.positive_parts.tolist() == [held_out.get(item, TRAIN) for item in positive_items]
    for user, item, position in to_tuples(split.hard_negatives):
        earlier = np.flatnonzero((log.users == user) & log.is_positive & (np.arange(len(log.users)) < item))
        assert split.train[user][:position].tolist() == earlier.tolist()
    if cutoffs is not None:
        valid_from, test_from = cutoffs
        assert (log.times[split.train.values] < valid_from).all()
        assert (log.times[split.hard_negatives.items] < valid_from).all()
        assert (log.times[split.valid.targets.values] >= valid_from).all()
        assert (log.times[split.valid.targets.values] < test_from).all()
        assert (log.times[split.test.histories.values] < test_from).all()
        assert (log.times[split.test.targets.values] >= test_from).all()


def make_drifting_interactions(rng, n_users=60):
    """Items 0 to 19 occur before time 100 only, items 20 to 39 from then on only."""
    times = rng.permutation(np.arange(200.0).repeat(n_users // 6))
    users = rng.integers(0, n_users, len(times))
    items = np.where(times < HALFWAY, rng.integers(0, 20, len(times)), rng.integers(20, 40, len(times)))
    return make_interactions(users, times, rng.random(len(times)) < 0.9, items)


def has_leak(split):
    """Whether the training data or the validation histories hold items that only occur later."""
    items = np.concatenate([split.train.values, split.hard_negatives.items, split.valid.histories.values])
    return bool((items >= 20).any())


def test_later_items_do_not_leak_into_the_training_and_a_leak_would_be_detected():
    log = make_drifting_interactions(np.random.default_rng(0))
    split = split_global_time(log, 60, HALFWAY, 150)
    assert not has_leak(split)
    assert (split.valid.targets.values >= 20).all()
    assert (split.test.targets.values >= 20).all()
    assert (split.test.histories.values >= 20).any()  # the validation period is before the test
    shuffled = np.random.default_rng(1).permutation(log.times)
    one_moved = log.times.copy()
    one_moved[np.flatnonzero(log.is_positive & (log.items >= 20))[0]] = HALFWAY - 1
    for times in (shuffled, one_moved):
        leaky = Interactions(log.users, log.items, times, log.is_positive)
        assert has_leak(split_global_time(leaky, 60, HALFWAY, 150))


def make_settings(**cutoffs):
    return DataSettings(interactions=("log.csv",), split="global_time" if cutoffs else "leave_one_out", **cutoffs)


def test_cutoffs_must_be_of_the_kind_of_the_time_column():
    day = 86_400_000_000
    log = make_interactions([0] * 6, np.arange(6) * day, has_datetimes=True)
    for valid_from, test_from in (
        ("1970-01-03", "1970-01-05"),
        ("1970-01-03T08:00:00+08:00", "1970-01-05T00:00:00Z"),
    ):
        split = split_interactions(log, 1, make_settings(valid_from=valid_from, test_from=test_from))
        assert to_lists(split.train) == [[0, 1]]
        assert by_user(split.test) == {0: ([0, 1, 2, 3], [4, 5])}
        assert "before 1970-01-03T00:00:00+00:00" in split.protocol
    with pytest.raises(DataError, match=r"data.valid_from is 3, but the interactions' times are datetimes"):
        split_interactions(log, 1, make_settings(valid_from=3, test_from="1970-01-05"))
    with pytest.raises(DataError, match=r"data.test_from is '1970-01-05', but the interactions' times are numbers"):
        split_interactions(make_interactions([0], [1]), 1, make_settings(valid_from=3, test_from="1970-01-05"))


def test_times_of_a_known_unit_are_reported_as_dates():
    log = dataclasses.replace(make_interactions([0] * 3, [1527854400, 1527854401, 1527854402]), time_unit="s")
    split = split_global_time(log, 1, 1527854401, 1527854402)
    assert "before 2018-06-01T12:00:01+00:00, evaluated on those from 2018-06-01T12:00:02+00:00" in split.protocol


def test_empty_part_is_an_error_with_the_range_of_the_data():
    with pytest.raises(DataError, match=r"valid_from must lie before data\.test_from, got 3"):
        split_interactions(make_interactions([0], [1]), 1, make_settings(valid_from=3, test_from=3))
    log = make_interactions([0, 0], [1527854400, 1527854401])
    with pytest.raises(DataError, match=r"the train part is empty\..* from 1527854400 to 1527854401"):
        split_interactions(log, 1, make_settings(valid_from=3, test_from=4))
    with pytest.raises(DataError, match="the test part is empty"):
        split_interactions(log, 1, make_settings(valid_from=1527854401, test_from=1527854402))
    with pytest.raises(DataError, match=r"the validation part is empty.*users with fewer than 3 positives': 1"):
        split_interactions(log, 1, make_settings())


@given(LOGS.filter(lambda rows: any(positive for *_, positive in rows)), st.integers(0, 2))
def test_random_split_learns_nothing_of_held_out_pairs(rows, seed):
    users, times, is_positive = zip(*rows, strict=True)
    log = make_interactions(users, times, is_positive, items=[7 * time % 5 for time in times])
    split = split_at_random(log, 5, seed)
    positives = log.positives
    pairs = list(zip(positives.users.tolist(), positives.items.tolist(), strict=True))
    held_out = {pair for pair, part in zip(pairs, split.positive_parts, strict=True) if part != TRAIN}
    train = [pair for pair in pairs if pair not in held_out]
    assert list(zip(split.train.segment_ids.tolist(), split.train.values.tolist(), strict=True)) == train
    targets = [by_user(cases).items() for cases in (split.valid, split.test)]
    assert {(user, item) for part in targets for user, (_, items) in part for item in items} == held_out
    assert not set(by_user(split.valid)) ^ set(by_user(split.test))
    for cases in (split.valid, split.test):
        for user, (history, _) in by_user(cases).items():
            assert history == [item for owner, item in train if owner == user]
    negatives = [(log.users[i], log.items[i], i) for i in np.flatnonzero(~log.is_positive)]
    expected = [
        (user, item, sum(u == user and (u, i) not in held_out for u, i in pairs_before(log, position)))
        for user, item, position in negatives
        if (user, item) not in held_out
    ]
    assert to_tuples(split.hard_negatives) == expected


def pairs_before(log, position):
    """The (user, item) pairs of the positives before a position of the log."""
    before = np.flatnonzero(log.is_positive[:position])
    return list(zip(log.users[before].tolist(), log.items[before].tolist(), strict=True))


def test_random_split_of_known_users():
    """User 0 has five items, one of them twice; user 1 has four, so nothing of it is held out."""
    users, items = [0] * 6 + [1] * 5, [0, 1, 2, 3, 4, 0, 0, 1, 2, 3, 3]
    log = make_interactions(users, list(range(11)), items=items)
    settings = DataSettings(interactions=("log.csv",), split="random", split_seed=4)
    split = split_interactions(log, 3, settings)
    ((valid_history, (valid_item,)),) = by_user(split.valid).values()
    ((test_history, (test_item,)),) = by_user(split.test).values()
    assert valid_history == test_history == [item for item in items[:6] if item not in {valid_item, test_item}]
    assert to_lists(split.train) == [test_history, [0, 1, 2, 3, 3], []]
    assert split.user_counts_by_reason == {"users with fewer than 5 items": 2}
    assert "(seed 4)" in split.protocol


def make_given(parts, *args, **kwargs):
    """Interactions with the part of each, in order of user and time."""
    log = make_interactions(*args, **kwargs)
    order = np.lexsort((args[1], args[0]))
    return dataclasses.replace(log, parts=np.asarray(parts, dtype=np.int8)[order])


def test_given_parts_are_kept_and_the_test_reads_training_and_validation():
    users, times = [0, 0, 0, 0, 0, 1, 1, 2], [1, 2, 3, 4, 5, 1, 2, 1]
    items, is_positive = [5, 6, 7, 8, 9, 1, 2, 3], [1, 1, 0, 1, 1, 0, 1, 1]
    parts = [TRAIN, VALID, TRAIN, TEST, TRAIN, TEST, TRAIN, TEST]
    log = make_given(parts, users, times, is_positive, items)
    split = split_interactions(log, 4, DataSettings(interactions=("log.csv",), split="given", split_column="part"))
    assert to_lists(split.train) == [[5, 9], [2], [], []]
    assert by_user(split.valid) == {0: ([5, 9], [6])}
    assert by_user(split.test) == {0: ([5, 6, 9], [8]), 2: ([], [3])}
    assert to_tuples(split.hard_negatives) == [(0, 7, 1)]  # after item 5; item 6 is not in the training
    assert split.positive_parts.tolist() == [TRAIN, VALID, TEST, TRAIN, TRAIN, TEST]
    assert split.user_counts_by_reason == {
        "users without positives in the test part": 2,
        "test users without a history (evaluated nevertheless)": 1,
    }
    assert split.protocol == "given: the parts that the table names; all items are ranked"


def test_given_parts_without_validation_give_a_tenth_of_the_training_to_it():
    users, times = np.repeat(np.arange(10), 11), np.tile(np.arange(11), 10)
    parts = np.where(times == 10, TEST, TRAIN)
    log = make_given(parts, users, times)
    settings = DataSettings(interactions=("log.csv",), split="given", split_column="part")
    split = split_interactions(log, 10, settings)
    valid = split.valid.targets.values
    assert len(valid) == 10
    assert sorted([*split.train.values, *valid, *split.test.targets.values]) == list(range(110))
    assert to_lists(split.test.histories) == [list(range(11 * user, 11 * user + 10)) for user in range(10)]
    assert (split.positive_parts[valid] == VALID).all()
    assert "a random tenth of the training as the validation" in split.protocol
    assert split_interactions(log, 10, settings).valid.targets.values.tolist() == valid.tolist()


def test_drawn_validation_pairs_are_no_hard_negatives():
    """Each user has each item twice: as a positive, and disliked."""
    users, items = np.repeat(np.arange(10), 20), np.tile(np.repeat(np.arange(10), 2), 10)
    times = np.tile(np.arange(20), 10)
    log = make_given(np.where(times < 18, TRAIN, TEST), users, times, np.tile([1, 0], 100), items)
    settings = DataSettings(interactions=("log.csv",), split="given", split_column="part")
    split = split_interactions(log, 10, settings)
    drawn = {(user, item) for user, (_, targets) in by_user(split.valid).items() for item in targets}
    negatives = {(user, item) for user, item, _ in to_tuples(split.hard_negatives)}
    assert drawn
    assert len(negatives) == 90 - len(drawn)
    assert not negatives & drawn


def make_later_test(n_users=40, n_items=20, *, has_times=True, swapped_users=0):
    """Users with 20 items each, of which the last four are the test; a dislike after the first item and the last."""
    users = np.repeat(np.arange(n_users), n_items + 2)
    times = np.tile([0, 0.5, *range(1, n_items), n_items - 0.5], n_users)
    is_positive = np.tile([1, 0, *[1] * (n_items - 1), 0], n_users)
    parts = np.tile([TRAIN, TRAIN, *[TRAIN] * (n_items - 5), *[TEST] * 4, TRAIN], n_users)
    is_swapped = (users < swapped_users) & np.isin(times, [1, n_items - 1])
    parts[is_swapped] = np.where(times[is_swapped] == 1, TEST, TRAIN)
    log = make_given(parts, users, times, is_positive, items=np.tile(np.arange(n_items + 2), n_users))
    return dataclasses.replace(log, has_times=has_times)


GIVEN = DataSettings(interactions=("log.csv",), split="given", split_column="part")


def test_validation_of_a_test_that_is_later_is_the_newest_tenth_of_the_training():
    log = make_later_test()
    split = split_interactions(log, 40, GIVEN)
    assert "the newest tenth of each user's training as the validation" in split.protocol
    counts = set()
    for user, (history, targets) in by_user(split.valid).items():
        positives = log.positives.items[log.positives.users == user].tolist()
        assert [*history, *targets] == positives[:16]  # the training: the targets are its end
        counts.add(len(targets))
    assert counts == {1, 2}  # a tenth of 16
    assert len(split.valid.targets.values) == pytest.approx(64, abs=10)
    assert all(len(history) == 16 for history, _ in by_user(split.test).values())
    # The dislike after the first item is learned from, that at the end is later than the validation.
    assert [item for _, item, _ in to_tuples(split.hard_negatives)] == [1] * 40


@pytest.mark.parametrize("settings", [{"has_times": False}, {"swapped_users": 3}])
def test_validation_is_random_without_times_and_where_the_test_is_not_later(settings):
    split = split_interactions(make_later_test(**settings), 40, GIVEN)
    assert "a random tenth of the training as the validation" in split.protocol
    assert any(history[-1] > max(targets) for history, targets in by_user(split.valid).values())


def test_equal_times_say_nothing_about_what_is_later():
    log = make_later_test()
    log = dataclasses.replace(log, times=np.zeros(len(log.times)))
    assert "a random tenth" in split_interactions(log, 40, GIVEN).protocol


def test_validation_is_random_where_the_newest_tenth_holds_nothing_to_evaluate():
    log = make_later_test()
    log = dataclasses.replace(log, is_target=(log.times < 5) | (log.parts == TEST))
    assert "a random tenth" in split_interactions(log, 40, GIVEN).protocol
