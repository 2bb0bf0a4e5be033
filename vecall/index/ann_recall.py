"""ANN recall: the share of the exact result that a search found, counted by score.

A found row counts if its exact score is at least that of the last row of the exact result. Counting by score makes ties
harmless: any of several equal vectors may be that last row, so counting by row would call correct results wrong.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import Rows, Vectors
from vecall.index.stored_vectors import StoredVectors


def recall_per_query(
    vectors: StoredVectors, queries: Vectors, found_rows: Rows, exact_rows: Rows
) -> NDArray[np.float64]:
    """Compute ANN recall of each query.

    Args:
        vectors: the stored vectors.
        queries: [B, D].
        found_rows: [B, C] rows that the search returned; -1 is ignored, a repeated row counts once.
        exact_rows: [B, K] rows of the exact result, best first, padded at the end with -1; at least one row per query.

    Returns:
        [B] recalls in 0 .. 1.
    """
    return tail_recall_per_query(vectors, queries, found_rows, exact_rows, exact_rows.shape[1])


def tail_recall_per_query(
    vectors: StoredVectors, queries: Vectors, found_rows: Rows, exact_rows: Rows, tail_size: int
) -> NDArray[np.float64]:
    """Compute ANN recall of the last rows of each exact result.

    Args:
        vectors: the stored vectors.
        queries: [B, D].
        found_rows: [B, C], as in `recall_per_query`.
        exact_rows: [B, K], as in `recall_per_query`.
        tail_size: number of rows at the end of the exact result that count.

    Returns:
        [B] recalls in 0 .. 1.
    """
    recalls = np.empty(len(queries))
    for b, query in enumerate(queries):
        expected = exact_rows[b][exact_rows[b] >= 0]
        head_size = max(0, len(expected) - tail_size)
        head_score, last_score = vectors.score(query, expected[[head_size - 1, -1]])  # last row of the head, and of all
        found_scores = vectors.score(query, np.unique(found_rows[b][found_rows[b] >= 0]))
        found = _count_reaching(found_scores, last_score, len(expected))
        found_in_head = _count_reaching(found_scores, head_score, head_size)
        recalls[b] = (found - found_in_head) / (len(expected) - head_size)
    return recalls


def recall_at_depths(
    vectors: StoredVectors, queries: Vectors, candidates: Rows, exact_rows: Rows, depths: Sequence[int]
) -> NDArray[np.float64]:
    """Compute ANN recall of each query if only the first candidates are ranked.

    Equals `recall_per_query` of the first candidates, with one scoring of all of them.

    Args:
        vectors: the stored vectors.
        queries: [B, D].
        candidates: [B, C] distinct rows of each query, padded with -1.
        exact_rows: [B, K], as in `recall_per_query`.
        depths: d numbers of candidates in 0 .. C.

    Returns:
        [d, B] recalls in 0 .. 1.
    """
    recalls = np.empty((len(depths), len(queries)))
    for b, query in enumerate(queries):
        expected = exact_rows[b][exact_rows[b] >= 0]
        is_found = candidates[b] >= 0  # [C]
        is_found[is_found] = vectors.score(query, candidates[b][is_found]) >= vectors.score(query, expected[-1:])
        found = np.concatenate([[0], np.cumsum(is_found)])[list(depths)]  # [d]
        recalls[:, b] = np.minimum(found, len(expected)) / len(expected)
    return recalls


def recall_from_scores(found_scores: NDArray[np.floating], exact_scores: NDArray[np.floating]) -> float:
    """Compute ANN recall of one query whose exact scores are known.

    Args:
        found_scores: [C] exact scores of the distinct rows that the search returned.
        exact_scores: [K] scores of the exact result, K >= 1.

    Returns:
        Recall in 0 .. 1.
    """
    return _count_reaching(found_scores, exact_scores.min(), len(exact_scores)) / len(exact_scores)


def compute_ci95_half_width(recalls: NDArray[np.float64]) -> float:
    """Half the width of the 95 % confidence interval of the mean, by the normal approximation.

    Args:
        recalls: [n] recalls, n >= 2.
    """
    return 1.96 * float(recalls.std(ddof=1)) / math.sqrt(len(recalls))


def mean_of_worst(recalls: NDArray[np.float64]) -> float:
    """Mean of the lowest 1 % of n recalls, at least one."""
    return float(np.sort(recalls)[: max(1, len(recalls) // 100)].mean())


def compute_worst_ci95_half_width(recalls: NDArray[np.float64]) -> float:
    """Half the width of the 95 % confidence interval of `mean_of_worst`, by the normal approximation.

    With m worst of n recalls, of mean w and variance v, and q the next better one, the variance of w is about
    (v + (1 - m / n) (q - w)²) / m (Manistre & Hancock, Variance of the CTE Estimator, 2005).
    For small m it is too small.

    Args:
        recalls: [n] recalls, n >= 2.
    """
    ascending, count = np.sort(recalls), max(1, len(recalls) // 100)
    worst, next_better = ascending[:count], float(ascending[count])
    distance = next_better - float(worst.mean())
    variance = (float(worst.var()) + (1 - count / len(recalls)) * distance**2) / count
    return 1.96 * math.sqrt(variance)


def compute_worst_lower_bound(recalls: NDArray[np.float64]) -> float:
    """Lower bound of the 95 % confidence interval of `mean_of_worst`. See `compute_worst_ci95_half_width`."""
    return mean_of_worst(recalls) - compute_worst_ci95_half_width(recalls)


def _count_reaching(scores: NDArray[np.floating], threshold: np.floating, max_count: int) -> int:
    return min(int(np.count_nonzero(scores >= threshold)), max_count)
