"""Counts of the channel `popular`: windowed, decayed, and per value of an attribute or a user feature, by hand."""

from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from support.doctor import make_config, make_dataset

from vecall.channels import popular_builder
from vecall.channels.popular_builder import build_popular_items
from vecall.channels.settings import PopularChannelSettings

DAY = 86_400
ITEMS = pl.DataFrame(
    {"id": ["a", "b", "c", "d"], "genres": ["x|y", "y", "", "x|x"], "shelf": [1, 2, 1, None], "year": [1, 2, 3, 4]}
)
USERS = pl.DataFrame({"id": ["u", "v", "w"], "region": ["north", "south", None]})
ROWS = [  # in days: b is outside of a window of 10 days, but for its last interaction
    ("u", "a", 20),
    ("u", "a", 15),
    ("v", "a", 10),
    ("v", "b", 9),
    ("w", "b", 15),
    ("w", "c", 20),
    ("v", "d", 20),
    ("v", "b", 20),
]


def build_dataset(rows=ROWS, to_time=lambda day: day * DAY, **interactions):
    schema = {
        "interactions": {"user": "user", "item": "item", "time": "time"} | interactions,
        "items": {
            "id": "id",
            "id_type": "string",
            "attributes": {"genres": "tags", "shelf": "integer"},
            "features": {"genres": {"kind": "tags"}},
        },
        "users": {"id": "id", "id_type": "string", "features": {"region": {"kind": "category"}}},
    }
    config = make_config(schema=schema)
    return make_dataset(config, [(user, item, to_time(day)) for user, item, day in rows], items=ITEMS, users=USERS)


def build(dataset, *, has_order=True, **settings):
    settings = PopularChannelSettings(**{"days": 10, **settings})
    return build_popular_items(settings, dataset.catalogue, dataset.interactions.positives, has_order=has_order)


def to_dict(lists):
    """Return [(row, score), ...] by value."""
    return {
        value: [
            (int(lists.rows[i]), pytest.approx(float(lists.scores[i]), rel=1e-6))
            for i in range(lists.offsets[code], lists.offsets[code + 1])
        ]
        for code, value in enumerate(lists.values)
    }


def test_interactions_are_halved_by_half_a_window_and_end_with_it():
    popular = build(build_dataset(time_unit="s"))
    assert popular.counts.dtype == np.float32
    assert popular.counts.tolist() == [1 + 0.5 + 0.25, 0.5 + 1, 1, 1]
    assert popular.total == 5.25
    assert popular.sorted_rows.tolist() == [0, 1, 2, 3]
    assert popular.by is None
    assert popular.by_user is None


def test_interactions_are_halved_by_each_later_one_of_the_user_where_times_have_no_unit():
    """u: a a, v: b a d b, w: b c."""
    popular = build(build_dataset(), by_user="region")
    assert popular.counts.tolist() == [0.5 + 1 + 0.25, 0.125 + 1 + 0.5, 1, 0.5]
    assert to_dict(popular.by_user) == {"north": [(0, 1.5)], "south": [(1, 1.125), (3, 0.5), (0, 0.25)]}


def test_all_interactions_count_the_same_where_they_have_no_order():
    assert build(build_dataset(), has_order=False).counts.tolist() == [3, 3, 1, 1]


def test_order_does_not_matter_where_times_have_a_unit():
    dataset = build_dataset(time_unit="s")
    assert build(dataset, has_order=False).counts.tolist() == build(dataset).counts.tolist()


def test_datetimes_have_a_unit():
    dataset = build_dataset(to_time=lambda day: datetime(2020, 1, 1) + timedelta(days=day))
    assert build(dataset).counts.tolist() == [1 + 0.5 + 0.25, 0.5 + 1, 1, 1]
    assert build(dataset, days=1).counts.tolist() == [1, 1, 1, 1]


def test_chunks_count_alike(monkeypatch):
    expected = build(build_dataset(time_unit="s"), by_user="region")
    monkeypatch.setattr(popular_builder, "_CHUNK_ROWS", 2)
    monkeypatch.setattr(popular_builder, "_BLOCK_ROWS", 1)
    popular = build(build_dataset(time_unit="s"), by_user="region")
    np.testing.assert_array_equal(popular.counts, expected.counts)
    assert to_dict(popular.by_user) == to_dict(expected.by_user)
    np.testing.assert_array_equal(build(build_dataset()).counts, [1.75, 1.625, 1, 0.5])


def test_lists_of_tags_have_their_items_by_overall_count():
    lists = build(build_dataset(time_unit="s"), by="genres").by
    assert lists.column == "genres"
    assert to_dict(lists) == {"x": [(0, 1.75), (3, 1.0)], "y": [(0, 1.75), (1, 1.5)]}
    assert lists.totals.tolist() == [2.75, 3.25]


def test_lists_of_scalars_go_by_their_text():
    assert to_dict(build(build_dataset(time_unit="s"), by="shelf").by) == {"1": [(0, 1.75), (2, 1.0)], "2": [(1, 1.5)]}


def test_lists_of_a_user_feature_count_its_users_alone():
    lists = build(build_dataset(time_unit="s"), by_user="region").by_user
    assert to_dict(lists) == {"north": [(0, 1.5)], "south": [(1, 1.0), (3, 1.0), (0, 0.25)]}


def test_lists_are_cut(monkeypatch):
    monkeypatch.setattr(popular_builder, "MAX_LIST_ROWS", 1)
    popular = build(build_dataset(time_unit="s"), by="genres", by_user="region")
    assert to_dict(popular.by) == {"x": [(0, 1.75)], "y": [(0, 1.75)]}
    assert to_dict(popular.by_user) == {"north": [(0, 1.5)], "south": [(1, 1.0)]}


def test_value_that_nobody_took_has_an_empty_list():
    popular = build(build_dataset([("u", "a", 20)], time_unit="s"), by="genres", by_user="region")
    assert to_dict(popular.by) == {"x": [(0, 1.0)], "y": [(0, 1.0)]}
    assert to_dict(popular.by_user) == {"north": [(0, 1.0)], "south": []}


def test_columns_without_a_table_make_no_lists():
    config = make_config()
    dataset = make_dataset(config, [("u", "a", 1)])
    popular = build(dataset, by="genres", by_user="region")
    assert (popular.by, popular.by_user, popular.counts.tolist()) == (None, None, [1])
