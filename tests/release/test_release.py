import shutil
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from vecall.errors import InvalidReleaseError, StoreError
from vecall.index import index_io as index_files
from vecall.index.exact import ExactIndex
from vecall.release import release as release_module
from vecall.release.manifest import (
    MANIFEST_DIGEST_FILE,
    MANIFEST_FILE,
    IndexInfo,
    Manifest,
    digest_files,
    write_manifest,
)
from vecall.release.release import open_release
from vecall.release.store import Store


@pytest.fixture
def store(published, tmp_path):
    """A copy of a real release's store, to be spoilt."""
    shutil.copytree(published / "store", tmp_path / "store")
    return Store.open(tmp_path / "store")


def exchange(store, change):
    """Change files of the release, and have all sums agree with the change, as a second publisher would."""
    folder = store.folder("tiny")
    manifest = store.verify("tiny")
    for name in (MANIFEST_FILE, MANIFEST_DIGEST_FILE):
        (folder / name).unlink()
    change(folder)
    write_manifest(folder, Manifest(**dict(manifest) | {"files": digest_files(folder)}))
    store.activate("tiny")


def test_all_parts_are_there(store, published):
    release = open_release(store)
    assert release.name == "tiny"
    release.check_golden_queries()
    items = pl.read_csv(published / "items.csv", infer_schema=False).sort("id")
    everything = np.arange(len(items))
    assert release.item_ids.to_ids(everything) == items["id"].to_list()
    assert release.attributes.columns == ["title", "year", "type"]
    assert release.attributes["year"].cast(pl.String).to_list() == items["year"].to_list()
    taken = pl.read_csv(published / "taken.csv").filter(pl.col("rating") >= 3)
    counts = dict(taken.group_by("item").len().iter_rows())
    assert release.popularity.tolist() == [counts.get(one, 0) for one in items["id"]]
    history = release.users.histories[release.users.ids.to_row("user-7")]
    assert release.item_ids.to_ids(history) == taken.filter(user="user-7").sort("time")["item"].to_list()
    assert release.users.features.columns == ["type", "price.eur", "标签", "look", "text"]
    np.testing.assert_array_equal(open_release(store, "tiny").golden_queries.vectors, release.golden_queries.vectors)
    with pytest.raises(StoreError, match="no release 'other'"):
        open_release(store, "other")


def test_whatever_byte_is_flipped_the_release_is_refused_and_the_file_named(store):
    """Every byte of a small file, 200 of a larger one; also truncated, emptied, grown and gone."""
    folder = store.folder("tiny")
    flips = 0
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        places = range(len(content)) if len(content) <= 200 else np.linspace(0, len(content) - 1, 200).astype(int)
        spoilt = [content[:at] + bytes([content[at] ^ (1 << at % 8)]) + content[at + 1 :] for at in places]
        flips += len(spoilt)
        for bad in (*spoilt, content[:-1], b"", content + b"\0"):
            path.write_bytes(bad)
            with pytest.raises(InvalidReleaseError, match=path.name) as refused:
                open_release(store)
            assert refused.value.file == path.name
        path.unlink()
        with pytest.raises(InvalidReleaseError, match=path.name) as refused:
            open_release(store)
        path.write_bytes(content)
    assert flips > 3500
    open_release(store).check_golden_queries()


def test_what_the_manifest_does_not_name_is_refused(store):
    stranger = store.folder("tiny") / "index.faiss.bak"
    stranger.write_bytes(b"")
    with pytest.raises(InvalidReleaseError) as refused:
        open_release(store)
    assert refused.value.file == stranger.name


def rebuilt_index(folder, change):
    vectors = index_files.load_index(folder / "index.faiss")
    vectors = change(vectors.get_vectors(np.arange(vectors.size)))
    index_files.save_index(ExactIndex.build(np.ascontiguousarray(vectors)), folder / "index.faiss")


@pytest.mark.parametrize(
    ("change", "file"),
    [
        (lambda folder: rebuilt_index(folder, lambda x: x[::-1]), "golden.vectors.npy"),
        (lambda folder: np.save(folder / "golden.vectors.npy", np.load(folder / "golden.vectors.npy") * 1.01), None),
        (
            lambda folder: np.save(folder / "golden.rows.npy", np.load(folder / "golden.rows.npy")[:, :5][:, ::-1] * 0),
            None,
        ),
    ],
    ids=["other vectors", "other answers of the towers", "other answers of the index"],
)
def test_files_that_agree_in_sums_and_not_in_answers_fail_the_golden_check(store, change, file):
    exchange(store, change)
    with pytest.raises(InvalidReleaseError, match="golden") as refused:
        open_release(store).check_golden_queries()
    assert refused.value.file == (file or refused.value.file)


def test_towers_of_another_run_fail_the_golden_check(store):
    def retrain(folder):
        import onnx

        model = onnx.load(folder / "query_tower.onnx")
        for weights in model.graph.initializer:
            values = onnx.numpy_helper.to_array(weights)
            if values.dtype == np.float32 and values.ndim == 2:
                weights.CopyFrom(onnx.numpy_helper.from_array(values + 0.05, weights.name))
        onnx.save(model, folder / "query_tower.onnx")

    exchange(store, retrain)
    with pytest.raises(InvalidReleaseError, match="golden queries: user vectors differ"):
        open_release(store).check_golden_queries()


@pytest.mark.parametrize(
    ("change", "file"),
    [
        (lambda folder: rebuilt_index(folder, lambda x: x[:-1]), "index.faiss"),
        (lambda folder: rebuilt_index(folder, lambda x: x[:, :4]), "index.faiss"),
        (lambda folder: np.save(folder / "popularity.npy", np.zeros(3, np.float32)), "popularity.npy"),
        (lambda folder: pl.DataFrame({"year": [1]}).write_ipc(folder / "attributes.arrow"), "attributes.arrow"),
        (lambda folder: (folder / "encoders.json").write_text("{}"), "encoders.json"),
        (lambda folder: (folder / "index.faiss").write_bytes(b"IxSQ nonsense"), "index.faiss"),
    ],
    ids=["fewer vectors", "shorter vectors", "popularity", "attributes", "encoders", "no index"],
)
def test_files_that_do_not_belong_together_are_refused(store, change, file):
    exchange(store, change)
    with pytest.raises(InvalidReleaseError) as refused:
        open_release(store)
    assert refused.value.file == file


@pytest.mark.parametrize(
    ("engine", "parameters", "efforts"),
    [
        ("hnsw", {"effort": [[5, 20, 0], [50, 90, 0]]}, {1: (20, 0), 5: (20, 0), 50: (90, 0), 100: (180, 0)}),
        ("cells", {"cells": 64, "effort": [[5, 4, 12], [50, 9, 75]]}, {5: (4, 12), 100: (18, 150)}),
        # As releases of format 1 have it.
        ("hnsw", {"effort": [[5, 20], [50, 90]]}, {5: (20, 0), 100: (180, 0)}),
        ("hnsw", {"M": 16, "ef": 33}, {1: (33, 0), 33: (33, 0), 66: (66, 0)}),
        ("hnsw", {}, {1: (50, 0), 100: (100, 0)}),
    ],
)
def test_how_hard_to_search_stands_in_the_manifest(engine, parameters, efforts):
    curve = release_module._parse_search_param_curve(
        SimpleNamespace(index=IndexInfo(engine=engine, parameters=parameters))
    )
    assert {k: tuple(curve.look_up(k)) for k in efforts} == efforts


def test_a_scan_needs_no_effort():
    assert release_module._parse_search_param_curve(SimpleNamespace(index=IndexInfo(engine="exact"))) is None
