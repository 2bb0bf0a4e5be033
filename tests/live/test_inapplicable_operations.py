"""Operations that a release cannot take: none may prevent a store from being opened, whatever column types it has."""

import logging
import sqlite3
from contextlib import closing
from datetime import date, datetime
from decimal import Decimal

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecall.errors import JournalCorruptedError, QueryError, StoreError
from vecall.live.compaction import compact
from vecall.live.item_columns import ItemColumns
from vecall.live.journal import Journal
from vecall.live.journal_repair import drop_operation, list_operations
from vecall.live.operations import Operation
from vecall.live.pruning import get_journal_path
from vecall.pipeline.publish_vectors import publish_vectors
from vecall.recall.query import Query
from vecall.recall.recaller import open_recaller
from vecall.release.store import Store

VECTORS = np.eye(3, dtype=np.float32)
EVERYTHING = Query(vector=[1.0, 1.0, 1.0], k=99)

# Column types, each with a value for the base release.
COLUMN_TYPES = [
    (pl.String(), "a"),
    (pl.Boolean(), True),
    (pl.Int8(), 1),
    (pl.UInt64(), 2**63),
    (pl.Int128(), 2**70),
    (pl.Float32(), 0.1),
    (pl.Float64(), 0.1),
    (pl.Decimal(5, 2), Decimal("1.25")),
    (pl.Decimal(38, 0), Decimal(1)),
    (pl.Date(), date(2030, 1, 1)),
    (pl.Datetime("ms"), datetime(2030, 1, 1)),
    (pl.Datetime("us", "Asia/Shanghai"), datetime(2030, 1, 1)),
    (pl.Datetime("ns"), datetime(2030, 1, 1)),
    (pl.Categorical(), "a"),
    (pl.Enum(["a", "b"]), "a"),
    (pl.List(pl.String()), ["a"]),
    (pl.List(pl.Datetime("ns")), [datetime(2030, 1, 1)]),
    (pl.Array(pl.Int16(), 2), [1, 2]),
    (pl.Duration("us"), None),
    (pl.Null(), None),
]
COLUMN_NAMES = ["a", "row", "element", "cell", "", "*", "^a$", "#", "id_", "pass"]
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**80), 2**80),
    st.floats(),
    st.sampled_from(["a", "b", "c", "", "9999-12-31", "9999-12-31T23:59:59-08:00", "0001-01-01T00:00:00+08:00"]),
    st.sampled_from(["2262-04-12", "1677-09-21", "2030-01-01T00:00:00.123456789", "\ud800", "1.5", "2030-01-01"]),
    st.sampled_from([123.456, 999.994, 999.995, 999.999, -1000, 10**38 - 1, 10**38, 0.1, 2**63, -(2**63), 2**64 - 1]),
)
CELLS = VALUES | st.lists(VALUES, max_size=3)


def make_attributes(name, dtype, value):
    """Return three rows of a column with a type and a value, and another column."""
    column = pl.Series([value] * 3, dtype=dtype if not isinstance(dtype, pl.Datetime) else pl.Datetime("us"))
    if isinstance(dtype, pl.Datetime):
        column = column.cast(pl.Datetime(dtype.time_unit))
        column = column if dtype.time_zone is None else column.dt.replace_time_zone(dtype.time_zone)
    return pl.DataFrame({name: column, "other": [1, 2, 3]})


def publish_with_column(path, column_name, column_type, *, release):
    attributes = make_attributes(column_name, *column_type)
    publish_vectors(path, [1, 2, 3], VECTORS, attributes=attributes, name=release, allow_worse=True)


@pytest.mark.examples
@settings(max_examples=60)
@given(
    st.sampled_from(COLUMN_TYPES),
    st.sampled_from(COLUMN_TYPES),
    st.sampled_from(COLUMN_NAMES),
    st.lists(CELLS, min_size=1, max_size=4),
)
def test_store_opens_after_every_accepted_change(tmp_path_factory, column_type, later_type, name, values):
    path = tmp_path_factory.mktemp("store")
    publish_with_column(path, name, column_type, release="one")
    accepted, rejected_fields = 0, []
    with open_recaller(path, writable=True, auto_compact=False) as writer:
        for i, value in enumerate(values):
            try:
                accepted += writer.upsert([{"id": 10 + i, "vector": [1, 0, 0], "fields": {name: value}}])
            except QueryError as error:
                rejected_fields.append(error.field)
            assert writer.upsert([{"id": 9, "vector": [0, 1, 0]}]) == 1
        assert writer.delete([2]) == 1
        expected = writer.candidates(EVERYTHING).rows()
        assert len(expected) == 3 + accepted
        assert accepted + len(rejected_fields) == len(values)
        assert set(rejected_fields) <= {f"items[0].fields.{name}"}
    for writable in (False, True):
        with open_recaller(path, writable=writable, auto_compact=False) as reader:
            assert reader.candidates(EVERYTHING).rows() == expected
    compact(path, name="two")
    with open_recaller(path) as reader:
        assert reader.candidates(EVERYTHING).rows() == expected
    publish_with_column(path, name, later_type, release="three")
    with open_recaller(path, writable=True, auto_compact=False) as reader:
        # Values that the column of the later type does not take are left out; their items are served.
        assert len(reader.candidates(EVERYTHING).rows()) == len(expected)
        assert reader.upsert([{"id": 9, "vector": [0, 1, 0], "fields": {name: None, "other": 4}}]) == 1


def test_category_beyond_the_columns_capacity_is_rejected_with_its_location(tmp_path):
    dtype = pl.Categorical(pl.Categories("few", namespace=str(tmp_path), physical=pl.UInt8))
    names = pl.Series([f"c{i}" for i in range(250)]).cast(dtype)
    publish_vectors(tmp_path, range(250), np.eye(250, 4), attributes=pl.DataFrame({"kind": names}))
    items = [{"id": 300 + i, "vector": [1, 0, 0, 0], "fields": {"kind": f"new{i}"}} for i in range(10)]
    with open_recaller(tmp_path, writable=True, auto_compact=False) as writer:
        with pytest.raises(QueryError, match=r"items\[\d\].fields.kind: the column does not take this value") as caught:
            writer.upsert(items)
        position = int(caught.value.field[len("items[") :].partition("]")[0])
        assert caught.value.field == f"items[{position}].fields.kind"
        assert len(writer.live_index.snapshot) == 250  # all or none
        assert writer.upsert(items[:position]) == position
    with open_recaller(tmp_path) as reader:
        assert len(reader.live_index.snapshot) == 250 + position


@pytest.fixture
def store_dir(tmp_path):
    """A store whose journal has operations that its release cannot take, in whole or in part."""
    publish_with_column(tmp_path, "until", (pl.Datetime("ns"), datetime(2030, 1, 1)), release="one")
    vector = np.ones(3, dtype=np.float32)
    with Journal.open(get_journal_path(Store.open(tmp_path)), "integer") as journal:
        journal.append(
            [
                Operation(0, "upsert", 7, {"other": 1}, vector, None, has_external_vector=True),
                Operation(0, "upsert", 8, {}, vector[:2], None, has_external_vector=True),
                Operation(0, "upsert", 9, {"until": "9999-12-31", "other": 5}, vector, None, has_external_vector=True),
                Operation(0, "delete", 1, None, None, None, has_external_vector=False),
            ]
        )
    return tmp_path


def test_rejected_operations_are_logged_and_the_release_is_served_without_them(store_dir, caplog):
    with caplog.at_level(logging.WARNING), open_recaller(store_dir, writable=True, auto_compact=False) as writer:
        assert dict(writer.live_index.snapshot.rejected_seqs) == {8: 2}
        assert sorted(writer.recall(EVERYTHING).ids) == [2, 3, 7, 9]
        assert "rejected 1 journal operations" in caplog.text
        assert "2: its vector has 2 numbers, and this release's vectors have 3" in caplog.text
        assert "their values are left out (column: operations): {'until': 1}" in caplog.text
        writer.upsert([{"id": 8, "vector": [1, 0, 0]}])
        assert not writer.live_index.snapshot.rejected_seqs


def test_rejected_operations_are_still_known_after_a_compaction(store_dir):
    """Its journal starts after them, and the acknowledged items are still missing."""
    compact(store_dir, name="compacted")
    vector = {"vector": [0, 1, 0]}
    with open_recaller(store_dir, writable=True, auto_compact=False) as writer:
        assert writer.live_index.snapshot.release.name == "compacted"
        assert dict(writer.live_index.snapshot.rejected_seqs) == {8: 2}
        writer.upsert([{"id": 5} | vector])
    compact(store_dir, name="compacted-again")
    with open_recaller(store_dir, writable=True, auto_compact=False) as writer:
        assert dict(writer.live_index.snapshot.rejected_seqs) == {8: 2}
        writer.upsert([{"id": 8} | vector])
        assert not writer.live_index.snapshot.rejected_seqs
    compact(store_dir, name="complete")
    with open_recaller(store_dir) as reader:
        assert not reader.live_index.snapshot.rejected_seqs
        assert {5, 8} < set(reader.recall(EVERYTHING).ids)


def test_rejected_operation_is_forgotten_if_its_item_is_deleted(store_dir):
    compact(store_dir, name="compacted")
    with open_recaller(store_dir, writable=True, auto_compact=False) as writer:
        writer.delete([8])
        assert not writer.live_index.snapshot.rejected_seqs


def test_operation_that_passes_the_checks_but_cannot_be_applied_is_rejected_alone(store_dir, monkeypatch, caplog):
    build = ItemColumns.build_attribute_frame

    def fail_for_item_7(self, rows):
        if any(row.get("other") == 1 for row in rows):
            raise OverflowError("injected")
        return build(self, rows)

    monkeypatch.setattr(ItemColumns, "build_attribute_frame", fail_for_item_7)
    with open_recaller(store_dir) as reader:
        assert dict(reader.live_index.snapshot.rejected_seqs) == {7: 1, 8: 2}
        assert sorted(reader.recall(EVERYTHING).ids) == [2, 3, 9]
        assert reader.live_index.snapshot.seq == 4
    assert "1: injected" in caplog.text


def test_operations_can_be_listed_and_dropped(store_dir):
    statuses = list(list_operations(store_dir))
    assert [(status.seq, status.op, status.id, status.applicable) for status in statuses] == [
        (1, "upsert", 7, True),
        (2, "upsert", 8, False),
        (3, "upsert", 9, True),
        (4, "delete", 1, True),
    ]
    assert statuses[0].problem is None
    assert statuses[1].problem == "its vector has 2 numbers, and this release's vectors have 3"
    assert statuses[2].problem == "these columns are left out: until"
    drop_operation(store_dir, 2)
    assert [status.seq for status in list_operations(store_dir)] == [1, 3, 4]
    with pytest.raises(StoreError, match=r"operation 2 .* has no effect any more"):
        drop_operation(store_dir, 2)
    with pytest.raises(StoreError, match="no operation 5: it holds operations 1 to 4"):
        drop_operation(store_dir, 5)
    with open_recaller(store_dir, writable=True, auto_compact=False) as writer:
        assert not writer.live_index.snapshot.rejected_seqs
        # Sequence numbers have no gap, and none is used twice.
        assert writer.live_index.upsert([{"id": 8, "vector": [1, 0, 0]}]).seq == 5
        with pytest.raises(StoreError, match="held by"):
            drop_operation(store_dir, 1)
    drop_operation(store_dir, 4)
    with open_recaller(store_dir) as reader:
        assert 1 in reader.recall(EVERYTHING).ids


def test_corrupted_operation_can_be_dropped(store_dir):
    with closing(sqlite3.connect(get_journal_path(Store.open(store_dir)))) as connection:
        connection.execute("UPDATE operations SET fields = '{}' WHERE seq = 3")
        connection.commit()
    with pytest.raises(JournalCorruptedError) as caught:
        open_recaller(store_dir)
    drop_operation(store_dir, caught.value.seq)
    with open_recaller(store_dir) as reader:
        assert sorted(reader.recall(EVERYTHING).ids) == [2, 3, 7]
