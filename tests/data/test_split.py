"""Splits by hand, and proof that nothing is judged with the help of its own future."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecall.data.interactions import Interactions
from vecall.data.settings import DataSettings
from vecall.data.split import split_global_time, split_interactions, split_leave_one_out
from vecall.errors import DataError

HALFWAY = 100.0


def log_of(users, times, positive=None, items=None, *, dated=False):
    """Interactions in order. Without items each is of an item of its own: its place in that order."""
    users, times = np.asarray(users, dtype=np.int64), np.asarray(times)
    order = np.lexsort((times, users))
    items = np.arange(len(users)) if items is None else np.asarray(items)[order]
    positive = np.ones(len(users), bool) if positive is None else np.asarray(positive, dtype=bool)[order]
    return Interactions(users[order], items.astype(np.int64), times[order], positive, dated)


def lists_of(sequences):
    return [sequences[place].tolist() for place in range(len(sequences))]


def pairs_of(negatives):
    return list(zip(negatives.users.tolist(), negatives.items.tolist(), negatives.positions.tolist(), strict=True))


def judged(cases):
    return {
        user: (cases.histories[place].tolist(), cases.targets[place].tolist())
        for place, user in enumerate(cases.users.tolist())
    }


def test_leave_one_out_by_hand():
    """User 0 ends on a tie and user 1 has a repeat; 2 has two positives, 3 a negative alone, 4 nothing at all."""
    users = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3]
    times = [1, 2, 9, 9, 1, 2, 3, 4, 1, 2, 3, 1]
    items = [5, 6, 8, 7, 1, 2, 1, 9, 3, 4, 5, 6]
    positive = [1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 0, 0]
    made = split_leave_one_out(log_of(users, times, positive, items), 5)
    assert lists_of(made.train) == [[5, 6], [1], [3, 4], [], []]
    assert judged(made.valid) == {0: ([5, 6], [8]), 1: ([1], [1])}
    assert judged(made.test) == {0: ([5, 6, 8], [7]), 1: ([1, 1], [9])}
    assert pairs_of(made.negatives) == [(1, 2, 1), (2, 5, 2), (3, 6, 0)]
    assert made.dropped_counts == {"users with fewer than 3 positives": 3}
    assert made.protocol.startswith("leave-one-out")


def test_a_negative_is_learned_from_only_before_its_users_validation_item():
    """All at one time: the order of the file decides. Items 1, 3, 5 are rated low; 2 is the validation item."""
    made = split_leave_one_out(log_of([0] * 6, [7] * 6, [1, 0, 1, 0, 1, 0]), 1)
    assert judged(made.valid) == {0: ([0], [2])}
    assert pairs_of(made.negatives) == [(0, 1, 1)]


def test_global_time_by_hand():
    users = [0, 0, 0, 0, 1, 1, 2, 2, 3]
    times = [1, 10, 10, 20, 5, 9, 15, 25, 10]
    items = [1, 2, 2, 3, 4, 5, 1, 3, 6]
    positive = [1, 1, 1, 1, 1, 0, 1, 1, 0]
    made = split_global_time(log_of(users, times, positive, items), 5, 10, 20)
    assert lists_of(made.train) == [[1], [4], [], [], []]
    assert judged(made.valid) == {0: ([1], [2]), 2: ([], [1])}  # distinct targets; a cut belongs to what follows
    assert judged(made.test) == {0: ([1, 2, 2], [3]), 2: ([1], [3])}
    assert pairs_of(made.negatives) == [(1, 5, 1)]
    assert made.dropped_counts == {"users with nothing in the test window": 3}
    assert "learned before 10, judged by what came from 20 on" in made.protocol


LOGS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6), st.booleans()), min_size=1, max_size=40)


@given(LOGS, st.sampled_from(["leave_one_out", (2, 4), (0, 1), (5, 6)]))
def test_no_history_is_of_the_future(rows, how):
    """Items are places in the order of the log, so each says when and by whom it was taken."""
    log = log_of(*zip(*rows, strict=True))
    made = split_leave_one_out(log, 5) if how == "leave_one_out" else split_global_time(log, 5, *how)
    for cases in (made.valid, made.test):
        for user, (history, targets) in judged(cases).items():
            assert targets
            assert (log.users[history + targets] == user).all()
            assert log.is_positive[history + targets].all()
            earlier = np.flatnonzero((log.users == user) & log.is_positive)
            assert history == earlier[earlier < min(targets)].tolist()  # all that came before, in order, no more
            assert (log.times[history] <= log.times[targets].min()).all()
    for user in range(5):
        held_out = judged(made.valid).get(user, ([], []))[1] + judged(made.test).get(user, ([], []))[1]
        learned = made.train[user].tolist()
        own = np.flatnonzero((log.users == user) & log.is_positive)
        assert learned + held_out == own.tolist()
    for user, item, position in pairs_of(made.negatives):
        before = np.flatnonzero((log.users == user) & log.is_positive & (np.arange(len(log.users)) < item))
        assert made.train[user][:position].tolist() == before.tolist()
    if how != "leave_one_out":
        assert (log.times[made.train.values] < how[0]).all()
        assert (log.times[made.negatives.items] < how[0]).all()
        assert all((log.times[made.valid.targets.values] >= how[0]).tolist())
        assert (log.times[made.valid.targets.values] < how[1]).all()
        assert (log.times[made.test.histories.values] < how[1]).all()
        assert (log.times[made.test.targets.values] >= how[1]).all()


def drifting(rng, n_users=60):
    """Items 0 to 19 are taken before 100, items 20 to 39 from then on: the world changes halfway."""
    times = rng.permutation(np.arange(200.0).repeat(n_users // 6))
    users = rng.integers(0, n_users, len(times))
    items = np.where(times < HALFWAY, rng.integers(0, 20, len(times)), rng.integers(20, 40, len(times)))
    return log_of(users, times, rng.random(len(times)) < 0.9, items)


def knows_the_future(made):
    """Whether what is learned, or read as a history, holds what nobody could know then."""
    learned = np.concatenate([made.train.rows, made.negatives.items, made.valid.histories.rows])
    return bool((learned >= 20).any())


def test_a_planted_drift_does_not_reach_the_training_and_a_leak_would_show():
    log = drifting(np.random.default_rng(0))
    honest = split_global_time(log, 60, HALFWAY, 150)
    assert not knows_the_future(honest)
    assert (honest.valid.targets.values >= 20).all()
    assert (honest.test.targets.values >= 20).all()
    assert (honest.test.histories.values >= 20).any()  # validation is the test's past
    shuffled = np.random.default_rng(1).permutation(log.times)
    leaky = split_global_time(Interactions(log.users, log.items, shuffled, log.is_positive), 60, HALFWAY, 150)
    assert knows_the_future(leaky)
    one = log.times.copy()
    one[np.flatnonzero(log.is_positive & (log.items >= 20))[0]] = (
        HALFWAY - 1
    )  # a single interaction, moved before the cut
    assert knows_the_future(
        split_global_time(Interactions(log.users, log.items, one, log.is_positive), 60, HALFWAY, 150)
    )


def settings(**cuts):
    return DataSettings(interactions=("log.csv",), split="global_time" if cuts else "leave_one_out", **cuts)


def test_cuts_are_of_the_time_columns_kind():
    day = 86_400_000_000
    dated = log_of([0] * 6, np.arange(6) * day, dated=True)
    for cuts in (("1970-01-03", "1970-01-05"), ("1970-01-03T08:00:00+08:00", "1970-01-05T00:00:00Z")):
        made = split_interactions(dated, 1, settings(valid_from=cuts[0], test_from=cuts[1]))
        assert lists_of(made.train) == [[0, 1]]
        assert judged(made.test) == {0: ([0, 1, 2, 3], [4, 5])}
        assert "before 1970-01-03T00:00:00+00:00" in made.protocol
    with pytest.raises(DataError, match=r"data.valid_from is 3, but the interactions' times are datetimes"):
        split_interactions(dated, 1, settings(valid_from=3, test_from="1970-01-05"))
    with pytest.raises(DataError, match=r"data.test_from is '1970-01-05', but the interactions' times are numbers"):
        split_interactions(log_of([0], [1]), 1, settings(valid_from=3, test_from="1970-01-05"))


def test_an_empty_part_is_an_error_that_tells_what_there_is():
    with pytest.raises(DataError, match=r"valid_from must lie before data\.test_from, got 3"):
        split_interactions(log_of([0], [1]), 1, settings(valid_from=3, test_from=3))
    log = log_of([0, 0], [1527854400, 1527854401])
    with pytest.raises(DataError, match=r"nothing falls into train\..* from 1527854400 to 1527854401"):
        split_interactions(log, 1, settings(valid_from=3, test_from=4))
    with pytest.raises(DataError, match="nothing falls into test"):
        split_interactions(log, 1, settings(valid_from=1527854401, test_from=1527854402))
    with pytest.raises(DataError, match=r"nothing falls into validation.*users with fewer than 3 positives': 1"):
        split_interactions(log, 1, settings())
