"""Context of interactions: from the table, in the order of histories, to each part of every split."""

import polars as pl
import pytest

from vecall.data.dataset import read_dataset
from vecall.data.settings import DataSettings
from vecall.data.vocabulary import MISSING, OOV
from vecall.errors import DataError
from vecall.schema import Schema

# User a's items are 1 to 6 in this order, with hours 10 to 15; the row of item 3 is a negative.
LOG = {
    "u": ["a", "b", "a", "a", "a", "a", "a"],
    "i": [2, 1, 1, 4, 3, 6, 5],
    "t": [2, 1, 1, 4, 3, 6, 5],
    "hour": ["11", "10", "10", "13", "12", "", "14"],
    "price": [1.0, 7.0, 2.0, 4.0, 3.0, 6.0, None],
    "part": ["train", "train", "train", "valid", "train", "test", "train"],
    "stars": [5, 5, 5, 5, 1, 5, 5],
}
SCHEMA = Schema.model_validate(
    {
        "interactions": {
            "user": "u",
            "item": "i",
            "time": "t",
            "label": "stars",
            "positive": 3,
            "context": {"hour": {"kind": "category"}, "price": {"kind": "numeric"}},
        },
        "items": {"id": "i", "id_type": "integer"},
        "users": {"id": "u", "id_type": "string"},
    }
)


@pytest.fixture
def read(tmp_path):
    def write_and_read(log=LOG, **settings):
        path = tmp_path / "log.csv"
        pl.DataFrame(log).write_csv(path)
        data = DataSettings(interactions=(path,), **settings)
        dataset = read_dataset(data, SCHEMA)
        return dataset, dataset.split(data)

    return write_and_read


def hours(frame):
    return frame["hour"].to_list()


def test_context_follows_the_order_of_histories(read):
    dataset, split = read()
    assert hours(dataset.interactions.context) == ["10", "11", "12", "13", "14", None, "10"]
    assert dataset.interactions.context["price"].to_list() == [2, 1, 3, 4, None, 6, 7]
    assert hours(dataset.history_context) == ["10", "11", "13", "14", None, "10"]
    assert hours(split.train_context) == ["10", "11", "13", "10"]
    assert hours(split.hard_negatives.context) == ["12"]
    assert (hours(split.valid.context), hours(split.test.context)) == (["14"], [None])
    assert hours(split.test.take([0, 0]).context) == [None, None]


@pytest.mark.parametrize(
    ("settings", "train", "valid", "test"),
    [
        ({"split": "global_time", "valid_from": 4, "test_from": 5}, ["10", "11", "10"], ["13"], ["14"]),
        ({"split": "given", "split_column": "part"}, ["10", "11", "14", "10"], ["13"], [None]),
    ],
)
def test_context_of_a_case_is_that_of_its_first_held_out_interaction(read, settings, train, valid, test):
    _, split = read(**settings)
    assert hours(split.train_context) == train
    assert (hours(split.valid.context), hours(split.test.context)) == (valid, test)


def test_random_split_has_the_context_of_the_drawn_items(read):
    _, split = read(split="random")
    prices = dict(zip(LOG["i"], LOG["hour"], strict=True)) | {1: "10"}
    for cases in (split.valid, split.test):
        assert hours(cases.context) == [prices[item + 1] or None for item in cases.targets.values]
    assert len(split.train_context) == len(split.train.values)


def test_encoder_of_users_has_the_context_of_the_training_alone(read):
    dataset, split = read()
    _, encoder = dataset.fit_feature_encoders(split.train.values, [0, 1], split.train_context)
    assert list(encoder.specs) == ["hour", "price"]
    assert encoder.state.categorical["hour"].values == ("10", "11", "13")
    assert encoder.encode(dataset.history_context)["hour"].tolist() == [2, 3, 4, OOV, MISSING, 2]
    stored = encoder.encode(dataset.catalogue.user_features)
    assert (stored["hour"].tolist(), stored["price"].tolist()) == ([MISSING] * 2, [[0, 0]] * 2)
    assert list(encoder.select(["price"]).specs) == ["price"]


def test_invalid_context_is_an_error_or_missing(read):
    log = LOG | {"price": ["x", *map(str, range(6))]}
    with pytest.raises(DataError, match=r"'price': expected a finite number or nothing, got 1 .*\(row 1: 'x'\)"):
        read(log)
    dataset, _ = read(log, bad_rows="drop")
    assert dataset.interactions.context["price"].to_list() == [1, None, 3, 2, 5, 4, 0]
