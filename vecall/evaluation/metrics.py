"""Metrics computed from the ranks of held-out items."""

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import Offsets, Rows
from vecall.errors import ConfigError, DataError

Ranks = NDArray[np.int64]


def limit_depth(n_items: int, k: int = 100) -> int:
    """Return k, or a tenth of fewer than 10 k items: a larger k would retrieve most of a small catalogue."""
    return min(k, max(1, n_items // 10))


def recall_at_k(ranks: Ranks, offsets: Offsets, k: int) -> float:
    """Return the mean over users of |top k ∩ held out| / |held out|; the denominator is never k.

    Arguments and errors are those of `recall_per_user`.
    """
    return float(recall_per_user(ranks, offsets, k).mean())


def recall_per_user(ranks: Ranks, offsets: Offsets, k: int) -> NDArray[np.float64]:
    """Return |top k ∩ held out| / |held out| of each user with targets.

    Args:
        ranks: [targets] 0-based ranks.
        offsets: [B + 1] CSR offsets of each user's targets in `ranks`; users without targets are not counted.
        k: At least 1.

    Raises:
        DataError: No user has a target.
        ConfigError: k < 1.
    """
    _check_k(k)
    return _divide_per_user(_sum_per_user((ranks < k).astype(np.float64), offsets), np.diff(offsets))


def compute_standard_error(values: NDArray[np.float64]) -> float:
    """Return the standard error of the mean of n values: s / √n with the sample's s; NaN below two values."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def ndcg_at_k(ranks: Ranks, offsets: Offsets, k: int) -> float:
    """Return the mean over users of DCG@k / ideal DCG@k; arguments and errors are those of `recall_per_user`."""
    return float(ndcg_per_user(ranks, offsets, k).mean())


def ndcg_per_user(ranks: Ranks, offsets: Offsets, k: int) -> NDArray[np.float64]:
    """Return DCG@k / ideal DCG@k with binary relevance of each user with targets (Järvelin and Kekäläinen, TOIS 2002).

    A hit at the 0-based rank r gains 1 / log2(r + 2); the ideal has min(k, targets) hits at the top.
    Arguments and errors are those of `recall_per_user`.
    """
    _check_k(k)
    lengths = np.diff(offsets)
    gains = np.where(ranks < k, 1.0 / np.log2(ranks + 2.0), 0.0)
    ideal = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(k) + 2.0))])
    return _divide_per_user(_sum_per_user(gains, offsets), ideal[np.minimum(lengths, k)])


def coverage_at_k(top_rows: Rows, n_items: int, k: int) -> float:
    """Return the share of the N items that are in any user's top k.

    Args:
        top_rows: [B, at least k] rows, best first, -1 for none (see `BatchRanking`).
        n_items: N, at least 1.
        k: At least 1.
    """
    _check_k(k)
    covered = np.zeros(n_items, dtype=np.bool_)
    first = top_rows[:, :k]
    covered[first[first >= 0]] = True
    return float(covered.mean())


def _sum_per_user(values: NDArray[np.float64], offsets: Offsets) -> NDArray[np.float64]:
    owners = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    return np.bincount(owners, weights=values, minlength=len(offsets) - 1).astype(np.float64)


def _divide_per_user(sums: NDArray[np.float64], ideals: NDArray[np.float64] | NDArray[np.int64]) -> NDArray[np.float64]:
    """Return sums / ideals of the users whose ideal is not 0, which are those with targets."""
    has_target = ideals > 0
    if not has_target.any():
        raise DataError(f"none of {len(sums)} users has a held-out item; check data.split")
    shares: NDArray[np.float64] = sums[has_target] / ideals[has_target]
    return shares


def _check_k(k: int) -> None:
    if k < 1:
        raise ConfigError(f"evaluation.ks: expected k of at least 1, got {k}")
