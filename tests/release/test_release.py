import shutil
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from vecall.errors import InvalidReleaseError, StoreError
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
    """Copy of a published release's store, for tests that damage it."""
    shutil.copytree(published / "store", tmp_path / "store")
    return Store.open(tmp_path / "store")


def republish(store, change):
    """Change files of the release and write a manifest and CURRENT that match the change."""
    directory = store.get_release_dir("tiny")
    manifest = store.verify("tiny")
    for name in (MANIFEST_FILE, MANIFEST_DIGEST_FILE):
        (directory / name).unlink()
    change(directory)
    write_manifest(directory, Manifest(**dict(manifest) | {"files": digest_files(directory)}))
    store.activate("tiny")


def test_open_release_loads_all_parts(store, published):
    release = open_release(store)
    assert release.name == "tiny"
    release.check_golden_queries()
    items = pl.read_csv(published / "items.csv", infer_schema=False).sort("id")
    rows = np.arange(len(items))
    assert release.item_ids.to_ids(rows) == items["id"].to_list()
    assert release.attributes.columns == ["title", "year", "type"]
    assert release.attributes["year"].cast(pl.String).to_list() == items["year"].to_list()
    positives = pl.read_csv(published / "taken.csv").filter(pl.col("rating") >= 3)
    counts = dict(positives.group_by("item").len().iter_rows())
    assert release.popularity.tolist() == [counts.get(item_id, 0) for item_id in items["id"]]
    history = release.users.histories[release.users.ids.to_row("user-7")]
    assert release.item_ids.to_ids(history) == positives.filter(user="user-7").sort("time")["item"].to_list()
    assert release.users.features.columns == ["type", "price.eur", "标签", "look", "text"]
    np.testing.assert_array_equal(open_release(store, "tiny").golden_queries.vectors, release.golden_queries.vectors)
    with pytest.raises(StoreError, match="no release 'other'"):
        open_release(store, "other")


def test_flipped_byte_of_any_file_is_refused_by_name(store):
    """Flip every byte of a small file and 200 of a larger one; also truncate, empty, extend and delete each file."""
    flips = 0
    for path in sorted(path for path in store.get_release_dir("tiny").iterdir() if path.is_file()):
        content = path.read_bytes()
        positions = range(len(content)) if len(content) <= 200 else np.linspace(0, len(content) - 1, 200).astype(int)
        flipped = [content[:i] + bytes([content[i] ^ (1 << i % 8)]) + content[i + 1 :] for i in positions]
        flips += len(flipped)
        for damaged in (*flipped, content[:-1], b"", content + b"\0"):
            path.write_bytes(damaged)
            with pytest.raises(InvalidReleaseError, match=path.name) as caught:
                open_release(store)
            assert caught.value.file == path.name
        path.unlink()
        with pytest.raises(InvalidReleaseError, match=path.name) as caught:
            open_release(store)
        path.write_bytes(content)
    assert flips > 3500
    open_release(store).check_golden_queries()


def test_file_that_the_manifest_does_not_list_is_refused(store):
    extra = store.get_release_dir("tiny") / "index.faiss.bak"
    extra.write_bytes(b"")
    with pytest.raises(InvalidReleaseError) as caught:
        open_release(store)
    assert caught.value.file == extra.name


def rebuild_index(directory, change):
    stored = ExactIndex.load(directory / "index.faiss").vectors
    vectors = change(stored.get_vectors(np.arange(stored.size)))
    ExactIndex.build(np.ascontiguousarray(vectors)).save(directory / "index.faiss")


def change_array(directory, name, change):
    np.save(directory / name, change(np.load(directory / name)))


@pytest.mark.parametrize(
    ("change", "file"),
    [
        (lambda directory: rebuild_index(directory, lambda x: x[::-1]), "golden.vectors.npy"),
        (lambda directory: change_array(directory, "golden.vectors.npy", lambda x: x * 1.01), "golden.vectors.npy"),
        (
            lambda directory: change_array(directory, "golden.exact_rows.npy", lambda x: x[:, :5][:, ::-1] * 0),
            "golden.exact_rows.npy",
        ),
    ],
    ids=["item vectors", "user vectors", "exact rows"],
)
def test_changed_files_with_valid_digests_fail_the_golden_check(store, change, file):
    republish(store, change)
    with pytest.raises(InvalidReleaseError, match="golden") as caught:
        open_release(store).check_golden_queries()
    assert caught.value.file == file


def test_retrained_query_tower_fails_the_golden_check(store):
    def retrain(directory):
        import onnx

        model = onnx.load(directory / "query_tower.onnx")
        for weights in model.graph.initializer:
            values = onnx.numpy_helper.to_array(weights)
            if values.dtype == np.float32 and values.ndim == 2:
                weights.CopyFrom(onnx.numpy_helper.from_array(values + 0.05, weights.name))
        onnx.save(model, directory / "query_tower.onnx")

    republish(store, retrain)
    with pytest.raises(InvalidReleaseError, match="golden queries: user vectors differ"):
        open_release(store).check_golden_queries()


@pytest.mark.parametrize(
    ("change", "file"),
    [
        (lambda directory: rebuild_index(directory, lambda x: x[:-1]), "index.faiss"),
        (lambda directory: rebuild_index(directory, lambda x: x[:, :4]), "index.faiss"),
        (lambda directory: np.save(directory / "popularity.npy", np.zeros(3, np.float32)), "popularity.npy"),
        (lambda directory: pl.DataFrame({"year": [1]}).write_ipc(directory / "attributes.arrow"), "attributes.arrow"),
        (lambda directory: (directory / "encoders.json").write_text("{}"), "encoders.json"),
        (lambda directory: (directory / "index.faiss").write_bytes(b"IxSQ nonsense"), "index.faiss"),
    ],
    ids=["fewer vectors", "shorter vectors", "popularity", "attributes", "encoders", "no index"],
)
def test_files_that_do_not_match_each_other_are_refused(store, change, file):
    republish(store, change)
    with pytest.raises(InvalidReleaseError) as caught:
        open_release(store)
    assert caught.value.file == file


def parse_curve(engine, parameters):
    manifest = SimpleNamespace(name="one", index=IndexInfo(engine=engine, parameters=parameters))
    return release_module._parse_search_param_curve(manifest)


UNFILTERED = {"widths": [], "depth_factor": 1.0, "spread": 0.0}


@pytest.mark.parametrize(
    ("engine", "parameters", "expected"),
    [
        (
            "hnsw",
            {"search_params": [[5, 20, 0, 0.0], [50, 90, 0, 0.0]], "filtered_search_params": UNFILTERED},
            {1: (20, 0, 0), 5: (20, 0, 0), 50: (90, 0, 0), 100: (180, 0, 0)},
        ),
        (
            "ivf",
            {"nlist": 64, "search_params": [[5, 4, 12, 0.9], [55, 9, 75, 0.95]], "filtered_search_params": UNFILTERED},
            {5: (4, 12, 0.9), 30: (7, 44, 0.925), 110: (18, 150, 0.95)},
        ),
    ],
)
def test_search_params_are_read_from_the_manifest(engine, parameters, expected):
    curve = parse_curve(engine, parameters)
    assert {k: tuple(curve.look_up(k)) for k in expected} == expected


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"M": 16, "ef": 33},
        {"search_params": [[5, 20, 0], [50, 90, 0]], "filtered_search_params": UNFILTERED},
        {"search_params": [], "filtered_search_params": UNFILTERED},
        {"search_params": [[5, 20, 0, 0.0]]},
        {"search_params": [[5, 20, 0, 0.0]], "filtered_search_params": {"widths": [], "depth_factor": 1.0}},
        {"search_params": [[5, 20, 0, 0.0]], "filtered_search_params": UNFILTERED | {"widths": [[1]]}},
    ],
)
def test_missing_or_malformed_search_params_are_refused(parameters):
    with pytest.raises(InvalidReleaseError, match=r"'one': index\.parameters of manifest\.json is invalid") as caught:
        parse_curve("hnsw", parameters)
    assert caught.value.file == MANIFEST_FILE


def test_costs_with_other_keys_than_the_cost_model_are_refused():
    manifest = SimpleNamespace(name="one", index=IndexInfo(engine="hnsw", costs={"fixed_ms": 0.1, "per_row": 0.1}))
    with pytest.raises(InvalidReleaseError, match=r"'one': index\.costs of manifest\.json is invalid") as caught:
        release_module._parse_cost_model(manifest)
    assert caught.value.file == MANIFEST_FILE


def test_exact_index_has_no_search_params():
    assert parse_curve("exact", {}) is None
