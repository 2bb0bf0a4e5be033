"""One's own vectors as a release: the order of ids does not matter, and what does not go together is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from vecall import DataError, IndexSettings, Query, VecallError, open_recaller, publish_vectors
from vecall.ranking import WeightedSum, rank
from vecall.release.store import Store

N, D = 3_000, 16
VECTORS = np.random.default_rng(1).standard_normal((N, D)).astype(np.float32)
IDS = [f"item-{one}" for one in range(N)]


@pytest.mark.parametrize("ids", [IDS, list(range(N)), np.arange(N)], ids=["strings", "integers", "array"])
def test_ids_come_back_with_their_own_vectors(tmp_path: Path, ids: Any) -> None:
    shuffled = np.random.default_rng(0).permutation(N)
    given = [ids[one] for one in shuffled]
    attributes = pl.DataFrame({"number": shuffled})
    publish_vectors(tmp_path, given, VECTORS[shuffled], attributes=attributes, queries=VECTORS[:200])
    with open_recaller(tmp_path) as recaller:
        for one in (0, 7, N - 1):
            asked = Query(vector=VECTORS[one], k=20)
            exact = np.argsort(-(VECTORS.astype(np.float16).astype(np.float32) @ VECTORS[one]), kind="stable")[:20]
            answer = recaller.recall(asked)
            assert len(set(answer.ids) & {ids[place] for place in exact}) >= 18
            assert type(answer.ids[0]) is (str if isinstance(ids[0], str) else int)
            numbers = recaller.candidates(asked)["number"].to_list()
            assert [ids[number] for number in numbers] == answer.ids


def test_the_effort_is_found_on_the_queries(tmp_path: Path) -> None:
    publish_vectors(tmp_path, IDS, VECTORS, queries=VECTORS[:300], index=IndexSettings(engine="hnsw", ks=(10, 100)))
    manifest = Store.open(tmp_path).verify()
    assert [k for k, _, _ in manifest.index.parameters["effort"]] == [10, 100]
    with open_recaller(tmp_path) as recaller:
        plan = recaller.recall(Query(vector=VECTORS[0], k=100, explain=True)).plan
    assert plan is not None
    assert (plan.path, plan.effort) == ("scan", None)  # of 3,000 rows that is quicker than any graph


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ids": IDS[:-1]}, "2999 ids"),
        ({"ids": [*IDS[:-1], IDS[0]]}, "item-0"),
        ({"ids": [*IDS[:-1], 3]}, "all strings"),
        ({"ids": []}, "at least one item"),
        ({"ids": [2**70, *range(N - 1)]}, "64 bits"),
        ({"vectors": VECTORS[0]}, r"\[N, D\]"),
        ({"vectors": np.full_like(VECTORS, np.nan)}, "finite"),
        ({"queries": VECTORS[:, :3]}, r"\[Q, 16\]"),
        ({"attributes": pl.DataFrame({"year": [1]})}, "1 rows"),
        ({"attributes": pl.DataFrame({"score": range(N)})}, "score"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    given = {"ids": IDS, "vectors": VECTORS} | change
    with pytest.raises(DataError, match=said):
        publish_vectors(tmp_path, **given)
    assert not list((tmp_path / "releases").iterdir()) if tmp_path.joinpath("releases").exists() else True


def test_ranking_takes_candidates_to_the_final_list(tmp_path: Path) -> None:
    attributes = pl.DataFrame({"year": [None, *range(1, N)]})
    publish_vectors(tmp_path, IDS, VECTORS, attributes=attributes)
    with open_recaller(tmp_path) as recaller:
        candidates = recaller.candidates(Query(vector=VECTORS[0], k=50))
    final = rank(candidates, WeightedSum({"year": 1.0}), k=5)
    newest = candidates.sort("year", descending=True, nulls_last=True)["id"].head(5).to_list()
    assert final["id"].to_list() == newest
    by_recall = rank(candidates, lambda table: [0.0] * len(table), k=3)
    assert by_recall["rank"].to_list() == [1, 2, 3]
    with pytest.raises(VecallError, match="finite score"):
        rank(candidates, lambda _: [1.0], k=5)
    with pytest.raises(VecallError, match="no numeric column"):
        rank(candidates, WeightedSum({"title": 1.0}), k=5)
