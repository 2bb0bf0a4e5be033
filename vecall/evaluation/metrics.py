"""Ranks of held-out items among all items, and the metrics computed from them.

Ranks are pessimistic: a target ranks below every other item with the same score. A model that gives all items the
same score therefore has a recall of 0, and not of whatever a sort happens to put first.
"""

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import Offsets, Rows, Scores
from vecall.data.ragged import RaggedArray
from vecall.errors import ConfigError, DataError, TrainingError

Ranks = NDArray[np.int64]


def rank_targets(scores: Scores, targets: RaggedArray, seen: RaggedArray | None) -> Ranks:
    """Rank each target among all items that its user has not seen.

    Args:
        scores: [B, N], larger is better; may be infinite, but not NaN.
        targets: B lists of distinct rows, none of them in the user's `seen`.
        seen: B lists of rows that are not ranked, repeats allowed; None ranks all N items.

    Returns:
        [targets] 0-based ranks in the order of `targets.values`: the number of other ranked items that score at least
        as high as the target.

    Raises:
        TrainingError: A score is NaN.
        DataError: The lists do not fit the scores, a row is not one of the N items, or a target is seen.
    """
    _check_shapes(scores, targets, seen)
    if np.isnan(scores).any():
        raise TrainingError(
            f"{int(np.isnan(scores).sum())} of {scores.size} scores are NaN and cannot be ranked; "
            "training has probably diverged: lower training.lr or raise training.temperature"
        )
    ranked = mask_seen(scores, seen)
    owners = targets.segment_ids
    target_scores = ranked[owners, targets.values]  # [targets]
    if np.isnan(target_scores).any():
        user = int(owners[np.isnan(target_scores).argmax()])
        raise DataError(
            f"a target of user {user} of the batch is among that user's seen items, which are not ranked; "
            "drop such targets, or rank with seen=None"
        )
    # A pass over the N scores of its user for each target: no [targets, N] array, and still bound by memory bandwidth.
    counts = (np.count_nonzero(ranked[user] >= score) for user, score in zip(owners, target_scores, strict=True))
    return np.fromiter(counts, dtype=np.int64, count=len(target_scores)) - 1


def mask_seen(scores: Scores, seen: RaggedArray | None) -> Scores:
    """Return the scores [B, N] with NaN, which compares as false, at the items that each user has seen."""
    if seen is None:
        return scores
    ranked = scores.copy()
    ranked[seen.segment_ids, seen.values] = np.nan
    return ranked


def select_top_rows(scores: Scores, seen: RaggedArray | None, k: int) -> Rows:
    """Select the k best unseen rows of each user.

    Args:
        scores: [B, N], without NaN.
        seen: B lists of rows to leave out, or None.
        k: At least 1.

    Returns:
        [B, k] rows, score descending, then row ascending; -1 after the last if a user has fewer.
    """
    negated = -mask_seen(scores, seen)  # [B, N]; NaN, at seen items, sorts last
    n_kept = min(k, negated.shape[1])
    top_rows = np.full((len(negated), k), -1, dtype=np.int64)
    for user, values in enumerate(negated):
        threshold = np.partition(values, n_kept - 1)[n_kept - 1]
        best = np.flatnonzero(~np.isnan(values) if np.isnan(threshold) else values <= threshold)
        best = best[np.argsort(values[best], kind="stable")[:n_kept]]
        top_rows[user, : len(best)] = best
    return top_rows


def recall_at_k(ranks: Ranks, offsets: Offsets, k: int) -> float:
    """Return the mean over users of |top k ∩ held out| / |held out|; the denominator is never k.

    Args:
        ranks: [targets] 0-based ranks.
        offsets: [B + 1] CSR offsets of each user's targets in `ranks`; users without targets are not counted.
        k: At least 1.

    Raises:
        DataError: No user has a target.
        ConfigError: k < 1.
    """
    _check_k(k)
    return _average_over_users(_sum_per_user((ranks < k).astype(np.float64), offsets), np.diff(offsets))


def ndcg_at_k(ranks: Ranks, offsets: Offsets, k: int) -> float:
    """Return the mean over users of DCG@k / ideal DCG@k with binary relevance (Järvelin and Kekäläinen, TOIS 2002).

    A hit at the 0-based rank r gains 1 / log2(r + 2); the ideal has min(k, targets) hits at the top.
    Arguments and errors are those of `recall_at_k`.
    """
    _check_k(k)
    lengths = np.diff(offsets)
    gains = np.where(ranks < k, 1.0 / np.log2(ranks + 2.0), 0.0)
    ideal = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(k) + 2.0))])
    return _average_over_users(_sum_per_user(gains, offsets), ideal[np.minimum(lengths, k)])


def coverage_at_k(top_rows: Rows, n_items: int, k: int) -> float:
    """Return the share of the N items that are in any user's top k.

    Args:
        top_rows: [B, at least k] rows, best first, -1 for none (see `select_top_rows`).
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


def _average_over_users(sums: NDArray[np.float64], ideals: NDArray[np.float64] | NDArray[np.int64]) -> float:
    has_target = ideals > 0
    if not has_target.any():
        raise DataError(f"none of {len(sums)} users has a held-out item; check data.split")
    return float((sums[has_target] / ideals[has_target]).mean())


def _check_k(k: int) -> None:
    if k < 1:
        raise ConfigError(f"evaluation.ks: expected k of at least 1, got {k}")


def _check_shapes(scores: Scores, targets: RaggedArray, seen: RaggedArray | None) -> None:
    users, n_items = scores.shape
    for name, lists in (("targets", targets), ("seen", seen)):
        if lists is None:
            continue
        if len(lists) != users:
            raise DataError(f"expected {users} lists of {name}, one per row of scores, got {len(lists)}")
        if len(lists.values) and not 0 <= lists.values.min() <= lists.values.max() < n_items:
            raise DataError(
                f"{name}: expected rows of the {n_items} scored items, got {lists.values.min()} to "
                f"{lists.values.max()}; score all items of the vocabulary"
            )
