import errno
import os
from dataclasses import asdict, replace

import numpy as np
import polars as pl
import pytest

from vecall.data.id_map import build_id_map
from vecall.data.ragged import RaggedArray
from vecall.errors import DataError, StoreError
from vecall.index import timing
from vecall.index.base import SearchParams
from vecall.index.planner import DEFAULT_COSTS
from vecall.index.search_params import TuningPoint
from vecall.index.settings import IndexSettings
from vecall.release import writer
from vecall.release.release import load_release
from vecall.release.store import Store
from vecall.release.users import UserTable
from vecall.release.writer import MAX_GOLDEN_QUERIES, ReleaseContents, check_attributes, write_release

APPROXIMATE_SETTINGS = {
    "hnsw": IndexSettings(engine="hnsw", target_recall=0.9, ks=(5, 20), M=4, ef_construction=20),
    "ivf": IndexSettings(engine="ivf", target_recall=0.9, ks=(5, 20), nlist=16),
}


def make_unit_vectors(seed, n, dim=8):
    vectors = np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def make_contents(n=600, **fields):
    item_ids = build_id_map(pl.Series([f"item {i:04}" for i in range(n)]), "string")
    return ReleaseContents(item_ids, make_unit_vectors(0, n), pl.DataFrame({"year": range(n)}), **fields)


def publish(tmp_path, contents, settings, queries=None):
    store = Store.open_or_create(tmp_path / "store")
    with store.create_draft("one") as draft:
        name = draft.commit(write_release(draft.directory, contents, settings, queries=queries), activate=True)
    return load_release(store.get_release_dir(name), store.verify(name))


def test_release_of_vectors_alone_has_no_optional_parts(tmp_path):
    release = publish(tmp_path, make_contents(journal_seq=7, tables_seq=5), IndexSettings())
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
    release.check_golden_queries()  # passes, since there are none
    np.testing.assert_allclose(release.vectors.get_vectors(np.arange(600)), make_unit_vectors(0, 600), atol=1e-3)


@pytest.mark.parametrize("engine", ["hnsw", "ivf"])
def test_queries_tune_the_index_and_become_golden(tmp_path, engine, monkeypatch):
    # Scans are expensive, so that filtered searches go through the index.
    monkeypatch.setattr(timing, "measure_scan_ms_per_row", lambda vectors, queries: 1.0)
    settings = APPROXIMATE_SETTINGS[engine]
    release = publish(tmp_path, make_contents(), settings, make_unit_vectors(1, 400))
    release.check_golden_queries()
    assert len(release.golden_queries.vectors) == MAX_GOLDEN_QUERIES
    assert release.golden_queries.inputs is None
    index_info, ann, curve = release.manifest.index, release.manifest.ann, release.search_param_curve
    assert index_info.engine == engine
    assert index_info.settings == settings.model_dump(mode="json", exclude_unset=True)
    build_params = {"M": 4, "ef_construction": 20} if engine == "hnsw" else {"nlist": 16}
    points = [[k, *search_params] for k, search_params in curve.points]
    widths = [[width.rank, width.width_for_all, width.width_for_tail] for width in curve.filtered_table.widths]
    table = curve.filtered_table
    filtered = {"widths": widths, "depth_factor": table.depth_factor, "spread": table.spread}
    assert index_info.parameters == build_params | {"search_params": points, "filtered_search_params": filtered}
    assert (len(widths) > 0, table.spread > 0) == (engine == "hnsw", engine == "ivf")
    assert [k for k, _ in curve.points] == [5, 20]
    assert all(
        search_params.width > 0 and (search_params.rerank_depth > 0) == (engine == "ivf")
        for _, search_params in curve.points
    )
    assert asdict(release.cost_model) == index_info.costs
    assert release.cost_model.ms_per_scanned_row > 0
    assert (ann["k"], ann["queries"]) == (100, MAX_GOLDEN_QUERIES)
    assert ann["recall"] == pytest.approx(
        release.golden_queries.measure_ann_recall(release.index, curve.look_up(100)), abs=1e-5
    )
    assert ann["floor"] == pytest.approx(max(0.0, ann["recall"] - 0.01), abs=1e-5)
    frontier = [TuningPoint(**point) for point in ann["frontier"]]
    assert {point.k for point in frontier} == {5, 20}
    for k, search_params in curve.points:
        (chosen,) = (point for point in frontier if (point.k, point.search_params) == (k, search_params))
        assert chosen.recall - chosen.recall_ci95 >= 0.9


def test_ef_of_the_settings_is_not_tuned(tmp_path):
    settings = APPROXIMATE_SETTINGS["hnsw"].model_copy(update={"ef": 33})
    release = publish(tmp_path, make_contents(), settings, make_unit_vectors(1, 10))
    assert release.manifest.index.parameters == {
        "M": 4,
        "ef_construction": 20,
        "search_params": [[5, 33, 0, 0.0], [20, 33, 0, 0.0]],
        "filtered_search_params": {"widths": [], "depth_factor": 1.0, "spread": 0.0},
    }
    curve = release.search_param_curve
    assert (curve.look_up(5), curve.look_up(40)) == (SearchParams(33), SearchParams(66))
    release.check_golden_queries()


@pytest.mark.parametrize("queries", [None, make_unit_vectors(1, 1), make_unit_vectors(1, 0)])
@pytest.mark.parametrize("engine", ["hnsw", "ivf"])
def test_fewer_than_two_queries_tune_on_items_and_record_no_golden_queries(tmp_path, queries, engine):
    release = publish(tmp_path, make_contents(), APPROXIMATE_SETTINGS[engine], queries)
    assert [k for k, _ in release.search_param_curve.points] == [5, 20]
    assert (release.golden_queries, release.manifest.ann) == (None, None)
    release.check_golden_queries()


def test_mapped_half_precision_vectors_build_the_same_index(tmp_path):
    contents = make_contents()
    np.save(tmp_path / "vectors.npy", make_unit_vectors(0, 600).astype(np.float16))
    mapped = replace(contents, vectors=np.load(tmp_path / "vectors.npy", mmap_mode="r"))
    digests = [
        publish(tmp_path / name, variant, IndexSettings(), make_unit_vectors(1, 10)).manifest.files["index.faiss"]
        for name, variant in (("memory", contents), ("file", mapped))
    ]
    assert digests[0] == digests[1]


class LastItemEncoder:
    """Encodes a user as the vector of the newest item."""

    dim, history_length = 8, 2

    def select_history(self, histories):
        return histories.truncate_to_last(2)

    def encode_users(self, features, histories, lengths):
        assert len(features) == len(histories) == len(lengths)
        return histories[np.arange(len(lengths)), lengths - 1]


@pytest.mark.parametrize("active", [0, 1, 2, 1500])
def test_users_with_a_history_become_tuning_and_golden_queries(tmp_path, monkeypatch, active):
    monkeypatch.setattr(writer, "MAX_TUNING_QUERIES", 300)
    rng = np.random.default_rng(0)
    histories = [rng.integers(600, size=3) if user < active else [] for user in range(1600)]
    users = UserTable(
        build_id_map(pl.Series(range(1600)), "integer"),
        pl.DataFrame({"age": range(1600)}),
        RaggedArray.from_lists(histories),
    )
    store = Store.open_or_create(tmp_path / "store")
    with store.create_draft("one") as draft:
        metadata = write_release(
            draft.directory,
            make_contents(users=users),
            APPROXIMATE_SETTINGS["ivf"],
            encoder=(LastItemEncoder(), "ab"),
        )
        draft.commit(metadata, activate=True)
    release = load_release(store.get_release_dir("one"), store.verify())
    assert release.manifest.encoder == "ab"
    assert len(release.users.ids) == 1600
    if active < 2:
        assert (release.golden_queries, release.manifest.ann) == (None, None)
        assert [k for k, _ in release.search_param_curve.points] == [5, 20]
        return
    golden = release.golden_queries
    ages = golden.inputs.features["age"].to_list()  # equal to the users' rows
    assert ages == sorted(set(ages))
    assert (ages[0], ages[-1], len(ages)) == (0, active - 1, min(active, MAX_GOLDEN_QUERIES))
    for position, user in enumerate(ages[:10]):
        assert golden.inputs.histories[position].tolist() == histories[user][-2:].tolist()
        np.testing.assert_array_equal(golden.vectors[position], release.vectors.get_vectors(histories[user][-1:])[0])


def test_attributes_need_one_row_per_item():
    check_attributes(pl.DataFrame({"a": [1, 2]}), 2)
    with pytest.raises(DataError, match="1 rows for 2 ids"):
        check_attributes(pl.DataFrame({"a": [1]}), 2)


def test_attributes_without_columns_keep_their_row_count(tmp_path):
    contents = ReleaseContents(make_contents().item_ids, make_unit_vectors(0, 600), pl.DataFrame(height=600))
    assert len(publish(tmp_path, contents, IndexSettings()).attributes) == 600


def test_full_disk_is_reported_as_a_store_error(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writer, "save_id_map", fail)
    ids = build_id_map(pl.Series("id", [1, 2]), "integer")
    contents = ReleaseContents(ids, np.eye(2, dtype=np.float32), pl.DataFrame(height=2))
    with pytest.raises(StoreError, match=r"could not be written: .*No space left"):
        write_release(tmp_path, contents, IndexSettings(engine="exact"))
