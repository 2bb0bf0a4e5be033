"""No accepted change may keep a store from being opened, whatever types its releases have."""

import logging
from datetime import date, datetime
from decimal import Decimal

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecall.errors import QueryError, StoreError
from vecall.live.compaction import compact
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

# A type, and a value of it that the base holds.
TYPES = [
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
NAMES = ["a", "row", "element", "cell", "", "*", "^a$", "#", "id_", "pass"]
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


def attributes(name, dtype, value):
    column = pl.Series([value] * 3, dtype=dtype if not isinstance(dtype, pl.Datetime) else pl.Datetime("us"))
    if isinstance(dtype, pl.Datetime):
        column = column.cast(pl.Datetime(dtype.time_unit))
        column = column if dtype.time_zone is None else column.dt.replace_time_zone(dtype.time_zone)
    return pl.DataFrame({name: column, "other": [1, 2, 3]})


def release_with(path, name, kind, *, release):
    publish_vectors(path, [1, 2, 3], VECTORS, attributes=attributes(name, *kind), name=release)


@settings(max_examples=60)
@given(st.sampled_from(TYPES), st.sampled_from(TYPES), st.sampled_from(NAMES), st.lists(CELLS, min_size=1, max_size=4))
def test_a_store_opens_after_every_change_that_was_accepted(tmp_path_factory, kind, later, name, values):
    path = tmp_path_factory.mktemp("poison")
    release_with(path, name, kind, release="one")
    accepted, refused = 0, []
    with open_recaller(path, writable=True, auto_compact=False) as writer:
        for place, value in enumerate(values):
            try:
                accepted += writer.upsert([{"id": 10 + place, "vector": [1, 0, 0], "fields": {name: value}}])
            except QueryError as error:
                refused.append(error.field)
            assert writer.upsert([{"id": 9, "vector": [0, 1, 0]}]) == 1
        assert writer.delete([2]) == 1
        shown = writer.candidates(EVERYTHING).rows()
        assert len(shown) == 3 + accepted
        assert accepted + len(refused) == len(values)
        assert set(refused) <= {f"items[0].fields.{name}"}
    for writable in (False, True):
        with open_recaller(path, writable=writable, auto_compact=False) as reader:
            assert reader.candidates(EVERYTHING).rows() == shown
    compact(path, name="two")
    with open_recaller(path) as reader:
        assert reader.candidates(EVERYTHING).rows() == shown
    release_with(path, name, later, release="three")
    with open_recaller(path, writable=True, auto_compact=False) as reader:
        assert len(reader.candidates(EVERYTHING).rows()) == len(shown)  # values without a place here are left out
        assert reader.upsert([{"id": 9, "vector": [0, 1, 0], "fields": {name: None, "other": 4}}]) == 1


def test_one_category_too_many_is_refused_at_its_place(tmp_path):
    kind = pl.Categorical(pl.Categories("few", namespace=str(tmp_path), physical=pl.UInt8))
    names = pl.Series([f"c{i}" for i in range(250)]).cast(kind)
    publish_vectors(tmp_path, range(250), np.eye(250, 4), attributes=pl.DataFrame({"kind": names}))
    items = [{"id": 300 + i, "vector": [1, 0, 0, 0], "fields": {"kind": f"new{i}"}} for i in range(10)]
    with open_recaller(tmp_path, writable=True, auto_compact=False) as writer:
        with pytest.raises(QueryError, match=r"items\[\d\].fields.kind: the column does not take this value") as caught:
            writer.upsert(items)
        place = int(caught.value.field[len("items[") :].partition("]")[0])
        assert caught.value.field == f"items[{place}].fields.kind"
        assert len(writer.live_index.snapshot) == 250  # all or none
        assert writer.upsert(items[:place]) == place
    with open_recaller(tmp_path) as reader:
        assert len(reader.live_index.snapshot) == 250 + place


@pytest.fixture
def poisoned(tmp_path):
    """A store whose journal holds, of an older vecall, what no column takes."""
    release_with(tmp_path, "until", (pl.Datetime("ns"), datetime(2030, 1, 1)), release="one")
    new = np.ones(3, dtype=np.float32)
    with Journal.open(get_journal_path(Store.open(tmp_path)), "integer") as journal:
        journal.append(
            [
                Operation(0, "upsert", 7, {"other": 1}, new, None, has_external_vector=True),
                Operation(0, "upsert", 8, {}, new[:2], None, has_external_vector=True),
                Operation(0, "upsert", 9, {"until": "9999-12-31", "other": 5}, new, None, has_external_vector=True),
                Operation(0, "delete", 1, None, None, None, has_external_vector=False),
            ]
        )
    return tmp_path


def test_what_a_release_cannot_take_is_told_and_served_without(poisoned, caplog):
    with caplog.at_level(logging.WARNING), open_recaller(poisoned, writable=True, auto_compact=False) as writer:
        assert dict(writer.live_index.snapshot.rejected_seqs) == {8: 2}
        assert sorted(writer.recall(EVERYTHING).ids) == [2, 3, 7, 9]
        assert "cannot take 1 operations" in caplog.text
        assert "2: its vector has 2 numbers, and this release's have 3" in caplog.text
        assert "no place for values of the journal, by column: {'until': 1}" in caplog.text
        writer.upsert([{"id": 8, "vector": [1, 0, 0]}])
        assert not writer.live_index.snapshot.rejected_seqs


def test_an_operation_that_fails_when_it_is_built_is_refused_alone(poisoned, monkeypatch, caplog):
    """Whatever a check has overlooked: the others are served."""
    from vecall.live.item_columns import ItemColumns

    build = ItemColumns.build_attribute_frame

    def failing(self, rows):
        if any(row.get("other") == 1 for row in rows):
            raise OverflowError("planted")
        return build(self, rows)

    monkeypatch.setattr(ItemColumns, "attribute_frame", failing)
    with open_recaller(poisoned) as reader:
        assert dict(reader.live_index.snapshot.rejected_seqs) == {7: 1, 8: 2}
        assert sorted(reader.recall(EVERYTHING).ids) == [2, 3, 9]
        assert reader.live_index.snapshot.seq == 4
    assert "1: planted" in caplog.text


def test_an_operator_sees_and_drops(poisoned):
    listed = list(list_operations(poisoned))
    assert [(one.seq, one.op, one.id, one.applicable) for one in listed] == [
        (1, "upsert", 7, True),
        (2, "upsert", 8, False),
        (3, "upsert", 9, True),
        (4, "delete", 1, True),
    ]
    assert listed[0].problem is None
    assert listed[1].problem == "its vector has 2 numbers, and this release's have 3"
    assert listed[2].problem == "these columns are left out: until"
    drop_operation(poisoned, 2)
    assert [one.seq for one in list_operations(poisoned)] == [1, 3, 4]
    with pytest.raises(StoreError, match=r"operation 2 .* says nothing"):
        drop_operation(poisoned, 2)
    with pytest.raises(StoreError, match="no operation 5: it holds those from 1 to 4"):
        drop_operation(poisoned, 5)
    with open_recaller(poisoned, writable=True, auto_compact=False) as writer:
        assert not writer.live_index.snapshot.rejected_seqs
        assert writer.live_index.upsert([{"id": 8, "vector": [1, 0, 0]}]).seq == 5  # no gap, and no number twice
        with pytest.raises(StoreError, match="held by"):
            drop_operation(poisoned, 1)
    drop_operation(poisoned, 4)
    with open_recaller(poisoned) as reader:
        assert 1 in reader.recall(EVERYTHING).ids


def test_a_damaged_operation_can_be_dropped(poisoned):
    import sqlite3

    from vecall.errors import JournalCorruptedError

    db = sqlite3.connect(get_journal_path(Store.open(poisoned)))
    db.execute("UPDATE operations SET fields = '{}' WHERE seq = 3")
    db.commit()
    db.close()
    with pytest.raises(JournalCorruptedError) as caught:
        open_recaller(poisoned)
    drop_operation(poisoned, caught.value.seq)
    with open_recaller(poisoned) as reader:
        assert sorted(reader.recall(EVERYTHING).ids) == [2, 3, 7]
