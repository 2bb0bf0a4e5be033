"""Exported vectors are those that recall compares, live changes included, and the table is complete or not there."""

import shutil

import numpy as np
import polars as pl
import pytest
from support import synthetic
from support.cli import invoke, run_json

from vecall.errors import StoreError
from vecall.recall import vector_export
from vecall.recall.query import Query
from vecall.recall.recaller import open_recaller
from vecall.recall.resolve import resolve_query
from vecall.recall.vector_export import export_item_vectors, export_user_vectors

VECTORS = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)
NO_FEATURES = {"age": None, "town": None, "taste": None}
SCHEMA = {"id": pl.String(), "vector": pl.List(pl.Float32())}


@pytest.fixture
def shop(published, tmp_path):
    """A copy of a store with towers, users and histories."""
    shutil.copytree(published / "store", tmp_path / "shop")
    return tmp_path / "shop"


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(vector_export, "_MAX_CHUNK_ROWS", 7)


def change(recaller):
    """Replace, add and delete items, one of which stands in the history of user-1."""
    replaced, deleted = synthetic.make_item_id(1), synthetic.make_item_id(7)
    fields = {"type": "kind 1", "price.eur": 5.0, "text": "Word1"}
    recaller.upsert([{"id": replaced, "fields": fields}, {"id": "a new item", "fields": fields}])
    recaller.delete([deleted])
    return replaced, deleted


def test_item_vectors_include_live_changes(shop, tmp_path, small_chunks):
    with open_recaller(shop, writable=True, auto_compact=False) as recaller:
        before = dict(export_and_read(export_item_vectors, recaller, tmp_path).iter_rows())
        replaced, deleted = change(recaller)
        table = export_and_read(export_item_vectors, recaller, tmp_path)
        snapshot = recaller.live_index.snapshot
        ids = table["id"].to_list()
        np.testing.assert_array_equal(table["vector"].to_list(), snapshot.get_vectors(snapshot.to_rows(ids)))
    assert table.schema == SCHEMA
    assert ids == sorted(ids, key=str.encode)
    assert set(ids) == before.keys() - {deleted} | {"a new item"}
    after = dict(table.iter_rows())
    assert {item_id for item_id in before.keys() - {deleted} if before[item_id] != after[item_id]} == {replaced}
    assert after["a new item"] is not None


def export_and_read(export, recaller, directory):
    result = export(recaller, directory / "out.parquet")
    table = pl.read_parquet(result.out)
    assert (result.rows, result.dim) == (len(table), 8)
    assert [path.name for path in directory.glob("out*")] == ["out.parquet"]
    return table


@pytest.mark.parametrize("with_changes", [False, True])
def test_user_vectors_are_those_of_recall_by_user_id(shop, tmp_path, small_chunks, with_changes):
    with open_recaller(shop, writable=True, auto_compact=False) as recaller:
        if with_changes:
            change(recaller)
        table = export_and_read(export_user_vectors, recaller, tmp_path)
        snapshot = recaller.live_index.snapshot
        assert table.schema == SCHEMA
        assert table["id"].to_list() == sorted(f"user-{user}" for user in range(synthetic.USERS))
        for user_id, vector in table.iter_rows():
            expected = resolve_query(Query(user_id=user_id), snapshot).query_matrix[0]
            np.testing.assert_allclose(vector, expected, atol=1e-6)


def test_users_of_whom_nothing_is_known_have_no_vector(make_recaller, make_encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(vector_export, "_MAX_CHUNK_ROWS", 1)  # the encoder takes one user at a time
    users = [(5, NO_FEATURES, []), (6, NO_FEATURES, [1, 2]), (7, NO_FEATURES | {"age": 3.0}, []), (8, NO_FEATURES, [])]
    recaller = make_recaller(VECTORS, users=users, encoder=make_encoder())
    result = export_user_vectors(recaller, tmp_path / "out.parquet")
    table = pl.read_parquet(result.out)
    assert (result.rows, table["id"].to_list()) == (2, [6, 7])
    stored = recaller.live_index.snapshot.get_vectors(np.array([1, 2])).sum(0)
    np.testing.assert_allclose(table["vector"].to_list(), [stored, [3, 0, 0, 0]], rtol=1e-6)


def test_a_tower_without_history_leaves_users_without_features_out(make_recaller, make_encoder, tmp_path):
    users = [(6, NO_FEATURES, [1, 2]), (7, NO_FEATURES | {"taste": [1.0, 2.0, 3.0, 4.0]}, [3])]
    recaller = make_recaller(VECTORS, users=users, encoder=make_encoder(length=0))
    export_user_vectors(recaller, tmp_path / "out.parquet")
    table = pl.read_parquet(tmp_path / "out.parquet")
    assert table.rows() == [(7, [1.0, 2.0, 3.0, 4.0])]
    users = [(6, NO_FEATURES, [1, 2])]
    recaller = make_recaller(VECTORS, users=users, encoder=make_encoder(length=0))
    assert export_user_vectors(recaller, tmp_path / "none.parquet").rows == 0
    assert pl.read_parquet(tmp_path / "none.parquet").is_empty()


@pytest.mark.parametrize(("lacking", "has_encoder"), [("towers", False), ("users", True)])
def test_user_vectors_need_towers_and_users(make_recaller, make_encoder, tmp_path, lacking, has_encoder):
    recaller = make_recaller(VECTORS, encoder=make_encoder() if has_encoder else None)
    with pytest.raises(StoreError, match=f"has no {lacking}, so there are no user vectors"):
        export_user_vectors(recaller, tmp_path / "out.parquet")
    assert not list(tmp_path.glob("out*"))
    assert export_item_vectors(recaller, tmp_path / "out.parquet").rows == 40


def test_unwritable_output_is_a_store_error(make_recaller, tmp_path):
    with pytest.raises(StoreError, match=r"out\.parquet: cannot be written: .*check that its directory exists"):
        export_item_vectors(make_recaller(VECTORS), tmp_path / "nowhere" / "out.parquet")


def test_command_exports_items_or_users(shop, tmp_path):
    out = tmp_path / "out.parquet"
    assert run_json("vectors", "--store", shop, "--out", out) == {"rows": synthetic.ITEMS, "dim": 8, "out": str(out)}
    result = invoke("vectors", "--store", shop, "--out", out, "--users")
    assert f"{synthetic.USERS} vectors of 8 dimensions" in result.stdout
    assert len(pl.read_parquet(out)) == synthetic.USERS
