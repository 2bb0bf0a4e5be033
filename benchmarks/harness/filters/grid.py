"""Pools, filters of given pass rates, and the quality of filtered results: what `filters.py` measures."""

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from harness.clustered_vectors import BLOCK_ITEMS, ClusteredVectors
from harness.environment import read_load_average
from harness.timing import compute_percentiles, time_ms
from vecall import IndexSettings, publish_vectors
from vecall.arrays import HalfVectors, Rows, Scores, Vectors
from vecall.index.bitmap import Bitmap
from vecall.live.snapshot import Snapshot
from vecall.recall.filters import FilterCache, FilterMask
from vecall.recall.query import UnknownInputs
from vecall.recall.resolve import ResolvedQuery
from vecall.recall.search import SearchResult, search_snapshot
from vecall.release.release import open_release
from vecall.release.store import Store

KS, EXCLUSION_COUNTS = (100, 500), (0, 500, 2000)
TRUTH_DEPTH = max(KS) + max(EXCLUSION_COUNTS)  # exact results kept per case: enough for every k and exclusion count
N_TUNING_QUERIES = 500
TARGET_RECALL = 0.98  # ANN recall that the index is tuned for
# How the attribute of a filter depends on similarity to the query's theme: weight beside noise of deviation 1.
ATTRIBUTE_CORRELATION = {"correlated": 0.5, "opposed": -0.15}
# Filters by region: whole themes, among them the query's or not; whole centers, whatever their theme.
REGION_KINDS = ("region with", "region against", "region across")
SLOW_CELL_MS = 8.0  # a cell whose median is above uses only every second query
CALLS_PER_TURN = 10  # consecutive calls of one kind, before as many of the next
_N_NEAREST = 500  # nearest items of a query, of which the share that passes is reported
_NO_DELTA = np.empty(0, dtype=np.bool_)


@dataclass(frozen=True)
class FilterPool:
    """Published release of clustered vectors, and the queries on it.

    Attributes:
        clusters: the vectors.
        directory: holds items.npy, tuning.npy and the store.
        snapshot: what is searched.
        themes: [G] themes that queries are drawn from.
        queries: [G, Q, D] queries around each theme.
    """

    clusters: ClusteredVectors
    directory: Path
    snapshot: Snapshot
    themes: Rows
    queries: Vectors

    @classmethod
    def open(cls, clusters: ClusteredVectors, directory: Path, *, queries: int, themes: int) -> "FilterPool":
        """Open the pool of a directory; vectors and release are created where the directory lacks them.

        Args:
            clusters: the vectors.
            directory: is created if missing.
            queries: number of queries, rounded up to a multiple of the number of themes.
            themes: number of themes to draw queries from, at most.
        """
        write_vectors(clusters, directory)
        if not (directory / "store" / "CURRENT").exists():
            publish_pool(clusters, directory, IndexSettings(engine="auto", target_recall=TARGET_RECALL, ks=KS))
        query_themes = np.unique(clusters.theme_by_center)[:themes]
        per_theme = math.ceil(queries / len(query_themes))
        vectors = np.stack([clusters.make_queries(per_theme, theme=theme) for theme in query_themes.tolist()])
        snapshot = Snapshot.from_release(open_release(Store.open(directory / "store")))
        return cls(clusters, directory, snapshot, query_themes, vectors)

    def describe(self) -> dict[str, Any]:
        """Return the index section of the release's manifest."""
        return self.snapshot.release.manifest.index.model_dump(mode="json")

    @cached_property
    def nearest_rows(self) -> Rows:
        """[G, Q, up to 500] rows of the nearest items, without a filter."""
        stored = self.snapshot.release.vectors
        return np.stack([stored.search_exact(queries, min(_N_NEAREST, stored.size)).rows for queries in self.queries])

    def make_filters(self, kind: str, rates: Sequence[float]) -> Iterator[list[FilterMask]]:
        """Create filters of a kind.

        Args:
            kind: "random", a key of ATTRIBUTE_CORRELATION, or one of REGION_KINDS.
            rates: pass rates, 0 .. 1.

        Yields:
            For each pass rate [G] filters, one for each theme. Random ones do not depend on the theme.
        """
        if kind == "random":
            cache = FilterCache()
            for rate in rates:
                mask = cache.get_mask(make_condition(rate), self.snapshot)
                yield [mask or self._to_filter_mask(Bitmap.full(self.clusters.n_items))] * len(self.themes)
            return
        if kind in REGION_KINDS:
            yield from self._make_region_filters(kind, rates)
            return
        attributes = self._make_attribute(ATTRIBUTE_CORRELATION[kind])
        for rate in rates:
            yield [self._mask_top(values, round(rate * self.clusters.n_items)) for values in attributes]

    def _make_region_filters(self, kind: str, rates: Sequence[float]) -> Iterator[list[FilterMask]]:
        """Yield for each pass rate [G] filters that whole themes pass, or whole centers."""
        rng = np.random.default_rng(self.clusters.seed)
        centers = self.clusters.list_centers()
        groups = centers if kind == "region across" else self.clusters.theme_by_center[centers]  # [N]
        order = rng.permutation(int(groups.max()) + 1).astype(np.float32)
        values = []
        for theme in self.themes.tolist():
            by_group = order.copy()
            if kind != "region across":
                by_group[theme] = np.inf if kind == "region with" else -1.0
            values.append(by_group[groups])
        for rate in rates:
            yield [self._mask_top(theme_values, round(rate * self.clusters.n_items)) for theme_values in values]

    def _mask_top(self, values: Scores, count: int) -> FilterMask:
        """Return the filter that the `count` items of the largest values pass."""
        mask = np.zeros(len(values), dtype=np.bool_)
        if count:
            mask[np.argpartition(values, len(values) - count)[len(values) - count :]] = True
        return self._to_filter_mask(Bitmap.from_mask(mask))

    def _to_filter_mask(self, bitmap: Bitmap) -> FilterMask:
        return FilterMask(self.snapshot.release.index.profile_filter(bitmap), _NO_DELTA)

    def _make_attribute(self, correlation: float) -> Scores:
        """Return [G, N] values: `correlation` times the standardized similarity to a theme, plus Gaussian noise."""
        items: HalfVectors = np.load(self.directory / "items.npy", mmap_mode="r")
        directions = self.clusters.themes[self.themes].T  # [D, G]
        blocks = [
            items[start : start + BLOCK_ITEMS].astype(np.float32) @ directions
            for start in range(0, len(items), BLOCK_ITEMS)
        ]
        similarity = np.concatenate(blocks).T  # [G, N]
        similarity = (similarity - similarity.mean(axis=1, keepdims=True)) / similarity.std(axis=1, keepdims=True)
        noise = np.random.default_rng(self.clusters.seed).standard_normal(similarity.shape, dtype=np.float32)
        values: Scores = np.float32(correlation) * similarity + noise
        return values


def write_vectors(clusters: ClusteredVectors, directory: Path) -> None:
    """Write items.npy and tuning.npy into a directory, which is created if missing."""
    directory.mkdir(parents=True, exist_ok=True)
    clusters.write_npy(directory / "items.npy")
    np.save(directory / "tuning.npy", clusters.make_queries(N_TUNING_QUERIES, stream="tuning"))


def publish_pool(clusters: ClusteredVectors, directory: Path, index: IndexSettings) -> None:
    """Publish items.npy of a directory into its store, tuned on tuning.npy, with an attribute for random filters."""
    rng = np.random.default_rng(clusters.seed)
    shelves = pl.Series(rng.integers(100, size=clusters.n_items)).cast(pl.String)
    attributes = pl.DataFrame({"chance": rng.random(clusters.n_items, dtype=np.float32), "shelf": shelves})
    publish_vectors(
        directory / "store",
        pl.Series(np.arange(clusters.n_items)),
        np.load(directory / "items.npy", mmap_mode="r"),
        attributes=attributes,
        queries=np.load(directory / "tuning.npy"),
        index=index,
    )


def make_condition(rate: float) -> list[dict[str, object]]:
    """Return a `where` clause that a share `rate` of the items passes, independent of their vectors."""
    return [{"field": "chance", "op": "lt", "value": rate}]


def time_filters(snapshot: Snapshot, rates: Sequence[float]) -> dict[str, dict[str, float]]:
    """Measure the milliseconds to evaluate a filter over all items, and to find it in the cache."""
    conditions: dict[str, list[dict[str, object]]] = {
        f"number, pass {rate:.2%}": make_condition(rate) for rate in rates
    }
    shelves = [str(shelf) for shelf in range(0, 100, 10)]
    conditions["one of 10 texts, pass 10.00%"] = [{"field": "shelf", "op": "in", "value": shelves}]
    times = {}
    for name, condition in conditions.items():
        cache = FilterCache()
        cold = [time_ms(partial(FilterCache().get_mask, condition, snapshot)) for _ in range(5)]
        cached = [time_ms(partial(cache.get_mask, condition, snapshot)) for _ in range(50)]
        times[name] = {"cold_ms": round(float(np.median(cold)), 3), "cached_ms": round(float(np.median(cached)), 4)}
    return times


@dataclass(frozen=True)
class FilterCase:
    """One query under one filter, with its exact results.

    Attributes:
        vector: [1, D] the query.
        filter_mask: items that pass.
        nearest_rows: rows that pass, best first, at most TRUTH_DEPTH.
    """

    vector: Vectors
    filter_mask: FilterMask
    nearest_rows: Rows

    def to_query(self, n_excluded: int) -> ResolvedQuery:
        """Return the query with the `n_excluded` best rows that pass excluded."""
        return ResolvedQuery(self.vector, np.sort(self.nearest_rows[:n_excluded]), None, UnknownInputs())

    def get_truth(self, n_excluded: int, k: int) -> Rows:
        """Return the exact result of `to_query(n_excluded)`, at most k rows."""
        return self.nearest_rows[n_excluded : n_excluded + k]

    def are_valid(self, rows: Rows, n_excluded: int) -> bool:
        """Return whether all rows pass the filter, none is excluded, and none is a duplicate."""
        passing = bool(self.filter_mask.matching_base_rows.contains(rows).all())
        return passing and len(np.unique(rows)) == len(rows) and not np.isin(rows, self.nearest_rows[:n_excluded]).any()


def make_cases(pool: FilterPool, filters: Sequence[FilterMask]) -> list[FilterCase]:
    """Create the cases of all queries, theme by theme.

    Args:
        pool: queries and index.
        filters: [G] filter of each theme.
    """
    stored, cases = pool.snapshot.release.vectors, []
    for queries, mask in zip(pool.queries, filters, strict=True):
        count = mask.matching_base_rows.count
        allowed = None if count == stored.size else mask.matching_base_rows
        nearest = stored.search_exact(queries, max(1, min(TRUTH_DEPTH, count)), allowed=allowed).rows
        cases += [FilterCase(query[None], mask, rows[rows >= 0]) for query, rows in zip(queries, nearest, strict=True)]
    return cases


def measure_near_pass_rate(pool: FilterPool, filters: Sequence[FilterMask]) -> float:
    """Return the share of the queries' 500 nearest items that pass the filter of their theme."""
    rates = [
        mask.matching_base_rows.contains(rows).mean() for rows, mask in zip(pool.nearest_rows, filters, strict=True)
    ]
    return float(np.mean(rates))


def measure_cells(
    pool: FilterPool, kind: str, rates: Sequence[float], exclusion_counts: Sequence[int]
) -> list[dict[str, Any]]:
    """Measure all cells of a kind of filter.

    Args:
        pool: what is searched.
        kind: as for `FilterPool.make_filters`.
        rates: pass rates.
        exclusion_counts: numbers of excluded rows.
    """
    cells = []
    for rate, filters in zip(rates, pool.make_filters(kind, rates), strict=True):
        cases = make_cases(pool, filters)
        near_pass_rate = round(measure_near_pass_rate(pool, filters), 5)
        shares = {"rate": rate, "matches": filters[0].matching_base_rows.count, "near_pass": near_pass_rate}
        cells += [shares | measure_cell(pool.snapshot, cases, n, k) for n in exclusion_counts for k in KS]
    return cells


def measure_cell(snapshot: Snapshot, cases: Sequence[FilterCase], n_excluded: int, k: int) -> dict[str, Any]:
    """Measure filtered searches, with unfiltered searches of the same queries in between.

    Args:
        snapshot: what is searched.
        cases: queries under one pass rate. Of a slow cell only every second is used.
        n_excluded: number of excluded rows: the best ones that pass.
        k: number of results.

    Returns:
        Quality (see `evaluate_answers`), latency, latency without filter and exclusions (`bare_*`), the share of each
        route (`paths`), and the most common search parameters (`effort`).
    """

    def search_unfiltered(case: FilterCase) -> SearchResult:
        return search_snapshot(snapshot, case.to_query(0), None, k)

    queries = [case.to_query(n_excluded) for case in cases]
    probe_ms = [
        time_ms(partial(search_snapshot, snapshot, query, case.filter_mask, k))
        for query, case in zip(queries[:5], cases[:5], strict=True)
    ]
    step = 1 if float(np.median(probe_ms)) < SLOW_CELL_MS else 2
    cases, queries = cases[::step], queries[::step]
    results: list[SearchResult] = []
    latencies_ms: list[float] = []
    unfiltered_ms: list[float] = []
    for turn_start in range(0, len(cases), CALLS_PER_TURN):
        for i in range(turn_start, min(turn_start + CALLS_PER_TURN, len(cases))):
            start = time.perf_counter()
            results.append(search_snapshot(snapshot, queries[i], cases[i].filter_mask, k))
            latencies_ms.append((time.perf_counter() - start) * 1e3)
        turn = cases[turn_start : turn_start + CALLS_PER_TURN]
        unfiltered_ms += [time_ms(partial(search_unfiltered, case)) for case in turn]
    labels = [result.search_params.to_label() for result in results if result.search_params is not None]
    routes = Counter(result.route for result in results)
    return {
        "excluded": n_excluded,
        "k": k,
        **evaluate_answers([result.rows for result in results], cases, n_excluded, k),
        **compute_percentiles(latencies_ms),
        **{f"bare_{name}": value for name, value in compute_percentiles(unfiltered_ms).items()},
        "paths": {route: round(count / len(results), 3) for route, count in routes.items()},
        "effort": Counter(labels).most_common(1)[0][0] if labels else None,
        "load_average": read_load_average(),
    }


def evaluate_answers(answers: Sequence[Rows], cases: Sequence[FilterCase], n_excluded: int, k: int) -> dict[str, Any]:
    """Compare search results with the exact ones.

    Args:
        answers: rows of each case.
        cases: as many.
        n_excluded: as the answers were searched with.
        k: likewise.

    Returns:
        `queries`; `wrong_number`, answers without exactly min(k, matches) rows; `unfit`, answers with rows that must
        not be in them; `rows`, mean length; `recall`, mean share of the exact result, and `worst_1_percent` of it.
    """
    recalls, wrong_number, unfit = [], 0, 0
    for rows, case in zip(answers, cases, strict=True):
        truth = case.get_truth(n_excluded, k)
        wrong_number += len(rows) != min(k, max(0, case.filter_mask.matching_base_rows.count - n_excluded))
        unfit += not case.are_valid(rows, n_excluded)
        recalls.append(len(np.intersect1d(rows, truth)) / len(truth) if len(truth) else float(not len(rows)))
    worst = np.sort(recalls)[: max(1, len(recalls) // 100)]
    return {
        "queries": len(cases),
        "wrong_number": wrong_number,
        "unfit": unfit,
        "rows": round(float(np.mean([len(rows) for rows in answers])), 1),
        "recall": round(float(np.mean(recalls)), 4),
        "worst_1_percent": round(float(worst.mean()), 4),
    }
