import numpy as np
import pytest

from vecall.errors import QueryError
from vecall.live.snapshot import Snapshot
from vecall.recall.query import Query, UnknownInputs
from vecall.recall.resolve import resolve_query

VECTORS = np.vstack([np.eye(4), 2 * np.eye(4)])  # items 100 to 107
USERS = [
    ("ann", {"age": 1, "taste": [0, 0, 0, 7]}, [0, 1, 2, 2, 3]),
    ("bob", {}, []),
]


@pytest.fixture
def release(release_of, towers):
    return release_of(VECTORS, users=USERS, towers=towers(), popularity=range(8))


def ask(release, **query):
    asked = resolve_query(Query(**query), Snapshot.from_release(release))
    vector = None if asked.vector is None else asked.vector[0].tolist()
    return vector, asked.excluded_rows.tolist(), asked.fallback, asked.unknown


def test_a_known_user_is_the_stored_history_and_features(release):
    """The towers read the three newest items; all five are excluded."""
    assert ask(release, user_id="ann") == ([1, 0, 2, 8], [0, 1, 2, 3], None, UnknownInputs())
    assert ask(release, user_id="ann", exclude_seen=False)[1] == []
    assert ask(release, user_id="ann", exclude=[107, 999, 100])[1:] == ([0, 1, 2, 3, 7], None, UnknownInputs(exclude=1))


def test_a_given_history_replaces_the_stored_one_and_both_are_seen(release):
    assert ask(release, user_id="ann", history=[107]) == ([1, 0, 0, 9], [0, 1, 2, 3, 7], None, UnknownInputs())
    assert ask(release, user_id="ann", history=[]) == ([1, 0, 0, 7], [0, 1, 2, 3], None, UnknownInputs())
    assert ask(release, history=np.array([100, 104])) == ([3, 0, 0, 0], [0, 4], None, UnknownInputs())


def test_recent_items_come_after_the_stored_or_given_history(release):
    """The towers read the three newest items."""
    assert ask(release, user_id="ann", recent=[107]) == ([1, 0, 1, 10], [0, 1, 2, 3, 7], None, UnknownInputs())
    assert ask(release, user_id="ann", history=[101], recent=[107, 999]) == (
        [1, 1, 0, 9],
        [0, 1, 2, 3, 7],
        None,
        UnknownInputs(history=1),
    )
    assert ask(release, recent=[100, 104]) == ([3, 0, 0, 0], [0, 4], None, UnknownInputs())
    assert ask(release, user_id="nobody", recent=[101]) == ([0, 1, 0, 0], [1], "history", UnknownInputs(user=True))
    assert ask(release, user_id="ann", recent=[107], exclude_seen=False)[1] == []
    assert ask(release, recent=[]) == (None, [], "popular", UnknownInputs())


def test_of_whom_nothing_is_known_gets_what_is_popular(release):
    """Known or not: the tower's answer to nothing at all is nobody's taste."""
    assert ask(release, user_id="bob") == (None, [], "popular", UnknownInputs())
    assert ask(release, user_id="bob", user={"age": None}) == (None, [], "popular", UnknownInputs())
    assert ask(release, user={"age": None, "taste": None}) == (None, [], "popular", UnknownInputs())
    assert ask(release, user_id="bob", user={"age": 3})[2] is None
    assert ask(release, user_id="bob", recent=[101])[2] is None


def test_given_features_override_the_stored_ones(release):
    assert ask(release, user_id="ann", history=[], user={"age": 5})[0] == [5, 0, 0, 7]
    assert ask(release, user_id="ann", history=[], user={"taste": None})[0] == [1, 0, 0, 0]
    assert ask(release, user={"taste": [1, 2, 3, 4.5]}) == ([1, 2, 3, 4.5], [], None, UnknownInputs())


def test_a_vector_skips_the_towers(release):
    assert ask(release, vector=[1, 2, 3, 4], history=[100], user_id="nobody") == (
        [1, 2, 3, 4],
        [0],
        None,
        UnknownInputs(user=True),
    )


def test_what_stands_in_for_an_unknown_user(release):
    assert ask(release, user_id="nobody") == (None, [], "popular", UnknownInputs(user=True))
    assert ask(release, user_id="nobody", history=[101, 999]) == ([0, 1, 0, 0], [1], "history", UnknownInputs(True, 1))
    assert ask(release, user_id="nobody", history=[999]) == (None, [], "popular", UnknownInputs(True, 1))
    assert ask(release, user_id="nobody", user={"age": 3}) == ([3, 0, 0, 0], [], None, UnknownInputs(user=True))
    assert ask(release, user={}) == (None, [], "popular", UnknownInputs())
    assert ask(release, history=[]) == (None, [], "popular", UnknownInputs())
    assert ask(release, user_id="\ud800") == (None, [], "popular", UnknownInputs(user=True))


def test_towers_that_read_no_history_know_nobody_by_one(release_of, towers):
    release = release_of(VECTORS, users=USERS, towers=towers(length=0), popularity=range(8))
    assert ask(release, user_id="nobody", history=[101]) == (None, [1], "popular", UnknownInputs(user=True))
    assert ask(release, user_id="ann") == ([1, 0, 0, 7], [0, 1, 2, 3], None, UnknownInputs())


def test_towers_without_features(release_of, towers):
    release = release_of(VECTORS, users=USERS, towers=towers(features={}), popularity=range(8))
    assert ask(release, user_id="ann") == ([0, 0, 2, 1], [0, 1, 2, 3], None, UnknownInputs())
    assert ask(release, user_id="bob") == (None, [], "popular", UnknownInputs())  # known, but nothing is known of them
    with pytest.raises(QueryError, match="no such feature") as caught:
        ask(release, user={"age": 3})
    assert caught.value.field == "user.age"


@pytest.mark.parametrize(
    ("query", "field", "message"),
    [
        ({"user_id": 3}, "user_id", "ids here are strings, got 3"),
        ({"history": ["100"]}, "history", "ids here are integers, got '100'"),
        ({"user_id": "ann", "exclude": ["100"]}, "exclude", "ids here are integers, got '100'"),
        ({"vector": [1, 2, 3]}, "vector", r"expected 4 numbers, got shape \[3\]"),
        ({"vector": np.ones((1, 4))}, "vector", r"expected 4 numbers, got shape \[1, 4\]"),
        ({"vector": [1, 2, 3, 1e39]}, "vector", r"expected finite numbers within ±1e\+29, got 1e\+39"),
        ({"vector": [1, 2, 3, 2e29]}, "vector", r"expected finite numbers within ±1e\+29, got 2e\+29"),
        ({"vector": np.array([1, 2, 3, np.nan])}, "vector", "expected finite numbers .* got nan"),
        ({"user": {"agee": 3}}, "user.agee", r"expected some of \['age', 'town', 'taste'\]"),
        ({"user": {"age": "old"}}, "user.age", "expected a finite number or null, got 'old'"),
        ({"user": {"age": True}}, "user.age", "expected a finite number"),
        ({"user": {"town": "\ud800"}}, "user.town", "expected a string"),
        ({"user": {"taste": [1, 2]}}, "user.taste", "expected a list of 4"),
        ({"user": {"taste": [1, 2, 3, 1e39]}}, "user.taste", "expected a list of 4"),
    ],
)
def test_what_does_not_go_with_the_release_is_told_by_its_name(release, query, field, message):
    with pytest.raises(QueryError, match=message) as caught:
        ask(release, **query)
    assert (caught.value.field, caught.value.code) == (field, "invalid")


def test_without_towers_a_query_brings_its_vector(release_of):
    release = release_of(VECTORS)
    assert ask(release, vector=[0, 0, 0, 1], user_id="x", history=[104]) == (
        [0, 0, 0, 1],
        [4],
        None,
        UnknownInputs(user=True),
    )
    with pytest.raises(QueryError, match="no towers") as caught:
        ask(release, history=[100])
    assert caught.value.field == "vector"
