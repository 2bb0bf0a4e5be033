"""From files to arrays; the tables hold values from after the cutoff, which must not leak into the training."""

import numpy as np
import polars as pl
import pytest

from vecall.data.dataset import read_dataset
from vecall.data.settings import DataSettings
from vecall.data.vocabulary import OOV
from vecall.errors import DataError
from vecall.schema import Schema

SCHEMA = Schema.model_validate(
    {
        "interactions": {"user": "u", "item": "i", "time": "t"},
        "items": {
            "id": "i",
            "id_type": "integer",
            "features": {"price": {"kind": "numeric"}, "kind": {"kind": "category"}, "words": {"kind": "tags"}},
        },
        "users": {"id": "u", "id_type": "string", "features": {"town": {"kind": "category"}}},
    }
)


@pytest.fixture
def settings(tmp_path):
    """Settings of tables in which only item 3 and user `z`, who come after the cutoff, have outlying features."""
    log = {"u": ["b", "a", "a", "b", "a", "b", "z"], "i": [2, 1, 2, 1, 3, 3, 3], "t": [1, 1, 2, 2, 10, 11, 12]}
    items = {"i": [3, 2, 1, 4], "price": [1e6, 4.0, 2.0, None], "kind": ["future", "x", "y", "never"]}
    users = {"u": ["z", "a", "b"], "town": ["future", "here", "there"]}
    for name, table in (("log", log), ("items", items | {"words": ["future", "x|y", None, "never"]}), ("users", users)):
        pl.DataFrame(table).write_csv(tmp_path / f"{name}.csv")
    paths = {name: tmp_path / f"{name}.csv" for name in ("items", "users")}
    return DataSettings(interactions=(tmp_path / "log.csv",), split="global_time", valid_from=10, test_from=11, **paths)


def test_encoders_are_not_fitted_on_rows_after_the_cutoff(settings):
    dataset = read_dataset(settings, SCHEMA)
    train = dataset.split(settings).train
    items, users = dataset.fit_feature_encoders(train.values, np.flatnonzero(train.lengths))
    assert (items.state.numeric["price"].mean, items.state.numeric["price"].std) == (3.0, np.sqrt(2))
    assert items.state.categorical["kind"].values == ("x", "y")
    assert users.state.categorical["town"].values == ("here", "there")
    assert "future" not in items.state.model_dump_json() + users.state.model_dump_json()
    encoded_items = items.encode(dataset.catalogue.item_features)
    encoded_users = users.encode(dataset.catalogue.user_features)
    assert encoded_items["kind"].tolist() == [3, 2, OOV, OOV]
    assert encoded_items["words"].tolist() == [[0, 0], [2, 3], [0, 0], [0, 0]]
    assert encoded_users["town"].tolist() == [2, 3, OOV]
    leaky, _ = dataset.fit_feature_encoders(np.arange(4), np.arange(3))  # the assertions above would detect a leak
    assert leaky.state.numeric["price"].mean > 1e5
    assert "future" in leaky.state.model_dump_json()


def test_histories_and_popularity_include_the_test_period(settings):
    dataset = read_dataset(settings, SCHEMA)
    histories = [dataset.histories[row].tolist() for row in range(3)]
    assert histories == [[0, 1, 2], [1, 0, 2], [2]]
    assert dataset.popularity.tolist() == [2, 2, 3, 0]
    assert dataset.popularity.dtype == np.float32
    assert dict(dataset.dropped_counts) == {}


def test_histories_and_popularity_hold_only_positives(tmp_path):
    log = tmp_path / "log.parquet"
    pl.DataFrame({"u": ["a", "a", "a"], "i": ["10", "9", "9"], "stars": [5, 1, 4]}).write_parquet(log)
    schema = Schema.model_validate(
        {
            "interactions": {"user": "u", "item": "i", "label": "stars", "positive": 4},
            "items": {"id": "i", "id_type": "string"},
            "users": {"id": "u", "id_type": "string"},
        }
    )
    dataset = read_dataset(DataSettings(interactions=(log,)), schema)
    assert dataset.catalogue.items.to_ids(np.arange(2)) == ["10", "9"]  # ordered by bytes
    assert (dataset.histories[0].tolist(), dataset.popularity.tolist()) == ([0, 1], [1, 1])


def test_interaction_with_an_unknown_item_is_an_error_or_counted(settings):
    pl.DataFrame({"u": ["a", "a"], "i": [1, 77], "t": [1, 2]}).write_csv(settings.interactions[0])
    with pytest.raises(DataError, match=r"'i': expected an item of the items table, .*row 2: '77'"):
        read_dataset(settings, SCHEMA)
    dataset = read_dataset(settings.model_copy(update={"bad_rows": "drop"}), SCHEMA)
    assert dict(dataset.dropped_counts) == {"log.csv: i: not an item of the items table (of 2 rows)": 1}
    assert dataset.interactions.items.tolist() == [0]


@pytest.mark.parametrize(
    ("repeats", "items", "is_positive"),
    [
        ("keep", [0, 1, 0, 0, 1], [False, True, True, True, False]),
        ("first", [0, 1, 0], [False, True, True]),
        ("last", [0, 0, 1], [False, True, False]),
    ],
)
def test_repeats_are_kept_or_dropped_in_the_order_of_time_and_counted(tmp_path, repeats, items, is_positive):
    """The user is shown item 1, rates 2, takes 1, takes it again, and rates 2 lower. The file has them in disorder."""
    log = {"t": [5, 1, 3, 4, 2], "i": [2, 1, 1, 1, 2], "stars": [1, 5, 5, 5, 5], "shown": [0, 1, 0, 0, 0]}
    path = tmp_path / "log.csv"
    pl.DataFrame({"u": ["a"] * 5} | log).write_csv(path)
    names = {"user": "u", "item": "i", "time": "t", "label": "stars", "positive": 3, "impression": "shown"}
    schema = Schema.model_validate(
        {
            "interactions": names,
            "items": {"id": "i", "id_type": "integer"},
            "users": {"id": "u", "id_type": "string"},
        }
    )
    dataset = read_dataset(DataSettings(interactions=(path,), repeats=repeats), schema)
    interactions = dataset.interactions
    assert (interactions.items.tolist(), interactions.is_positive.tolist()) == (items, is_positive)
    reason = f"repeats of the same user, item and kind (data.repeats = '{repeats}')"
    assert dataset.dropped_counts == ({} if repeats == "keep" else {reason: 2})
