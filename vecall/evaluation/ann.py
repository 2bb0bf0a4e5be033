"""How much of the exact answer an index finds, and how fast it answers one query at a time."""

import math
import time
from dataclasses import asdict, dataclass

import numpy as np

from vecall.arrays import Rows, Vectors
from vecall.errors import ConfigError
from vecall.index.ann_recall import recall_per_query
from vecall.index.base import Index, SearchParams

WARM_UP_QUERIES = 20  # searches that are not timed
EXACT_BATCH_SIZE = 64  # queries answered exactly at a time


@dataclass(frozen=True)
class AnnBenchmarkResult:
    """ANN recall@k, the overlap with the exact answer (not a model's recall), beside the latency it costs.

    Attributes:
        k: answers asked for.
        recall: ANN recall@k in 0 .. 1, mean over the queries.
        recall_ci95: half the width of its 95 % confidence interval over the queries (normal approximation); None of
            one query alone.
        p50_ms: median latency of one query searched alone, in milliseconds.
        p99_ms: its 99th percentile.
        queries: distinct queries.
        repeats: how often each was timed.
        effort: given to the search, for people; None where the index scans everything.
        engine: what kind of index it is, for people.
    """

    k: int
    recall: float
    recall_ci95: float | None
    p50_ms: float
    p99_ms: float
    queries: int
    repeats: int
    effort: str | None
    engine: str

    def as_json(self) -> dict[str, int | float | str | None]:
        """All of it, by name."""
        return asdict(self)


def benchmark_ann(
    index: Index, queries: Vectors, k: int, *, engine: str, search_params: SearchParams | None = None, repeats: int = 3
) -> AnnBenchmarkResult:
    """Measure `index.search`, as it would be called for one user after the other.

    A row counts as right when its exact score reaches that of the exact answer's k-th row: which of several
    rows with that very score is returned makes no difference. A row returned twice counts once.

    Args:
        index: the index; `search_exact` and `vectors` of it give the truth.
        queries: [B, D] user vectors, at least 1.
        k: 1 <= k.
        engine: label for the report.
        search_params: for every search.
        repeats: passes over the queries that are timed, at least 1; answers are judged in the first.

    Raises:
        ConfigError: too few queries or repeats, or k < 1.
    """
    if len(queries) < 1 or repeats < 1 or k < 1:
        raise ConfigError(
            f"measuring an index needs at least 1 query, 1 repeat and k >= 1; got {len(queries)} queries, "
            f"{repeats} repeats and k = {k}"
        )
    for query in queries[:WARM_UP_QUERIES]:
        index.search(query[None], k, search_params=search_params)
    seconds = np.empty((repeats, len(queries)))
    answers: list[Rows] = []
    for passing in range(repeats):
        for at, query in enumerate(queries):
            start = time.perf_counter()
            hits = index.search(query[None], k, search_params=search_params)
            seconds[passing, at] = time.perf_counter() - start
            if passing == 0:
                answers.append(hits.rows[0])
    shares = np.concatenate(
        [
            recall_per_query(
                index, part, np.array(answers[start : start + EXACT_BATCH_SIZE]), index.search_exact(part, k).rows
            )
            for start in range(0, len(queries), EXACT_BATCH_SIZE)
            for part in (queries[start : start + EXACT_BATCH_SIZE],)
        ]
    )
    p50, p99 = np.percentile(seconds * 1e3, [50, 99])
    return AnnBenchmarkResult(
        k=k,
        recall=float(shares.mean()),
        recall_ci95=float(1.96 * shares.std(ddof=1) / math.sqrt(len(shares))) if len(shares) > 1 else None,
        p50_ms=float(p50),
        p99_ms=float(p99),
        queries=len(queries),
        repeats=repeats,
        effort=None if search_params is None else search_params.to_label(),
        engine=engine,
    )
