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
def release(make_release, make_encoder):
    return make_release(VECTORS, users=USERS, encoder=make_encoder(), popularity=range(8))


def resolve(release, **query):
    """(vector, excluded rows, fallback, unknown) of a query."""
    resolved = resolve_query(Query(**query), Snapshot.from_release(release))
    vector = None if resolved.query_matrix is None else resolved.query_matrix[0].tolist()
    return vector, resolved.excluded_rows.tolist(), resolved.fallback, resolved.unknown


def test_known_user_has_the_stored_history_and_features(release):
    """The encoder reads the three newest items; all five are excluded."""
    assert resolve(release, user_id="ann") == ([1, 0, 2, 8], [0, 1, 2, 3], None, UnknownInputs())
    assert resolve(release, user_id="ann", exclude_seen=False)[1] == []
    assert resolve(release, user_id="ann", exclude=[107, 999, 100])[1:] == (
        [0, 1, 2, 3, 7],
        None,
        UnknownInputs(exclude=1),
    )


def test_encoder_of_distinct_histories_reads_repeats_once(make_release, make_encoder):
    release = make_release(VECTORS, users=USERS, encoder=make_encoder(distinct_history=True), popularity=range(8))
    assert resolve(release, user_id="ann")[0] == [1, 1, 1, 8]  # items 1, 2 and 3
    assert resolve(release, history=[100, 101, 102, 100, 100])[0] == [1, 1, 1, 0]
    assert resolve(release, history=[100, 101, 102], recent=[101, 103, 103])[0] == [0, 1, 1, 1]


def test_history_of_the_query_replaces_the_stored_one_and_both_are_excluded(release):
    assert resolve(release, user_id="ann", history=[107]) == ([1, 0, 0, 9], [0, 1, 2, 3, 7], None, UnknownInputs())
    assert resolve(release, user_id="ann", history=[]) == ([1, 0, 0, 7], [0, 1, 2, 3], None, UnknownInputs())
    assert resolve(release, history=np.array([100, 104])) == ([3, 0, 0, 0], [0, 4], None, UnknownInputs())


def test_recent_items_are_appended_to_the_history(release):
    """The encoder reads the three newest items."""
    assert resolve(release, user_id="ann", recent=[107]) == ([1, 0, 1, 10], [0, 1, 2, 3, 7], None, UnknownInputs())
    assert resolve(release, user_id="ann", history=[101], recent=[107, 999]) == (
        [1, 1, 0, 9],
        [0, 1, 2, 3, 7],
        None,
        UnknownInputs(history=1),
    )
    assert resolve(release, recent=[100, 104]) == ([3, 0, 0, 0], [0, 4], None, UnknownInputs())
    assert resolve(release, user_id="nobody", recent=[101]) == ([0, 1, 0, 0], [1], "history", UnknownInputs(user=True))
    assert resolve(release, user_id="ann", recent=[107], exclude_seen=False)[1] == []
    assert resolve(release, recent=[]) == (None, [], "popular", UnknownInputs())


def test_user_without_history_and_features_gets_popular_items(release):
    """Whether the user id is known or not: the encoder's output for an empty input means nothing."""
    assert resolve(release, user_id="bob") == (None, [], "popular", UnknownInputs())
    assert resolve(release, user_id="bob", user={"age": None}) == (None, [], "popular", UnknownInputs())
    assert resolve(release, user={"age": None, "taste": None}) == (None, [], "popular", UnknownInputs())
    assert resolve(release, user_id="bob", user={"age": 3})[2] is None
    assert resolve(release, user_id="bob", recent=[101])[2] is None


def test_features_of_the_query_override_the_stored_ones(release):
    assert resolve(release, user_id="ann", history=[], user={"age": 5})[0] == [5, 0, 0, 7]
    assert resolve(release, user_id="ann", history=[], user={"taste": None})[0] == [1, 0, 0, 0]
    assert resolve(release, user={"taste": [1, 2, 3, 4.5]}) == ([1, 2, 3, 4.5], [], None, UnknownInputs())


def test_vector_of_the_query_skips_the_encoder(release):
    assert resolve(release, vector=[1, 2, 3, 4], history=[100], user_id="nobody") == (
        [1, 2, 3, 4],
        [0],
        None,
        UnknownInputs(user=True),
    )


def test_user_features_are_read_beside_a_vector(release):
    """A ranker reads them."""
    snapshot = Snapshot.from_release(release)
    features = resolve_query(Query(vector=[1, 2, 3, 4], user_id="ann", user={"age": 5}), snapshot).user_features
    assert features.to_dicts() == [{"age": 5.0, "town": None, "taste": [0, 0, 0, 7]}]
    assert resolve_query(Query(vector=[1, 2, 3, 4]), snapshot).user_features is None
    with pytest.raises(QueryError, match=r"user.height: unknown feature"):
        resolve(release, vector=[1, 2, 3, 4], user={"height": 5})


def test_fallback_of_an_unknown_user(release):
    assert resolve(release, user_id="nobody") == (None, [], "popular", UnknownInputs(user=True))
    assert resolve(release, user_id="nobody", history=[101, 999]) == (
        [0, 1, 0, 0],
        [1],
        "history",
        UnknownInputs(True, 1),
    )
    assert resolve(release, user_id="nobody", history=[999]) == (None, [], "popular", UnknownInputs(True, 1))
    assert resolve(release, user_id="nobody", user={"age": 3}) == ([3, 0, 0, 0], [], None, UnknownInputs(user=True))
    assert resolve(release, user={}) == (None, [], "popular", UnknownInputs())
    assert resolve(release, history=[]) == (None, [], "popular", UnknownInputs())
    assert resolve(release, user_id="\ud800") == (None, [], "popular", UnknownInputs(user=True))


def test_encoder_without_history_ignores_the_history(make_release, make_encoder):
    release = make_release(VECTORS, users=USERS, encoder=make_encoder(length=0), popularity=range(8))
    assert resolve(release, user_id="nobody", history=[101]) == (None, [1], "popular", UnknownInputs(user=True))
    assert resolve(release, user_id="ann") == ([1, 0, 0, 7], [0, 1, 2, 3], None, UnknownInputs())


def test_encoder_without_user_features_refuses_features(make_release, make_encoder):
    release = make_release(VECTORS, users=USERS, encoder=make_encoder(features={}), popularity=range(8))
    assert resolve(release, user_id="ann") == ([0, 0, 2, 1], [0, 1, 2, 3], None, UnknownInputs())
    assert resolve(release, user_id="bob") == (None, [], "popular", UnknownInputs())  # known, but without a history
    with pytest.raises(QueryError, match="unknown feature; this release has") as caught:
        resolve(release, user={"age": 3})
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
        ({"user": {"agee": 3}}, "user.agee", r"this release has \['age', 'town', 'taste'\]"),
        ({"user": {"age": "old"}}, "user.age", "expected a finite number or null, got 'old'"),
        ({"user": {"age": True}}, "user.age", "expected a finite number"),
        ({"user": {"town": "\ud800"}}, "user.town", "expected a string"),
        ({"user": {"taste": [1, 2]}}, "user.taste", "expected a list of 4"),
        ({"user": {"taste": [1, 2, 3, 1e39]}}, "user.taste", "expected a list of 4"),
    ],
)
def test_query_that_does_not_fit_the_release_is_refused_by_field(release, query, field, message):
    with pytest.raises(QueryError, match=message) as caught:
        resolve(release, **query)
    assert (caught.value.field, caught.value.code) == (field, "invalid")


def test_user_vector_that_is_not_finite_is_refused(release):
    """Whatever channels are asked: scores would be infinite."""
    with pytest.raises(QueryError, match="no finite vector for this user") as caught:
        resolve(release, user={"taste": [3e38] * 4})
    assert (caught.value.field, caught.value.code) == ("user", "invalid")


def test_release_without_towers_requires_a_vector(make_release):
    release = make_release(VECTORS)
    assert resolve(release, vector=[0, 0, 0, 1], user_id="x", history=[104]) == (
        [0, 0, 0, 1],
        [4],
        None,
        UnknownInputs(user=True),
    )
    with pytest.raises(QueryError, match="no towers") as caught:
        resolve(release, history=[100])
    assert caught.value.field == "vector"
