"""Benchmark of an index alone: ANN recall and the latency of single queries."""

import time
from dataclasses import asdict, dataclass

import numpy as np

from vecall.arrays import Rows, Vectors
from vecall.errors import ConfigError
from vecall.index.ann_recall import compute_ci95_half_width, recall_per_query
from vecall.index.base import Index, SearchParams

WARM_UP_QUERIES = 20  # searches before the timed ones
EXACT_BATCH_SIZE = 64  # queries per exact search


@dataclass(frozen=True)
class AnnBenchmarkResult:
    """ANN recall@k and latency of an index. ANN recall is the overlap with the exact answer, not a model's recall.

    Attributes:
        k: Rows per answer.
        recall: Mean ANN recall@k over the queries, in [0, 1].
        recall_ci95: Half-width of its 95 % confidence interval over the queries (normal approximation); None for a
            single query.
        p50_ms: Median latency of a single query in milliseconds.
        p99_ms: 99th percentile of the latency.
        queries: Number of distinct queries.
        repeats: Timed passes over the queries.
        effort: Label of the search parameters; None for the index's own default.
        engine: Label of the kind of index.
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
        """Return the attributes by name."""
        return asdict(self)


def benchmark_ann(
    index: Index, queries: Vectors, k: int, *, engine: str, search_params: SearchParams | None = None, repeats: int = 3
) -> AnnBenchmarkResult:
    """Measure `index.search` with one query at a time, as recall calls it.

    A row counts as correct if its exact score reaches that of the k-th row of the exact answer, so it does not matter
    which of several rows with equal scores is returned. A row that is returned twice counts once.

    Args:
        index: The index; the exact answer comes from its vectors.
        queries: [B, D] user vectors, B >= 1.
        k: Rows per answer, at least 1.
        engine: Label of the index in the result.
        search_params: Parameters of every search; None for the index's own default.
        repeats: Timed passes over the queries, at least 1; recall is measured in the first.

    Raises:
        ConfigError: There are no queries or repeats, or k < 1.
    """
    if len(queries) < 1 or repeats < 1 or k < 1:
        raise ConfigError(
            f"ANN benchmark: expected at least 1 query, 1 repeat and k >= 1, got {len(queries)} queries, "
            f"{repeats} repeats and k = {k}"
        )
    for query in queries[:WARM_UP_QUERIES]:
        index.search(query[None], k, search_params=search_params)
    seconds = np.empty((repeats, len(queries)))  # [repeats, B]
    answers: list[Rows] = []
    for repeat in range(repeats):
        for position, query in enumerate(queries):
            start = time.perf_counter()
            hits = index.search(query[None], k, search_params=search_params)
            seconds[repeat, position] = time.perf_counter() - start
            if repeat == 0:
                answers.append(hits.rows[0])
    shares = np.concatenate(
        [
            recall_per_query(
                index.vectors,
                batch,
                np.array(answers[start : start + EXACT_BATCH_SIZE]),
                index.vectors.search_exact(batch, k).rows,
            )
            for start in range(0, len(queries), EXACT_BATCH_SIZE)
            for batch in (queries[start : start + EXACT_BATCH_SIZE],)
        ]
    )
    p50, p99 = np.percentile(seconds * 1e3, [50, 99])
    return AnnBenchmarkResult(
        k=k,
        recall=float(shares.mean()),
        recall_ci95=compute_ci95_half_width(shares) if len(shares) > 1 else None,
        p50_ms=float(p50),
        p99_ms=float(p99),
        queries=len(queries),
        repeats=repeats,
        effort=None if search_params is None else search_params.to_label(),
        engine=engine,
    )
