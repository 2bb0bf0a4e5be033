"""Views against plain dictionaries; old ones stay what they were while new ones are made."""

import random

import numpy as np
import polars as pl
import pytest

from vecall.errors import DataError
from vecall.live import memtable as overlay_file
from vecall.live.memtable import MemTable
from vecall.live.operations import Operation
from vecall.live.snapshot import Snapshot

N, D = 20, 4
STRINGS = [f"é{i:02}" for i in range(N)]


def delete(one):
    return Operation(0, "delete", one, None, None, None, has_external_vector=False)


def upsert(one, number, colour=None):
    vector = np.full(D, number, dtype=np.float32)
    return Operation(
        0, "upsert", one, {} if colour is None else {"colour": colour}, vector, None, has_external_vector=True
    )


@pytest.fixture(params=["integer", "string"])
def ids(request):
    return list(range(100, 100 + N)) if request.param == "integer" else STRINGS


@pytest.fixture
def release(release_of, ids):
    colours = pl.DataFrame({"colour": [f"c{i}" for i in range(N)]})
    return release_of(ids, np.arange(N)[:, None] * np.ones(D), attributes=colours)


def known(view, asked):
    """What a view says of ids: (vector, colour, can be an answer) of those that it knows."""
    rows = view.rows(asked)
    there = rows >= 0
    found = rows[there]
    assert view.ids(found) == [one for one, ok in zip(asked, there, strict=True) if ok]
    vectors, colours, live = view.vectors(found)[:, 0].tolist(), view.attributes(found)["colour"], view.has(found)
    assert view.attributes(found[::-1])["colour"].to_list() == colours.to_list()[::-1]
    return dict(zip(view.ids(found), zip(vectors, colours, live.tolist(), strict=True), strict=True))


@pytest.mark.parametrize("spare", [3, 1024])
def test_views_stay_what_they_were(release, ids, spare, monkeypatch):
    monkeypatch.setattr(overlay_file, "_SPARE", spare)
    rng = random.Random(0)
    more = ids + ([f"new {i}" for i in range(15)] if isinstance(ids[0], str) else list(range(15)))
    oracle = {one: (float(i), f"c{i}", True) for i, one in enumerate(ids)}
    overlay, taken = MemTable(release), []
    for seq in range(1, 120):
        chosen = rng.choices(more, k=rng.choice([1, 1, 2, 9]))  # equal ids in one batch, too
        if rng.random() < 0.4:
            batch = [delete(one) for one in chosen]
        else:
            batch = [upsert(one, rng.randrange(50), rng.choice([None, f"d{seq}"])) for one in chosen]
        for one in batch:
            if one.kind == "upsert":
                oracle[one.id] = (float(one.vector[0]), one.fields.get("colour"), True)
            elif one.id in oracle and oracle[one.id][2]:
                oracle[one.id] = (*oracle[one.id][:2], False)
        view = overlay.apply(batch, seq=seq)
        taken.append((view, dict(oracle)))
    for seq, (view, expected) in enumerate(taken, 1):
        assert known(view, more) == expected
        assert (view.seq, len(view)) == (seq, sum(what[2] for what in expected.values()))
        assert view.delta.count == view.delta.live.sum() <= view.delta.held <= len(view.delta)
        assert view.tombstones == (0 if view.live is None else N - view.live.mask().sum())
        assert not view.delta.codes.flags.writeable
    lengths = [len(view.delta) for view, _ in taken]
    assert (max(lengths) <= 2 * len(more) + 12) == (spare == 3)
    assert overlay.snapshot.delta.attributes.n_chunks() <= overlay_file._MAX_CHUNKS + 1


def test_rows_of_the_base_become_those_of_today(release, ids):
    overlay = MemTable(release)
    view = Snapshot.from_release(release)
    rows = np.array([3, 3, 0, 7])
    assert view.to_latest_rows(rows) is rows
    view = overlay.apply([upsert(ids[3], 9), delete(ids[0])], seq=2)
    assert view.to_latest_rows(rows).tolist() == [N, N, 0, 7]
    assert view.get_vectors(view.to_latest_rows(rows))[:, 0].tolist() == [9, 9, 0, 7]
    assert view.is_live(view.to_latest_rows(rows)).tolist() == [True, True, False, True]
    assert view.delta.base_rows.tolist() == [3]
    assert view.to_latest_rows(np.empty(0, np.int64)).tolist() == []


def test_half_precision_as_in_a_release(release, ids):
    vector = np.array([0.1, 1 + 2**-11, 1e-8, 65504], dtype=np.float32)  # between two halves, too small, the largest
    view = MemTable(release).apply([Operation(0, "upsert", ids[0], {}, vector, None, has_external_vector=True)], seq=1)
    assert view.get_vectors(np.array([N])).tolist() == [vector.astype(np.float16).astype(np.float32).tolist()]


def test_without_changes_nothing_is_added(release, ids):
    view = Snapshot.from_release(release)
    assert (view.live_base_rows, len(view.delta), view.seq, view.rejected_seqs, len(view)) == (None, 0, 0, {}, N)
    assert view.to_rows([ids[4], ids[4]]).tolist() == [4, 4]
    with pytest.raises(DataError, match="ids here are"):
        view.to_rows([1.5])


def test_no_attributes(release_of):
    overlay = MemTable(release_of([1, 2], [[1, 0], [0, 1]]))
    for seq in range(1, 100):
        view = overlay.apply(
            [Operation(0, "upsert", seq, {}, np.ones(2, np.float32), None, has_external_vector=True)], seq=seq
        )
    assert view.get_attributes(view.to_rows([50, 2, 1])).height == 3
    assert (view.get_attributes(np.array([0])).width, view.delta.attributes.height) == (0, 99)
