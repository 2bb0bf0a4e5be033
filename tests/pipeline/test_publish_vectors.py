"""Releases of externally trained vectors: any order of ids, and errors for invalid or inconsistent input."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from vecall import ConfigError, DataError, IndexSettings, Query, StoreError, VecallError, open_recaller, publish_vectors
from vecall.pipeline import publish_vectors as publish_vectors_module
from vecall.ranking.ranker import rank
from vecall.ranking.weighted_sum import WeightedSumRanker
from vecall.release.store import Store

N, D = 3_000, 16
VECTORS = np.random.default_rng(1).standard_normal((N, D)).astype(np.float32)
IDS = [f"item-{row}" for row in range(N)]


@pytest.mark.parametrize("ids", [IDS, list(range(N)), np.arange(N)], ids=["strings", "integers", "array"])
def test_ids_come_back_with_their_own_vectors(tmp_path: Path, ids: Any) -> None:
    shuffled = np.random.default_rng(0).permutation(N)
    shuffled_ids = [ids[row] for row in shuffled]
    attributes = pl.DataFrame({"row": shuffled})
    publish_vectors(tmp_path, shuffled_ids, VECTORS[shuffled], attributes=attributes, queries=VECTORS[:200])
    stored_vectors = VECTORS.astype(np.float16).astype(np.float32)
    with open_recaller(tmp_path) as recaller:
        for row in (0, 7, N - 1):
            query = Query(vector=VECTORS[row], k=20)
            exact_rows = np.argsort(-(stored_vectors @ VECTORS[row]), kind="stable")[:20]
            recalled = recaller.recall(query)
            assert len(set(recalled.ids) & {ids[exact_row] for exact_row in exact_rows}) >= 18
            assert type(recalled.ids[0]) is (str if isinstance(ids[0], str) else int)
            rows = recaller.candidates(query)["row"].to_list()
            assert [ids[candidate_row] for candidate_row in rows] == recalled.ids


def test_search_params_are_tuned_on_the_queries(tmp_path: Path) -> None:
    publish_vectors(tmp_path, IDS, VECTORS, queries=VECTORS[:300], index=IndexSettings(engine="hnsw", ks=(10, 100)))
    manifest = Store.open(tmp_path).verify()
    assert [k for k, *_ in manifest.index.parameters["search_params"]] == [10, 100]
    with open_recaller(tmp_path) as recaller:
        plan = recaller.recall(Query(vector=VECTORS[0], k=100, explain=True)).plan
    assert plan is not None
    assert (plan.path, plan.effort) == ("scan", None)  # a scan of 3,000 rows is faster than any graph


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": IDS[:-1]}, "2999 ids"),
        ({"ids": [*IDS[:-1], IDS[0]]}, "item-0"),
        ({"ids": [*IDS[:-1], 3]}, "all strings"),
        ({"ids": []}, "at least one item"),
        ({"ids": set(IDS)}, "a sequence of ids in the order of the vectors"),
        ({"ids": dict.fromkeys(IDS)}, "a sequence of ids in the order of the vectors"),
        ({"ids": "abc"}, "a sequence of ids"),
        ({"ids": None}, "a sequence of ids, got NoneType"),
        ({"ids": ["", *IDS[1:]]}, "a non-empty id .*got '' at index 0"),
        ({"ids": [*IDS[1:], "a\ud800"]}, "valid Unicode"),
        ({"ids": [True, *range(N - 1)]}, "all integers or all strings"),
        ({"ids": np.arange(N) * 0.5}, "all integers or all strings"),
        ({"ids": pl.Series([2**63, *range(N - 1)], dtype=pl.UInt64)}, "an integer id of at most 64 bits"),
        ({"ids": pl.Series([None, *IDS[1:]])}, "a non-empty id .*got None at index 0"),
        ({"vectors": VECTORS * 1j}, "real numbers, got complex"),
        ({"vectors": VECTORS > 0}, "real numbers, got bool"),
        ({"vectors": VECTORS.astype(str)}, "real numbers, got <U"),
        ({"vectors": np.ma.array(VECTORS, mask=VECTORS > 0)}, "masked"),
        ({"vectors": [[1.0], [1.0, 2.0]] * (N // 2)}, "vectors: expected an array of numbers, got list"),
        ({"vectors": torch.tensor(VECTORS, requires_grad=True)}, "vectors: .*got Tensor: .*detach"),
        ({"vectors": VECTORS[:, :0]}, "at least one vector and one dimension"),
        ({"vectors": VECTORS * 1e6}, "within ±65504"),
        ({"vectors": VECTORS * 1e-7}, "half precision loses digits and orders items wrongly: normalise"),
        ({"queries": VECTORS * np.inf}, "queries must be finite"),
        ({"queries": np.full((2, D), np.inf, dtype=np.float16)}, "queries must be finite"),
        ({"queries": [["a"] * D]}, "queries: expected an array of real numbers"),
        ({"attributes": [{"x": 1}] * N}, "expected a polars.DataFrame"),
        ({"attributes": pl.DataFrame({"a": pl.Series([object()] * N, dtype=pl.Object)})}, "Python objects"),
        ({"attributes": pl.DataFrame({"a": pl.Series([10**18] * N).cast(pl.Datetime("us"))})}, "years 1 to 9999"),
        ({"ids": [2**70, *range(N - 1)]}, r"64 bits.*: [^\n]*$"),
        ({"vectors": VECTORS[0]}, r"\[N, D\]"),
        ({"vectors": np.full_like(VECTORS, np.nan)}, "finite"),
        (
            {"ids": IDS[::-1], "vectors": np.where(np.arange(N)[:, None] == 0, 7e4, VECTORS)},
            f"within ±65504.*'{IDS[-1]}'",
        ),
        ({"queries": VECTORS[:, :3]}, r"\[Q, 16\]"),
        ({"attributes": pl.DataFrame({"year": [1]})}, "1 rows"),
        ({"attributes": pl.DataFrame({"score": range(N)})}, "score"),
    ],
)
def test_invalid_or_inconsistent_input_raises(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        publish_vectors(tmp_path, **{"ids": IDS, "vectors": VECTORS} | change)
    assert not list((tmp_path / "releases").iterdir()) if tmp_path.joinpath("releases").exists() else True


@pytest.mark.parametrize(
    "change",
    [
        {"vectors": VECTORS.tolist()},
        {"vectors": VECTORS.astype(object)},
        {"vectors": torch.tensor(VECTORS)},
        {"vectors": VECTORS.astype(np.float64), "queries": VECTORS[:9].tolist()},
        {"ids": torch.arange(N)},
        {"ids": pl.Series(IDS, dtype=pl.Categorical)},
        {"ids": np.arange(N, dtype=np.int16)},
        {"ids": (item_id for item_id in IDS)},
        {"queries": VECTORS[:0]},
    ],
    ids=[
        "lists",
        "objects",
        "tensor",
        "doubles",
        "ids-tensor",
        "ids-categorical",
        "ids-int16",
        "ids-generator",
        "no-queries",
    ],
)
def test_array_like_input_is_accepted(tmp_path: Path, change: dict[str, Any]) -> None:
    publish_vectors(tmp_path, **{"ids": IDS, "vectors": VECTORS, "index": IndexSettings(engine="exact")} | change)
    with open_recaller(tmp_path) as recaller:
        recalled = recaller.recall(Query(vector=VECTORS[7], k=1))
    assert recalled.ids in (["item-7"], [7])


def test_invalid_index_settings_and_journal_seq_raise(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected IndexSettings"):
        publish_vectors(tmp_path, IDS, VECTORS, index={"engine": "exact"})  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="journal_seq is -1"):
        publish_vectors(tmp_path, IDS, VECTORS, journal_seq=-1)


def test_rank_returns_the_best_scored_candidates(tmp_path: Path) -> None:
    attributes = pl.DataFrame({"year": [None, *range(1, N)]})
    publish_vectors(tmp_path, IDS, VECTORS, attributes=attributes)
    with open_recaller(tmp_path) as recaller:
        candidates = recaller.candidates(Query(vector=VECTORS[0], k=50))
    final = rank(candidates, WeightedSumRanker({"year": 1.0}), k=5)
    newest = candidates.sort("year", descending=True, nulls_last=True)["id"].head(5).to_list()
    assert final["id"].to_list() == newest
    by_recall = rank(candidates, lambda table: [0.0] * len(table), k=3)
    assert by_recall["rank"].to_list() == [1, 2, 3]
    with pytest.raises(VecallError, match="finite score"):
        rank(candidates, lambda _: [1.0], k=5)
    with pytest.raises(VecallError, match="not a numeric column"):
        rank(candidates, WeightedSumRanker({"title": 1.0}), k=5)


def test_missing_and_infinite_values_are_the_least_of_a_weighted_sum() -> None:
    candidates = pl.DataFrame({"x": [2.0, float("nan"), float("inf"), 4.0, None, 3.0]})
    assert WeightedSumRanker({"x": 1.0})(candidates).to_list() == [0.0, 0.0, 0.0, 1.0, 0.0, 0.5]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_vectors_sorted_in_chunks_equal_those_sorted_at_once(monkeypatch: pytest.MonkeyPatch, dtype: Any) -> None:
    monkeypatch.setattr(publish_vectors_module, "_CHUNK_ROWS", 1000)
    vectors, order = VECTORS.astype(dtype), np.random.default_rng(0).permutation(N)
    stored = publish_vectors_module._take_stored(vectors, order)
    expected = (vectors if dtype == np.float16 else vectors.astype(np.float32))[order]
    assert stored.dtype == expected.dtype
    np.testing.assert_array_equal(stored, expected)


def test_masked_ids_are_refused(tmp_path: Path) -> None:
    """NumPy drops the mask where it makes an array of them."""
    ids = np.ma.masked_array([1, 2, 3], mask=[False, True, False])
    with pytest.raises(DataError, match="some are masked"):
        publish_vectors(tmp_path / "store", ids, np.eye(3, dtype=np.float32))
