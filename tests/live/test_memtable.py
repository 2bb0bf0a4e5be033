"""The memtable's snapshots, compared with dictionaries; later operations do not change them."""

import random

import numpy as np
import polars as pl
import pytest

from vecall.errors import DataError
from vecall.live import memtable as memtable_module
from vecall.live.memtable import MemTable
from vecall.live.operations import Operation
from vecall.live.snapshot import Snapshot

N, D = 20, 4
STRINGS = [f"é{i:02}" for i in range(N)]


def make_delete(item_id):
    return Operation(0, "delete", item_id, None, None, None, has_external_vector=False)


def make_upsert(item_id, number, colour=None):
    fields, vector = {} if colour is None else {"colour": colour}, np.full(D, number, dtype=np.float32)
    return Operation(0, "upsert", item_id, fields, vector, None, has_external_vector=True)


@pytest.fixture(params=["integer", "string"])
def ids(request):
    return list(range(100, 100 + N)) if request.param == "integer" else STRINGS


@pytest.fixture
def release(make_release, ids):
    colours = pl.DataFrame({"colour": [f"c{i}" for i in range(N)]})
    return make_release(ids, np.arange(N)[:, None] * np.ones(D), attributes=colours)


def read_items(snapshot, item_ids):
    """Return (vector, colour, is live) of the ids that have a row, by id."""
    rows = snapshot.to_rows(item_ids)
    known_rows = rows[rows >= 0]
    known_ids = snapshot.to_ids(known_rows)
    assert known_ids == [item_id for item_id, row in zip(item_ids, rows, strict=True) if row >= 0]
    vectors = snapshot.get_vectors(known_rows)[:, 0].tolist()
    colours = snapshot.get_attributes(known_rows)["colour"].to_list()
    assert snapshot.get_attributes(known_rows[::-1])["colour"].to_list() == colours[::-1]
    is_live = snapshot.is_live(known_rows).tolist()
    return dict(zip(known_ids, zip(vectors, colours, is_live, strict=True), strict=True))


@pytest.mark.parametrize("max_dead_slots", [3, 1024])
def test_snapshots_are_not_changed_by_later_operations(release, ids, max_dead_slots, monkeypatch):
    monkeypatch.setattr(memtable_module, "_MAX_EXTRA_SUPERSEDED_SLOTS", max_dead_slots)
    rng = random.Random(0)
    all_ids = ids + ([f"new {i}" for i in range(15)] if isinstance(ids[0], str) else list(range(15)))
    oracle = {item_id: (float(i), f"c{i}", True) for i, item_id in enumerate(ids)}
    memtable, history = MemTable(release), []
    for seq in range(1, 120):
        batch_ids = rng.choices(all_ids, k=rng.choice([1, 1, 2, 9]))  # may have equal ids
        if rng.random() < 0.4:
            batch = [make_delete(item_id) for item_id in batch_ids]
        else:
            batch = [make_upsert(item_id, rng.randrange(50), rng.choice([None, f"d{seq}"])) for item_id in batch_ids]
        for operation in batch:
            if operation.kind == "upsert":
                oracle[operation.id] = (float(operation.vector[0]), operation.fields.get("colour"), True)
            elif operation.id in oracle and oracle[operation.id][2]:
                oracle[operation.id] = (*oracle[operation.id][:2], False)
        history.append((memtable.apply(batch, seq=seq), dict(oracle)))
    for seq, (snapshot, expected) in enumerate(history, 1):
        delta, live_base_rows = snapshot.delta, snapshot.live_base_rows
        assert read_items(snapshot, all_ids) == expected
        assert (snapshot.seq, len(snapshot)) == (seq, sum(is_live for _, _, is_live in expected.values()))
        assert delta.live_count == delta.live_mask.sum() <= delta.distinct_id_count <= len(delta)
        assert snapshot.tombstone_count == (0 if live_base_rows is None else N - live_base_rows.to_mask().sum())
        assert not delta.half_vectors.flags.writeable
    max_length = max(len(snapshot.delta) for snapshot, _ in history)
    assert (max_length <= 2 * len(all_ids) + 12) == (max_dead_slots == 3)
    assert memtable.snapshot.delta.attributes.n_chunks() <= memtable_module._MAX_CHUNKS + 1


def test_base_rows_are_mapped_to_the_latest_rows_of_their_items(release, ids):
    snapshot = Snapshot.from_release(release)
    rows = np.array([3, 3, 0, 7])
    assert snapshot.to_latest_rows(rows) is rows
    snapshot = MemTable(release).apply([make_upsert(ids[3], 9), make_delete(ids[0])], seq=2)
    latest_rows = snapshot.to_latest_rows(rows)
    assert latest_rows.tolist() == [N, N, 0, 7]
    assert snapshot.get_vectors(latest_rows)[:, 0].tolist() == [9, 9, 0, 7]
    assert snapshot.is_live(latest_rows).tolist() == [True, True, False, True]
    assert snapshot.delta.base_rows.tolist() == [3]
    assert snapshot.to_latest_rows(np.empty(0, np.int64)).tolist() == []


def test_vectors_are_rounded_to_half_precision_as_in_a_release(release, ids):
    vector = np.array([0.1, 1 + 2**-11, 1e-8, 65504], dtype=np.float32)  # between two halves, too small, the largest
    upsert = Operation(0, "upsert", ids[0], {}, vector, None, has_external_vector=True)
    snapshot = MemTable(release).apply([upsert], seq=1)
    assert snapshot.get_vectors(np.array([N])).tolist() == [vector.astype(np.float16).astype(np.float32).tolist()]


def test_snapshot_of_a_release_without_changes(release, ids):
    snapshot = Snapshot.from_release(release)
    assert (snapshot.live_base_rows, len(snapshot.delta), snapshot.seq, len(snapshot)) == (None, 0, 0, N)
    assert snapshot.rejected_seqs == {}
    assert snapshot.to_rows([ids[4], ids[4]]).tolist() == [4, 4]
    with pytest.raises(DataError, match="ids here are"):
        snapshot.to_rows([1.5])


def test_release_without_attributes(make_release):
    memtable = MemTable(make_release([1, 2], [[1, 0], [0, 1]]))
    for seq in range(1, 100):
        upsert = Operation(0, "upsert", seq, {}, np.ones(2, np.float32), None, has_external_vector=True)
        snapshot = memtable.apply([upsert], seq=seq)
    assert snapshot.get_attributes(snapshot.to_rows([50, 2, 1])).height == 3
    assert (snapshot.get_attributes(np.array([0])).width, snapshot.delta.attributes.height) == (0, 99)
