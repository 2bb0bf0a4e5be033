from datetime import datetime

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecall.data import readers
from vecall.data.interaction_table import InteractionReader
from vecall.data.interactions import build_catalogue, build_interactions
from vecall.data.settings import CsvSettings, DataSettings
from vecall.data.table_source import TableSource
from vecall.data.table_validator import BadRowHandler
from vecall.data.tables import EntityTable, Tables, read_tables
from vecall.errors import DataError
from vecall.schema import InteractionSchema, Schema


def make_schema(**interactions):
    return Schema.model_validate(
        {
            "interactions": {"user": "u", "item": "i"} | interactions,
            "items": {"id": "i", "id_type": "integer"},
            "users": {"id": "u", "id_type": "string"},
        }
    )


def build(log, items=None, users=None, **interaction_schema):
    """Catalogue and interactions of tables given as columns."""
    entity_tables = [None if columns is None else make_entity_table(columns) for columns in (items, users)]
    item_ids, user_ids = (None if table is None else table.ids for table in entity_tables)
    schema = make_schema(**interaction_schema)
    reader = InteractionReader(schema, CsvSettings(), BadRowHandler(should_drop=False), item_ids, user_ids)
    frame = pl.DataFrame(log).rename({"user": "u", "item": "i"} | ({"time": "t"} if "time" in log else {}))
    tables = Tables(reader.read([TableSource("log", frame)]), *entity_tables)
    catalogue = build_catalogue(tables, schema)
    return catalogue, build_interactions(tables, catalogue, schema.interactions)


def make_entity_table(columns):
    frame = pl.DataFrame(columns)
    other_columns = frame.drop("id")
    return EntityTable(frame["id"], features=other_columns, attributes=other_columns)


LOG = {"user": ["b", "a", "b", "b", "a"], "item": [30, 10, 10, 20, 20], "time": [2, 5, 2, 1, 5]}


def test_interactions_are_ordered_by_user_then_time_then_position_in_the_file():
    catalogue, log = build(LOG, time="t")
    assert catalogue.items.to_ids(np.arange(3)) == [10, 20, 30]
    assert catalogue.users.to_ids(np.arange(2)) == ["a", "b"]
    assert log.users.tolist() == [0, 0, 1, 1, 1]
    assert log.items.tolist() == [0, 1, 1, 2, 0]  # a: 10 before 20; b: 20, then 30 before 10, as in the file
    assert log.times.tolist() == [5, 5, 1, 2, 2]
    assert log.is_positive.all()
    assert not log.has_datetimes
    assert log.filter(log.times == 2).items.tolist() == [2, 0]


def test_interactions_without_times_are_in_the_order_of_the_file():
    _, log = build({"user": LOG["user"], "item": LOG["item"]})
    assert (log.items.tolist(), log.times.tolist()) == ([0, 1, 2, 0, 1], [1, 4, 0, 2, 3])


def test_times_of_datetimes_are_microseconds():
    _, log = build({"user": ["a"], "item": [1], "time": [datetime(1970, 1, 2)]}, time="t")
    assert (log.has_datetimes, log.times.tolist()) == (True, [86_400_000_000])


def test_catalogue_holds_the_ids_of_all_tables():
    items = {"id": [40, 10, 30, 20], "year": [4, 1, 3, 2]}
    users = {"id": ["c", "b"], "age": [3.0, 2.0]}
    catalogue, log = build(LOG, items, users)
    assert catalogue.item_ids.to_list() == [10, 20, 30, 40]
    assert catalogue.item_features.rows() == catalogue.item_attributes.rows() == [(1,), (2,), (3,), (4,)]
    assert catalogue.user_ids.to_list() == ["a", "b", "c"]
    assert catalogue.user_features.rows() == [(None,), (2.0,), (3.0,)]
    assert (len(catalogue.items), len(catalogue.users), log.users.max()) == (4, 3, 1)


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.sampled_from("abcé"), st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=12),
    st.integers(1, 5),
)
def test_batches_give_the_interactions_of_a_stable_sort(rows, batch_rows):
    users, items, times = (list(column) for column in zip(*rows, strict=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "_BATCH_ROWS", batch_rows)
        catalogue, log = build({"user": users, "item": items, "time": times}, time="t")
    expected = sorted(rows, key=lambda row: (row[0].encode(), row[2]))
    found = zip(
        catalogue.user_ids.gather(log.users).to_list(),
        catalogue.item_ids.gather(log.items).to_list(),
        log.times.tolist(),
        strict=True,
    )
    assert list(found) == expected
    assert catalogue.user_ids.to_list() == sorted(set(users), key=str.encode)
    assert catalogue.item_ids.to_list() == sorted(set(items))
    assert (log.users.dtype, log.items.dtype) == (np.int32, np.int32)


def test_users_of_dropped_rows_are_not_in_the_catalogue(tmp_path, monkeypatch):
    """The first batch looks like numbers, so that it is read twice; then the row of user a is invalid."""
    monkeypatch.setattr(readers, "_BATCH_ROWS", 2)
    log = {"u": ["a", "a", "b", "b", "b"], "i": [1, 2, 3, 3, 4], "t": ["1", "2", *["2018-06-01"] * 3]}
    pl.DataFrame(log).write_csv(tmp_path / "log.csv")
    settings = DataSettings(interactions=(tmp_path / "log.csv",), bad_rows="drop")
    tables = read_tables(settings, make_schema(time="t"))
    catalogue = build_catalogue(tables, make_schema(time="t"))
    assert (catalogue.user_ids.to_list(), catalogue.item_ids.to_list()) == (["b"], [3, 4])
    assert build_interactions(tables, catalogue, InteractionSchema(user="u", item="i")).items.tolist() == [0, 0, 1]
    assert list(tables.dropped_counts.values()) == [2]


@pytest.mark.parametrize(("time_unit", "expected"), [("none", None), ("s", "s"), ("ms", "ms")])
def test_numeric_times_have_the_declared_unit(time_unit, expected):
    _, log = build(LOG, time="t", time_unit=time_unit)
    assert (log.time_unit, log.has_datetimes) == (expected, False)


def test_datetimes_have_microseconds_whatever_unit_is_declared_for_numbers():
    _, log = build(LOG | {"time": [datetime(2020, 1, day) for day in (2, 5, 2, 1, 5)]}, time="t", time_unit="s")
    assert log.time_unit == "us"


def test_times_that_the_unit_puts_beyond_the_calendar_are_an_error():
    milliseconds = [1_600_000_000_000 + second for second in (2, 5, 2, 1, 5)]
    assert build(LOG | {"time": milliseconds}, time="t", time_unit="ms")[1].time_unit == "ms"
    with pytest.raises(DataError, match=r"time_unit is 's', but times go from 1600000000001 to 1600000000005"):
        build(LOG | {"time": milliseconds}, time="t", time_unit="s")
