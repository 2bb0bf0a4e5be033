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
from harness.clustered_vectors import BLOCK_ITEMS, ClusteredVectors, Floats
from harness.environment import read_load_average
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

KS, EXCLUSION_COUNTS = (100, 500), (0, 500, 2000)
TRUTH_DEPTH = max(KS) + max(EXCLUSION_COUNTS)  # of the truth that all cells of a pass rate are read from
N_TUNING_QUERIES = 500  # queries
TARGET_RECALL = 0.98  # ANN recall that is asked for at publish
# What an item's chance to pass owes to its likeness to the query's theme, beside chance of standard deviation 1.
ATTRIBUTE_CORRELATION = {"correlated": 0.5, "opposed": -0.15}
SLOW_CELL_MS = 8.0  # a cell whose calls take longer is asked half of the queries
_CALLS_PER_TURN = 10  # calls of one kind, then as many of the other
_N_NEAREST = 500  # nearest items of all, to say how many of them pass
_NO_DELTA = np.empty(0, dtype=np.bool_)


@dataclass(frozen=True)
class FilterPool:
    """A published release of clustered vectors, and who asks.

    Attributes:
        clusters: its vectors.
        directory: holds items.npy, tuning.npy and the store.
        snapshot: what is searched.
        themes: [G] those that are asked for.
        queries: [G, Q, D] users around each theme.
    """

    clusters: ClusteredVectors
    directory: Path
    snapshot: Snapshot
    themes: NDArray[np.int64]
    queries: NDArray[np.float32]

    @classmethod
    def open(cls, clusters: ClusteredVectors, directory: Path, *, queries: int, themes: int) -> "FilterPool":
        """Make vectors and release, where they do not lie in the folder, and users around some of the themes."""
        directory.mkdir(parents=True, exist_ok=True)
        clusters.write_npy(directory / "items.npy")
        np.save(directory / "tuning.npy", clusters.make_queries(N_TUNING_QUERIES, stream="tuning"))
        if not (directory / "store" / "CURRENT").exists():
            _publish(clusters, directory)
        asked = np.unique(clusters.theme_by_center)[:themes]
        each = math.ceil(queries / len(asked))
        users = np.stack([clusters.make_queries(each, theme=theme) for theme in asked.tolist()])
        view = Snapshot.from_release(open_release(Store.open(directory / "store")))
        return cls(clusters, directory, view, asked, users)

    def describe(self) -> dict[str, Any]:
        """How the release was built."""
        return self.snapshot.release.manifest.index.model_dump(mode="json")

    @cached_property
    def nearest_rows(self) -> Rows:
        """[G, Q, 500] the nearest of all items."""
        index = self.snapshot.release.index
        return np.stack([index.search_exact(users, min(_N_NEAREST, index.size)).rows for users in self.queries])

    def make_filters(self, kind: str, rates: Sequence[float]) -> Iterator[list[FilterMask]]:
        """For each pass rate a filter for each theme, or one and the same for all."""
        if kind == "random":
            made = FilterCache()
            for rate in rates:
                passing = made.get_mask(make_condition(rate), self.snapshot)
                yield [passing or _mask_all(self.clusters.n_items)] * len(self.themes)
            return
        leaning = self._make_attribute(ATTRIBUTE_CORRELATION[kind])
        for rate in rates:
            yield [_mask_top(one, round(rate * self.clusters.n_items)) for one in leaning]

    def _make_attribute(self, correlation: float) -> Floats:
        """[G, N] an attribute that items like a theme have more of (or less), and chance."""
        items: HalfVectors = np.load(self.directory / "items.npy", mmap_mode="r")
        directions = self.clusters.themes[self.themes].T
        blocks = [
            items[start : start + BLOCK_ITEMS].astype(np.float32) @ directions
            for start in range(0, len(items), BLOCK_ITEMS)
        ]
        alike = np.concatenate(blocks).T
        alike = (alike - alike.mean(axis=1, keepdims=True)) / alike.std(axis=1, keepdims=True)
        chance = np.random.default_rng(self.clusters.seed).standard_normal(alike.shape, dtype=np.float32)
        leaning: Floats = np.float32(correlation) * alike + chance
        return leaning


def _publish(clusters: ClusteredVectors, directory: Path) -> None:
    rng = np.random.default_rng(clusters.seed)
    shelves = pl.Series(rng.integers(100, size=clusters.n_items)).cast(pl.String)
    attributes = pl.DataFrame({"chance": rng.random(clusters.n_items, dtype=np.float32), "shelf": shelves})
    publish_vectors(
        directory / "store",
        pl.Series(np.arange(clusters.n_items)),
        np.load(directory / "items.npy", mmap_mode="r"),
        attributes=attributes,
        queries=np.load(directory / "tuning.npy"),
        index=IndexSettings(engine="auto", target_recall=TARGET_RECALL, ks=KS),
    )


def make_condition(rate: float) -> list[dict[str, object]]:
    """A filter that lets a share of the items pass, whatever they are like."""
    return [{"field": "chance", "op": "lt", "value": rate}]


def time_filters(snapshot: Snapshot, rates: Sequence[float]) -> dict[str, dict[str, float]]:
    """Milliseconds of making a filter's bitmap, and of finding it made."""
    conditions: dict[str, list[dict[str, object]]] = {
        f"number, pass {rate:.2%}": make_condition(rate) for rate in rates
    }
    shelves = [str(shelf) for shelf in range(0, 100, 10)]
    conditions["one of 10 texts, pass 10.00%"] = [{"field": "shelf", "op": "in", "value": shelves}]
    times = {}
    for name, condition in conditions.items():
        filters = FilterCache()
        cold = [_time_ms(lambda condition=condition: FilterCache().get_mask(condition, snapshot)) for _ in range(5)]
        cached = [
            _time_ms(lambda condition=condition, filters=filters: filters.get_mask(condition, snapshot))
            for _ in range(50)
        ]
        times[name] = {"cold_ms": round(float(np.median(cold)), 3), "cached_ms": round(float(np.median(cached)), 4)}
    return times


@dataclass(frozen=True)
class FilterCase:
    """One user under one filter.

    Attributes:
        vector: [1, D].
        filter_mask: what passes.
        nearest_rows: passing rows, best first, at most `DEPTH`.
    """

    vector: Vectors
    filter_mask: FilterMask
    nearest_rows: Rows

    def to_query(self, n_excluded: int) -> ResolvedQuery:
        """Without the nearest so many that pass."""
        return ResolvedQuery(self.vector, np.sort(self.nearest_rows[:n_excluded]), None, UnknownInputs())

    def get_truth(self, n_excluded: int, k: int) -> Rows:
        """The exact answer."""
        return self.nearest_rows[n_excluded : n_excluded + k]

    def are_valid(self, rows: Rows, n_excluded: int) -> bool:
        """Whether all rows pass, none is excluded, and none stands twice."""
        allowed = bool(self.filter_mask.base.contains(rows).all())
        return allowed and len(np.unique(rows)) == len(rows) and not np.isin(rows, self.nearest_rows[:n_excluded]).any()


def make_cases(pool: FilterPool, filters: Sequence[FilterMask]) -> list[FilterCase]:
    """All users, those of one theme after the other, with the exact answers."""
    index, cases = pool.snapshot.release.index, []
    for users, passing in zip(pool.queries, filters, strict=True):
        count = passing.base.count
        allowed = None if count == index.size else passing.base
        nearest = index.search_exact(users, max(1, min(TRUTH_DEPTH, count)), allowed=allowed).rows
        cases += [FilterCase(user[None], passing, rows[rows >= 0]) for user, rows in zip(users, nearest, strict=True)]
    return cases


def measure_near_pass_rate(pool: FilterPool, filters: Sequence[FilterMask]) -> float:
    """Share of the users' 500 nearest items that pass."""
    return float(
        np.mean([passing.base.contains(near).mean() for near, passing in zip(pool.nearest_rows, filters, strict=True)])
    )


def measure_cell(snapshot: Snapshot, cases: Sequence[FilterCase], n_excluded: int, k: int) -> dict[str, Any]:
    """Answers under a filter, and bare ones of the same users in between."""
    asks = [case.to_query(n_excluded) for case in cases]
    probe = [
        _time_ms(lambda at=at: search_snapshot(snapshot, asks[at], cases[at].filter_mask, k))
        for at in range(min(5, len(cases)))
    ]
    step = 1 if float(np.median(probe)) < SLOW_CELL_MS else 2
    cases, asks = cases[::step], asks[::step]
    found: list[SearchResult] = []
    ms: list[float] = []
    bare: list[float] = []
    for start in range(0, len(cases), _CALLS_PER_TURN):
        for at in range(start, min(start + _CALLS_PER_TURN, len(cases))):
            began = time.perf_counter()
            found.append(search_snapshot(snapshot, asks[at], cases[at].filter_mask, k))
            ms.append((time.perf_counter() - began) * 1e3)
        some = cases[start : start + _CALLS_PER_TURN]
        bare += [_time_ms(lambda case=case: search_snapshot(snapshot, case.to_query(0), None, k)) for case in some]
    efforts = [one.search_params.to_label() for one in found if one.search_params is not None]
    return {
        "excluded": n_excluded,
        "k": k,
        **evaluate_answers([one.rows for one in found], cases, n_excluded, k),
        **compute_percentiles(ms),
        **{f"bare_{name}": value for name, value in compute_percentiles(bare).items()},
        "paths": {path: round(count / len(found), 3) for path, count in Counter(one.route for one in found).items()},
        "effort": Counter(efforts).most_common(1)[0][0] if efforts else None,
        "load_average": read_load_average(),
    }


def evaluate_answers(answers: Sequence[Rows], cases: Sequence[FilterCase], n_excluded: int, k: int) -> dict[str, Any]:
    """How many rows came, whether they may be answers, and what share of the exact answer they are."""
    shares, short, unfit = [], 0, 0
    for rows, case in zip(answers, cases, strict=True):
        truth = case.get_truth(n_excluded, k)
        short += len(rows) != min(k, max(0, case.filter_mask.base.count - n_excluded))
        unfit += not case.are_valid(rows, n_excluded)
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


def compute_percentiles(ms: Sequence[float]) -> dict[str, float]:
    """The median and the 99th percentile."""
    p50, p99 = np.percentile(ms, [50, 99])
    return {"p50_ms": round(float(p50), 3), "p99_ms": round(float(p99), 3)}


def _mask_top(scores: Floats, count: int) -> FilterMask:
    mask = np.zeros(len(scores), dtype=np.bool_)
    if count:
        mask[np.argpartition(scores, len(scores) - count)[len(scores) - count :]] = True
    return FilterMask(Bitmap.from_mask(mask), _NO_DELTA)


def _mask_all(n: int) -> FilterMask:
    return FilterMask(Bitmap.full(n), _NO_DELTA)


def _time_ms(call: Any) -> float:
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1e3
