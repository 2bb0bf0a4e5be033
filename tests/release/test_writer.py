from dataclasses import asdict, replace

import numpy as np
import polars as pl
import pytest

from vecall.data.id_map import build_id_map
from vecall.data.ragged import RaggedArray
from vecall.errors import DataError
from vecall.index import tuning
from vecall.index.base import SearchParams
from vecall.index.planner import DEFAULT_COSTS
from vecall.index.search_params import TuningPoint
from vecall.index.settings import IndexSettings
from vecall.release import writer
from vecall.release.golden import MAX_GOLDEN_QUERIES
from vecall.release.release import load_release
from vecall.release.store import Store
from vecall.release.users import UserTable
from vecall.release.writer import ReleaseContents, check_attributes, write_release

SEARCHED = {
    "hnsw": IndexSettings(engine="hnsw", target_recall=0.9, ks=(5, 20), M=4, ef_construction=20),
    "cells": IndexSettings(engine="cells", target_recall=0.9, ks=(5, 20), nlist=16),
}


def unit(seed, n, dim=8):
    vectors = np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def contents(n=600, **others):
    ids = build_id_map(pl.Series([f"item {i:04}" for i in range(n)]), "string")
    return ReleaseContents(ids, unit(0, n), pl.DataFrame({"year": range(n)}), **others)


def released(tmp_path, made, settings, queries=None):
    store = Store.create(tmp_path / "store")
    with store.create_draft("one") as draft:
        name = draft.commit(write_release(draft.directory, made, settings, queries=queries), activate=True)
    return load_release(store.get_release_dir(name), store.verify(name))


def test_vectors_alone_make_a_release(tmp_path):
    release = released(tmp_path, contents(journal_seq=7, declared_seq=5), IndexSettings())
    manifest = release.manifest
    assert (manifest.items, manifest.dim, manifest.id_type, manifest.encoder) == (600, 8, "string", None)
    assert (manifest.index.engine, manifest.index.parameters, manifest.ann) == ("exact", {}, None)
    assert (manifest.journal_seq, manifest.tables_seq) == (7, 5)
    assert (manifest.index.costs, manifest.index.settings, release.cost_model) == ({}, {}, DEFAULT_COSTS)
    assert manifest.libraries.keys() == {"python", "vecall", "faiss-cpu", "onnxruntime", "numpy", "polars"}
    assert (release.users, release.encoder, release.golden_queries, release.popularity, release.search_param_curve) == (
        None,
    ) * 5
    assert set(manifest.files) == {"attributes.arrow", "ids.bytes.npy", "ids.offsets.npy", "index.faiss"}
    release.check_golden_queries()  # nothing to prove
    np.testing.assert_allclose(release.index.get_vectors(np.arange(600)), unit(0, 600), atol=1e-3)


@pytest.mark.parametrize("engine", ["hnsw", "cells"])
def test_queries_find_the_effort_and_become_golden(tmp_path, engine, monkeypatch):
    monkeypatch.setattr(tuning, "scan_cost", lambda index, queries: 1.0)  # dear, so that filters go through the index
    settings = SEARCHED[engine]
    release = released(tmp_path, contents(), settings, unit(1, 400))
    release.check_golden_queries()
    assert len(release.golden_queries.vectors) == MAX_GOLDEN_QUERIES
    assert release.golden_queries.inputs is None
    facts, ann = release.manifest.index, release.manifest.ann
    assert facts.engine == engine
    assert facts.settings == settings.model_dump(mode="json", exclude_unset=True)
    built = {"M": 4, "ef_construction": 20} if engine == "hnsw" else {"cells": 16}
    effort = [[k, *effort] for k, effort in release.search_param_curve.points]
    widths = [
        [one.rank, one.width_for_all, one.width_for_tail] for one in release.search_param_curve.filtered_params.widths
    ]
    filtered = {"widths": widths, "deeper": release.search_param_curve.filtered_params.depth_factor}
    assert facts.parameters == built | {"effort": effort, "filtered": filtered}
    assert widths
    assert [k for k, _ in release.search_param_curve.points] == [5, 20]
    assert all(
        effort.width > 0 and (effort.rerank_depth > 0) == (engine == "cells")
        for _, effort in release.search_param_curve.points
    )
    assert asdict(release.cost_model) == facts.costs
    assert release.cost_model.ms_per_scanned_row > 0
    assert (ann["k"], ann["queries"]) == (100, MAX_GOLDEN_QUERIES)
    assert ann["recall"] == pytest.approx(
        release.golden_queries.measure_ann_recall(release.index, release.search_param_curve.look_up(100)), abs=1e-5
    )
    assert ann["floor"] == pytest.approx(max(0.0, ann["recall"] - 0.01), abs=1e-5)
    frontier = [TuningPoint(**point) for point in ann["frontier"]]
    assert {point.k for point in frontier} == {5, 20}
    for k, effort in release.search_param_curve.points:
        (chosen,) = (point for point in frontier if (point.k, point.search_params) == (k, effort))
        assert chosen.recall - chosen.recall_ci95 >= 0.9


def test_a_given_effort_is_kept(tmp_path):
    release = released(tmp_path, contents(), SEARCHED["hnsw"].model_copy(update={"ef": 33}), unit(1, 10))
    parameters = {
        "M": 4,
        "ef_construction": 20,
        "effort": [[5, 33, 0], [20, 33, 0]],
        "filtered": {"widths": [], "deeper": 1.0},
    }
    assert release.manifest.index.parameters == parameters
    assert (release.search_param_curve.look_up(5), release.search_param_curve.look_up(40)) == (
        SearchParams(33),
        SearchParams(66),
    )
    release.check_golden_queries()


@pytest.mark.parametrize("queries", [None, unit(1, 1), unit(1, 0)])
@pytest.mark.parametrize("engine", ["hnsw", "cells"])
def test_with_too_few_queries_effort_is_found_on_items_and_nothing_is_golden(tmp_path, queries, engine):
    release = released(tmp_path, contents(), SEARCHED[engine], queries)
    assert [k for k, _ in release.search_param_curve.points] == [5, 20]
    assert (release.golden_queries, release.manifest.ann) == (None, None)
    release.check_golden_queries()


def test_vectors_mapped_from_a_file_make_the_same_release(tmp_path):
    made, halves = contents(), unit(0, 600).astype(np.float16)
    np.save(tmp_path / "vectors.npy", halves)
    mapped = replace(made, vectors=np.load(tmp_path / "vectors.npy", mmap_mode="r"))
    indexes = [
        released(tmp_path / name, one, IndexSettings(), unit(1, 10)).manifest.files["index.faiss"]
        for name, one in (("memory", made), ("file", mapped))
    ]
    assert indexes[0] == indexes[1]


class LastItem:
    """A user is its newest item."""

    dim, history_length = 8, 2

    def encode_users(self, features, histories, lengths):
        assert len(features) == len(histories) == len(lengths)
        return histories[np.arange(len(lengths)), lengths - 1]


@pytest.mark.parametrize("active", [0, 1, 2, 1500])
def test_users_with_a_history_are_the_queries(tmp_path, monkeypatch, active):
    monkeypatch.setattr(writer, "TUNING_QUERIES", 300)
    rng = np.random.default_rng(0)
    lists = [rng.integers(600, size=3) if user < active else [] for user in range(1600)]
    users = UserTable(
        build_id_map(pl.Series(range(1600)), "integer"),
        pl.DataFrame({"age": range(1600)}),
        RaggedArray.from_lists(lists),
    )
    store = Store.create(tmp_path / "store")
    with store.create_draft("one") as draft:
        description = write_release(
            draft.directory, contents(users=users), SEARCHED["cells"], encoder=(LastItem(), "ab")
        )
        draft.commit(description, activate=True)
    release = load_release(store.get_release_dir("one"), store.verify())
    assert release.manifest.encoder == "ab"
    assert len(release.users.ids) == 1600
    if active < 2:
        assert (release.golden_queries, release.manifest.ann) == (None, None)
        assert [k for k, _ in release.search_param_curve.points] == [5, 20]
        return
    golden = release.golden_queries
    ages = golden.inputs.features["age"].to_list()
    assert ages == sorted(set(ages))
    assert (ages[0], ages[-1], len(ages)) == (0, active - 1, min(active, MAX_GOLDEN_QUERIES))
    for place, user in enumerate(ages[:10]):
        assert golden.inputs.histories[place].tolist() == lists[user][-2:].tolist()
        np.testing.assert_array_equal(golden.vectors[place], release.index.get_vectors(lists[user][-1:])[0])


def test_attributes_are_one_row_per_item():
    check_attributes(pl.DataFrame({"a": [1, 2]}), 2)
    with pytest.raises(DataError, match="1 rows for 2 ids"):
        check_attributes(pl.DataFrame({"a": [1]}), 2)


def test_items_without_attributes_keep_their_number(tmp_path):
    made = ReleaseContents(contents().item_ids, unit(0, 600), pl.DataFrame(height=600))
    assert len(released(tmp_path, made, IndexSettings()).attributes) == 600
