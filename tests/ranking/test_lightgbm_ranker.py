"""The reference ranker: scores, threads, damaged models, a machine without lightgbm."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import polars as pl
import pytest

from vecall.errors import RankerUnavailableError, VecallError
from vecall.ranking.features import RankerFeature, RankerFeatures
from vecall.ranking.lightgbm_ranker import LightGbmRanker, RankerSpec, UnavailableRanker

lightgbm = pytest.importorskip("lightgbm")

FEATURES = RankerFeatures(
    features=(RankerFeature(column="price", transform="number"), RankerFeature(column="size", transform="number"))
)


@pytest.fixture(scope="module")
def model_text():
    rng = np.random.default_rng(0)
    matrix = rng.random((400, 2)).astype(np.float32)
    dataset = lightgbm.Dataset(matrix, label=matrix[:, 0] > 0.5, group=[40] * 10, params={"verbosity": -1})
    return lightgbm.train({"objective": "lambdarank", "verbosity": -1}, dataset, 10).model_to_string()


def make_candidates(n, seed=0):
    rng = np.random.default_rng(seed)
    return pl.DataFrame({"rank": range(1, n + 1), "price": rng.random(n), "size": rng.random(n)}, strict=False)


@pytest.mark.parametrize("rank_weight", [0.0, 2.0])
def test_score_is_that_of_the_trees_less_the_weighted_logarithm_of_the_rank(model_text, rank_weight):
    candidates = make_candidates(30)
    trees = lightgbm.Booster(model_str=model_text).predict(candidates.select("price", "size").to_numpy())
    ranker = LightGbmRanker.from_text(model_text, RankerSpec(features=FEATURES, rank_weight=rank_weight))
    np.testing.assert_allclose(
        ranker(candidates).to_numpy(), trees - rank_weight * np.log(np.arange(1, 31)), rtol=1e-6, atol=1e-7
    )


def test_threads_get_the_scores_of_one_thread(model_text):
    ranker = LightGbmRanker.from_text(model_text, RankerSpec(features=FEATURES, rank_weight=1.0))
    tables = [make_candidates(200, seed) for seed in range(20)]
    expected = [ranker(table).to_list() for table in tables]
    with ThreadPoolExecutor(4) as pool:
        assert [scores.to_list() for scores in pool.map(ranker, tables)] == expected


def test_no_candidates_have_no_scores(model_text):
    ranker = LightGbmRanker.from_text(model_text, RankerSpec(features=FEATURES, rank_weight=1.0))
    assert ranker(make_candidates(0)).to_list() == []


def test_model_of_other_features_is_refused(model_text):
    features = RankerFeatures(features=FEATURES.features[:1])
    with pytest.raises(VecallError, match="reads 2 features, expected 1"):
        LightGbmRanker.from_text(model_text, RankerSpec(features=features, rank_weight=1.0))


def test_text_that_is_no_model_is_refused():
    with pytest.raises(VecallError, match="not a model of LightGBM"):
        LightGbmRanker.from_text("tree\n", RankerSpec(features=FEATURES, rank_weight=1.0))


def test_missing_package_is_named_with_its_extra(model_text, monkeypatch):
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(RankerUnavailableError, match=r"pip install 'vecall\[ranking\]'"):
        LightGbmRanker.from_text(model_text, RankerSpec(features=FEATURES, rank_weight=1.0))


def test_missing_library_of_the_system_is_named(model_text, tmp_path, monkeypatch):
    (tmp_path / "lightgbm.py").write_text("raise OSError('libgomp.so.1: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "lightgbm", raising=False)
    with pytest.raises(RankerUnavailableError, match=r"libgomp\.so\.1"):
        LightGbmRanker.from_text(model_text, RankerSpec(features=FEATURES, rank_weight=1.0))


def test_unavailable_ranker_fails_with_the_reason():
    with pytest.raises(RankerUnavailableError, match="lightgbm is missing"):
        UnavailableRanker("lightgbm is missing")(make_candidates(1))
