"""Files of a ranker in a release: written, verified, loaded, carried over; a machine without its package."""

import sys
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from vecall.data.id_map import build_id_map
from vecall.errors import InvalidReleaseError, RankerUnavailableError
from vecall.index.settings import IndexSettings
from vecall.live.compaction import compact
from vecall.ranking.features import RankerFeature, RankerFeatures
from vecall.ranking.lightgbm_ranker import RankerSpec
from vecall.ranking.ranker_info import RankerInfo
from vecall.recall.recaller import open_recaller
from vecall.release.ranker_io import RANKER_MODEL_FILE, RANKER_SPEC_FILE, copy_ranker, load_ranker, save_ranker
from vecall.release.release import open_release
from vecall.release.store import Store
from vecall.release.writer import ReleaseContents, write_release

lightgbm = pytest.importorskip("lightgbm")

KEPT = RankerInfo(name="lightgbm", reason="it gains")
SPEC = RankerSpec(
    features=RankerFeatures(features=(RankerFeature(column="price", transform="number"),)), rank_weight=1.0
)
N = 20


@pytest.fixture(scope="module")
def model_text():
    prices = np.arange(400, dtype=np.float32)[:, None] % N
    dataset = lightgbm.Dataset(prices, label=prices[:, 0] > 9, group=[N] * 20, params={"verbosity": -1})
    return lightgbm.train({"objective": "lambdarank", "verbosity": -1}, dataset, 5).model_to_string()


@pytest.fixture
def store(tmp_path, model_text):
    run_dir = tmp_path / "ranker"
    run_dir.mkdir()
    save_ranker(SPEC, model_text, run_dir)
    contents = ReleaseContents(
        item_ids=build_id_map(pl.Series(range(N)), "integer"),
        vectors=np.random.default_rng(0).random((N, 4)).astype(np.float32),
        attributes=pl.DataFrame({"price": np.arange(N, dtype=np.float64)}),
        ranker=KEPT,
    )
    store = Store.open_or_create(tmp_path / "store")
    with store.create_draft("first") as draft:
        copy_ranker(KEPT, run_dir, draft.directory)
        draft.commit(write_release(draft.directory, contents, IndexSettings()), activate=True)
    return store


def make_candidates():
    return pl.DataFrame({"rank": [1, 2, 3], "price": [1.0, 12.0, 2.0]})


def test_release_has_the_ranker_that_its_manifest_names(store):
    release = open_release(store)
    assert release.manifest.ranker == KEPT
    assert release.ranker.name == "lightgbm"
    assert release.ranker.ranker(make_candidates()).arg_max() == 1


def test_release_without_ranker_has_none(tmp_path):
    assert load_ranker(tmp_path, RankerInfo(reason="ranking.ranker is 'none'")) is None
    copy_ranker(RankerInfo(), tmp_path / "missing", tmp_path)


def test_compaction_carries_the_ranker_over(store):
    with open_recaller(store.path, writable=True, auto_compact=False) as recaller:
        recaller.upsert([{"id": 99, "vector": [1, 1, 1, 1], "fields": {"price": 3.0}}])
    before, after = open_release(store), open_release(store, compact(store.path))
    assert after.name != before.name
    assert after.manifest.ranker == KEPT
    assert after.ranker.ranker(make_candidates()).to_list() == before.ranker.ranker(make_candidates()).to_list()


@pytest.mark.parametrize("file", [RANKER_SPEC_FILE, RANKER_MODEL_FILE])
def test_damaged_file_refuses_the_release(store, file):
    path = store.get_release_dir("first") / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InvalidReleaseError, match=file) as caught:
        open_release(store)
    assert caught.value.file == file


@pytest.mark.parametrize("file", [RANKER_SPEC_FILE, RANKER_MODEL_FILE])
@pytest.mark.parametrize("content", [None, b"{}", b"\xff"])
def test_missing_or_other_file_is_named(tmp_path, model_text, file, content):
    save_ranker(SPEC, model_text, tmp_path)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(InvalidReleaseError, match=file) as caught:
        load_ranker(tmp_path, KEPT)
    assert caught.value.file == file


def test_machine_without_lightgbm_serves_the_release_and_warns_once(store, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    release = open_release(store)
    for _ in range(2):
        with pytest.raises(RankerUnavailableError, match=r"vecall\[ranking\]"):
            release.ranker.ranker(make_candidates())
    assert caplog.text.count("recall's order is served") == 1
    assert replace(release, ranker=None).manifest.ranker == KEPT
