"""Kinds of interactions from the table to weights, targets and negatives."""

import numpy as np
import polars as pl
import pytest

from vecall.data import kind_reader, readers
from vecall.data.dataset import read_dataset
from vecall.data.settings import DataSettings
from vecall.errors import ConfigError, DataError
from vecall.schema import Schema

LOG = {
    "u": ["a", "a", "a", "a", "b", "b", "b"],
    "i": [1, 2, 2, 3, 1, 3, 2],
    "kind": ["view", "view", "buy", "skip", "wish", "buy", "view"],
    "stars": [5, 5, 5, 5, 5, 1, 5],
}


@pytest.fixture
def read(tmp_path):
    def write_and_read(log=LOG, settings=None, **interactions):
        path = tmp_path / "log.parquet"
        pl.DataFrame(log, strict=False).write_parquet(path)
        schema = Schema.model_validate(
            {
                "interactions": {"user": "u", "item": "i", "event": "kind"} | interactions,
                "items": {"id": "i", "id_type": "integer"},
                "users": {"id": "u", "id_type": "string"},
            }
        )
        return read_dataset(DataSettings(interactions=(path,), **settings or {}), schema)

    return write_and_read


def to_rows(interactions):
    """(user, item, positive) of each interaction."""
    return list(
        zip(interactions.users.tolist(), interactions.items.tolist(), interactions.is_positive.tolist(), strict=True)
    )


@pytest.fixture(params=[1, 2**22], autouse=True)
def batch_rows(request, monkeypatch):
    """Rows read at a time: the result is the same."""
    monkeypatch.setattr(readers, "_BATCH_ROWS", request.param)


def test_without_weights_all_kinds_weigh_the_same_and_nothing_is_dropped(read):
    dataset = read()
    interactions = dataset.interactions
    assert len(interactions.users) == 7
    assert interactions.is_positive.all()
    assert (interactions.weights, interactions.is_target, dataset.history_weights) == (None, None, None)
    assert dataset.dropped_counts == {}


def test_kinds_are_weighted_dropped_and_negative_as_the_schema_says(read):
    dataset = read(weights={"view": 0.25, "buy": 1.0}, negatives=["skip"], label="stars", positive=3)
    interactions = dataset.interactions
    # User b's wish is dropped, and its buy is labelled below the threshold.
    assert to_rows(interactions) == [(0, 0, 1), (0, 1, 1), (0, 1, 1), (0, 2, 0), (1, 2, 0), (1, 1, 1)]
    assert interactions.weights[interactions.is_positive].tolist() == [0.25, 0.25, 1.0, 0.25]
    assert interactions.is_target is None
    assert dataset.history_weights.tolist() == [0.25, 0.25, 1.0, 0.25]
    assert dataset.dropped_counts == {"log.parquet: kind: kinds in neither weights nor negatives, such as ['wish']": 1}


def test_kinds_of_weight_0_are_histories_and_no_targets(read):
    interactions = read(weights={"view": 0, "buy": 2, "wish": 2, "skip": 0}).interactions
    assert interactions.is_positive.all()
    assert interactions.weights.tolist() == [0, 0, 2, 0, 2, 2, 0]
    assert interactions.is_target.tolist() == [False, False, True, False, True, True, False]
    assert interactions.target_kinds == ["buy", "wish"]


def test_targets_are_the_kinds_that_are_held_out_whatever_they_weigh(read):
    interactions = read(targets=["buy"]).interactions
    assert interactions.weights is None
    assert interactions.is_target.tolist() == [False, False, True, False, False, True, False]
    assert interactions.filter(interactions.is_target).items.tolist() == [1, 2]


def test_targets_of_which_no_row_is_are_an_error(read):
    with pytest.raises(
        DataError, match=r"targets: no row is of kind rent; those of column 'kind' are \['view', 'buy', "
    ):
        read(targets=["rent"])


def test_equal_weights_of_the_kinds_that_occur_are_no_weights(read):
    assert read(weights={"view": 0.5, "buy": 0.5, "rent": 1.0}).interactions.weights is None


@pytest.mark.parametrize("kinds", [[1.0, 2.0, None], [1, 2, None], ["1.0", "2", ""], ["1", "2.0", None]])
def test_kinds_are_spelled_as_in_csv_and_a_missing_kind_is_an_error(read, kinds):
    log = {"u": ["a"] * 3, "i": [1, 2, 3], "kind": kinds}
    names = {"weights": {"1": 0.5, "2": 1.0}}
    with pytest.raises(DataError, match=r"'kind': expected the kind of the interaction.*1 invalid of 3 rows \(row 3"):
        read(log, **names)
    dataset = read(log, {"bad_rows": "drop"}, **names)
    assert dataset.interactions.weights.tolist() == [0.5, 1.0]


def test_repeats_of_different_kinds_are_kept(read):
    log = {"u": ["a"] * 5, "i": [1, 1, 1, 1, 2], "kind": ["view", "buy", "view", "view", "view"]}
    weights = {"view": 0.5, "buy": 1.0}
    first, last = (read(log, {"repeats": keep}, weights=weights) for keep in ("first", "last"))
    assert first.interactions.weights.tolist() == [0.5, 1.0, 0.5]
    assert last.interactions.weights.tolist() == [1.0, 0.5, 0.5]
    assert list(first.dropped_counts.values()) == [2]


def test_kinds_that_no_row_has_are_reported(read, caplog):
    read(weights={"view": 1, "buy": 1, "wish": 1, "skip": 1, "purchase": 1})
    assert "no row is of kind ['purchase']; those of column 'kind' are ['view', 'buy', 'skip', 'wish']" in caplog.text


def test_column_of_too_many_kinds_is_an_error(read, monkeypatch):
    monkeypatch.setattr(kind_reader, "_MAX_KINDS", 3)
    with pytest.raises(DataError, match=r"column 'kind' has 4 kinds such as \['view', 'buy', 'skip'\], expected at"):
        read()
    assert len(read(weights={"view": 1}).interactions.users) == 3


def test_file_that_is_read_twice_counts_dropped_kinds_once(tmp_path, monkeypatch):
    """The first batch looks like numbers, so that all is read again as datetimes."""
    monkeypatch.setattr(readers, "_BATCH_ROWS", 2)
    path = tmp_path / "log.csv"
    log = {"u": ["a"] * 5, "i": [1, 2, 3, 4, 5], "t": ["2018", "2019", *["2018-06-01"] * 3], "kind": ["x", *"yxyy"]}
    pl.DataFrame(log).write_csv(path)
    schema = Schema.model_validate(
        {
            "interactions": {"user": "u", "item": "i", "time": "t", "event": "kind", "weights": {"y": 1}},
            "items": {"id": "i", "id_type": "integer"},
            "users": {"id": "u", "id_type": "string"},
        }
    )
    dataset = read_dataset(DataSettings(interactions=(path,), bad_rows="drop"), schema)
    assert dataset.dropped_counts["log.csv: kind: kinds in neither weights nor negatives, such as ['x']"] == 2
    assert dataset.interactions.items.tolist() == list(range(len(dataset.catalogue.items)))
    assert np.isin(dataset.catalogue.items.to_ids(np.arange(len(dataset.catalogue.items))), [2, 4, 5]).all()


def test_kind_that_the_settings_spell_twice_is_an_error(read):
    with pytest.raises(ConfigError, match=r"\['1', '1.0'\] in weights and negatives are the same kind; keep one"):
        read(LOG | {"kind": [1.0] * 7}, weights={"1": 1, "1.0": 0.5})
