"""Pools, filters of a given pass rate, and what an answer under them is worth: the measuring of `filters.py`."""

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from clustered import BLOCK, Clusters, Floats
from facts import load_average
from numpy.typing import NDArray

from vecall import IndexSettings, publish_vectors
from vecall.index.base import HalfVectors, Rows, Vectors
from vecall.index.bitmap import Bitmap
from vecall.live.snapshot import Snapshot
from vecall.recall.filters import FilterCache, FilterMask
from vecall.recall.query import UnknownInputs
from vecall.recall.resolve import ResolvedQuery
from vecall.recall.search import SearchResult, search_snapshot
from vecall.release.release import open_release
from vecall.release.store import Store

KS, EXCLUDED = (100, 500), (0, 500, 2000)
DEPTH = max(KS) + max(EXCLUDED)  # of the truth that all cells of a pass rate are read from
TUNED_WITH = 500  # queries
TARGET = 0.98  # ANN recall that is asked for at publish
# What an item's chance to pass owes to its likeness to the query's theme, beside chance of standard deviation 1.
LEAN = {"correlated": 0.5, "opposed": -0.15}
CHEAP_MS = 8.0  # a cell whose calls take longer is asked half of the queries
_IN_A_ROW = 10  # calls of one kind, then as many of the other
_NEAR = 500  # nearest items of all, to say how many of them pass
_NO_DELTA = np.empty(0, dtype=np.bool_)


@dataclass(frozen=True)
class Pool:
    """A published release of clustered vectors, and who asks.

    Attributes:
        clusters: its vectors.
        folder: holds items.npy, tuning.npy and the store.
        view: what is searched.
        themes: [G] those that are asked for.
        queries: [G, Q, D] users around each theme.
    """

    clusters: Clusters
    folder: Path
    view: Snapshot
    themes: NDArray[np.int64]
    queries: NDArray[np.float32]

    @classmethod
    def open(cls, clusters: Clusters, folder: Path, *, queries: int, themes: int) -> "Pool":
        """Make vectors and release, where they do not lie in the folder, and users around some of the themes."""
        folder.mkdir(parents=True, exist_ok=True)
        clusters.fill(folder / "items.npy")
        np.save(folder / "tuning.npy", clusters.queries(TUNED_WITH, who="tuning"))
        if not (folder / "store" / "CURRENT").exists():
            _publish(clusters, folder)
        asked = np.unique(clusters.theme_of)[:themes]
        each = math.ceil(queries / len(asked))
        users = np.stack([clusters.queries(each, theme=theme) for theme in asked.tolist()])
        view = Snapshot.from_release(open_release(Store.open(folder / "store")))
        return cls(clusters, folder, view, asked, users)

    def describe(self) -> dict[str, Any]:
        """How the release was built."""
        return self.view.release.manifest.index.model_dump(mode="json")

    @cached_property
    def near(self) -> Rows:
        """[G, Q, 500] the nearest of all items."""
        index = self.view.release.index
        return np.stack([index.search_exact(users, min(_NEAR, index.size)).rows for users in self.queries])

    def filters(self, kind: str, rates: Sequence[float]) -> Iterator[list[FilterMask]]:
        """For each pass rate a filter for each theme, or one and the same for all."""
        if kind == "random":
            made = FilterCache()
            for rate in rates:
                passing = made.get_mask(where(rate), self.view)
                yield [passing or _all(self.clusters.n)] * len(self.themes)
            return
        leaning = self._leaning(LEAN[kind])
        for rate in rates:
            yield [_top(one, round(rate * self.clusters.n)) for one in leaning]

    def _leaning(self, lean: float) -> Floats:
        """[G, N] an attribute that items like a theme have more of (or less), and chance."""
        items: HalfVectors = np.load(self.folder / "items.npy", mmap_mode="r")
        directions = self.clusters.themes[self.themes].T
        blocks = [items[start : start + BLOCK].astype(np.float32) @ directions for start in range(0, len(items), BLOCK)]
        alike = np.concatenate(blocks).T
        alike = (alike - alike.mean(axis=1, keepdims=True)) / alike.std(axis=1, keepdims=True)
        chance = np.random.default_rng(self.clusters.seed).standard_normal(alike.shape, dtype=np.float32)
        leaning: Floats = np.float32(lean) * alike + chance
        return leaning


def _publish(clusters: Clusters, folder: Path) -> None:
    rng = np.random.default_rng(clusters.seed)
    shelves = pl.Series(rng.integers(100, size=clusters.n)).cast(pl.String)
    attributes = pl.DataFrame({"chance": rng.random(clusters.n, dtype=np.float32), "shelf": shelves})
    publish_vectors(
        folder / "store",
        pl.Series(np.arange(clusters.n)),
        np.load(folder / "items.npy", mmap_mode="r"),
        attributes=attributes,
        queries=np.load(folder / "tuning.npy"),
        index=IndexSettings(engine="auto", target_recall=TARGET, ks=KS),
    )


def where(rate: float) -> list[dict[str, object]]:
    """A filter that lets a share of the items pass, whatever they are like."""
    return [{"field": "chance", "op": "lt", "value": rate}]


def time_filters(view: Snapshot, rates: Sequence[float]) -> dict[str, dict[str, float]]:
    """Milliseconds of making a filter's bitmap, and of finding it made."""
    conditions: dict[str, list[dict[str, object]]] = {f"number, pass {rate:.2%}": where(rate) for rate in rates}
    shelves = [str(shelf) for shelf in range(0, 100, 10)]
    conditions["one of 10 texts, pass 10.00%"] = [{"field": "shelf", "op": "in", "value": shelves}]
    times = {}
    for name, condition in conditions.items():
        filters = FilterCache()
        cold = [_ms(lambda condition=condition: FilterCache().get_mask(condition, view)) for _ in range(5)]
        cached = [_ms(lambda condition=condition, filters=filters: filters.get_mask(condition, view)) for _ in range(50)]
        times[name] = {"cold_ms": round(float(np.median(cold)), 3), "cached_ms": round(float(np.median(cached)), 4)}
    return times


@dataclass(frozen=True)
class Case:
    """One user under one filter.

    Attributes:
        vector: [1, D].
        passing: what passes.
        nearest: passing rows, best first, at most `DEPTH`.
    """

    vector: Vectors
    passing: FilterMask
    nearest: Rows

    def ask(self, excluded: int) -> ResolvedQuery:
        """Without the nearest so many that pass."""
        return ResolvedQuery(self.vector, np.sort(self.nearest[:excluded]), None, UnknownInputs())

    def truth(self, excluded: int, k: int) -> Rows:
        """The exact answer."""
        return self.nearest[excluded : excluded + k]

    def fit(self, rows: Rows, excluded: int) -> bool:
        """Whether all rows pass, none is excluded, and none stands twice."""
        allowed = bool(self.passing.base.contains(rows).all())
        return allowed and len(np.unique(rows)) == len(rows) and not np.isin(rows, self.nearest[:excluded]).any()


def cases_of(pool: Pool, filters: Sequence[FilterMask]) -> list[Case]:
    """All users, those of one theme after the other, with the exact answers."""
    index, cases = pool.view.release.index, []
    for users, passing in zip(pool.queries, filters, strict=True):
        count = passing.base.count
        allowed = None if count == index.size else passing.base
        nearest = index.search_exact(users, max(1, min(DEPTH, count)), allowed=allowed).rows
        cases += [Case(user[None], passing, rows[rows >= 0]) for user, rows in zip(users, nearest, strict=True)]
    return cases


def near_pass(pool: Pool, filters: Sequence[FilterMask]) -> float:
    """Share of the users' 500 nearest items that pass."""
    return float(np.mean([passing.base.contains(near).mean() for near, passing in zip(pool.near, filters, strict=True)]))


def cell(view: Snapshot, cases: Sequence[Case], excluded: int, k: int) -> dict[str, Any]:
    """Answers under a filter, and bare ones of the same users in between."""
    asks = [case.ask(excluded) for case in cases]
    probe = [_ms(lambda at=at: search_snapshot(view, asks[at], cases[at].passing, k)) for at in range(min(5, len(cases)))]
    step = 1 if float(np.median(probe)) < CHEAP_MS else 2
    cases, asks = cases[::step], asks[::step]
    found: list[SearchResult] = []
    ms: list[float] = []
    bare: list[float] = []
    for start in range(0, len(cases), _IN_A_ROW):
        for at in range(start, min(start + _IN_A_ROW, len(cases))):
            began = time.perf_counter()
            found.append(search_snapshot(view, asks[at], cases[at].passing, k))
            ms.append((time.perf_counter() - began) * 1e3)
        some = cases[start : start + _IN_A_ROW]
        bare += [_ms(lambda case=case: search_snapshot(view, case.ask(0), None, k)) for case in some]
    efforts = [one.search_params.to_label() for one in found if one.search_params is not None]
    return {
        "excluded": excluded,
        "k": k,
        **judged([one.rows for one in found], cases, excluded, k),
        **percentiles(ms),
        **{f"bare_{name}": value for name, value in percentiles(bare).items()},
        "paths": {path: round(count / len(found), 3) for path, count in Counter(one.route for one in found).items()},
        "effort": Counter(efforts).most_common(1)[0][0] if efforts else None,
        "load_average": load_average(),
    }


def judged(answers: Sequence[Rows], cases: Sequence[Case], excluded: int, k: int) -> dict[str, Any]:
    """How many rows came, whether they may be answers, and what share of the exact answer they are."""
    shares, short, unfit = [], 0, 0
    for rows, case in zip(answers, cases, strict=True):
        truth = case.truth(excluded, k)
        short += len(rows) != min(k, max(0, case.passing.base.count - excluded))
        unfit += not case.fit(rows, excluded)
        shares.append(len(np.intersect1d(rows, truth)) / len(truth) if len(truth) else float(not len(rows)))
    worst = np.sort(shares)[: max(1, len(shares) // 100)]
    return {
        "queries": len(cases),
        "wrong_number": short,
        "unfit": unfit,
        "rows": round(float(np.mean([len(rows) for rows in answers])), 1),
        "recall": round(float(np.mean(shares)), 4),
        "worst_1_percent": round(float(worst.mean()), 4),
    }


def percentiles(ms: Sequence[float]) -> dict[str, float]:
    """The median and the 99th percentile."""
    p50, p99 = np.percentile(ms, [50, 99])
    return {"p50_ms": round(float(p50), 3), "p99_ms": round(float(p99), 3)}


def _top(scores: Floats, count: int) -> FilterMask:
    mask = np.zeros(len(scores), dtype=np.bool_)
    if count:
        mask[np.argpartition(scores, len(scores) - count)[len(scores) - count :]] = True
    return FilterMask(Bitmap.from_mask(mask), _NO_DELTA)


def _all(n: int) -> FilterMask:
    return FilterMask(Bitmap.full(n), _NO_DELTA)


def _ms(call: Any) -> float:
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1e3
