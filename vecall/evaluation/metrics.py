"""Ranks of held-out items among all items, and the metrics read off them.

Ranks are the pessimistic ones: a target stands below every other item with its own score, so a model that
scores all items alike recalls nothing, instead of whatever a sort happens to put first.
"""

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import Offsets, Rows, Scores
from vecall.data.ragged import RaggedArray
from vecall.errors import ConfigError, DataError, TrainingError

Ranks = NDArray[np.int64]


def rank_targets(scores: Scores, targets: RaggedArray, seen: RaggedArray | None) -> Ranks:
    """The place of each target among all items that its user has not seen.

    Args:
        scores: [B, N], larger is better; infinite is allowed, NaN is not.
        targets: B lists of distinct rows, none of them in the user's `seen`.
        seen: B lists of rows that are not ranked, repeats allowed; None ranks all N items.

    Returns:
        [targets] 0-based ranks in the order of `targets.rows`: how many other ranked items score at least
        as much as the target.

    Raises:
        TrainingError: a score is NaN.
        DataError: the lists do not fit the scores, a row is not one of the N items, or a target is seen.
    """
    _check_shapes(scores, targets, seen)
    if np.isnan(scores).any():
        raise TrainingError(
            f"{int(np.isnan(scores).sum())} of {scores.size} scores are NaN, so they have no order; "
            "the training has probably diverged: lower training.lr or raise training.temperature"
        )
    ranked = mask_seen(scores, seen)
    owners = targets.segment_ids
    reached = ranked[owners, targets.values]
    if np.isnan(reached).any():
        user = int(owners[np.isnan(reached).argmax()])
        raise DataError(
            f"a target of user {user} of the batch is among that user's seen items, which are not ranked; "
            "drop such targets, or rank with seen=None"
        )
    # A pass per target over one row of N scores: no [targets, N] array, and still bound by memory speed.
    counts = (np.count_nonzero(ranked[user] >= score) for user, score in zip(owners, reached, strict=True))
    return np.fromiter(counts, dtype=np.int64, count=len(reached)) - 1


def mask_seen(scores: Scores, seen: RaggedArray | None) -> Scores:
    """[B, N] the scores with NaN, which is never >= anything, at what each user has seen."""
    if seen is None:
        return scores
    ranked = scores.copy()
    ranked[seen.segment_ids, seen.values] = np.nan
    return ranked


def select_top_rows(scores: Scores, seen: RaggedArray | None, k: int) -> Rows:
    """[B, k] best unseen rows, score descending, then row ascending; -1 where a user has no more.

    Args:
        scores: [B, N], without NaN.
        seen: B lists of rows to leave out, or None.
        k: 1 <= k.
    """
    lost = -mask_seen(scores, seen)  # NaN, the seen, sorts last
    kept = min(k, lost.shape[1])
    top = np.full((len(lost), k), -1, dtype=np.int64)
    for user, losses in enumerate(lost):
        border = np.partition(losses, kept - 1)[kept - 1]
        best = np.flatnonzero(~np.isnan(losses) if np.isnan(border) else losses <= border)
        best = best[np.argsort(losses[best], kind="stable")[:kept]]
        top[user, : len(best)] = best
    return top


def recall_at_k(ranks: Ranks, offsets: Offsets, k: int) -> float:
    """Mean over users of |top k ∩ held out| / |held out|; never divided by k.

    Args:
        ranks: [targets] 0-based.
        offsets: [B + 1] whose targets are whose (CSR); a user without targets is not counted.
        k: 1 <= k.

    Raises:
        DataError: no user has a target.
    """
    _check_k(k)
    return _average_over_users(_sum_per_user((ranks < k).astype(np.float64), offsets), np.diff(offsets))


def ndcg_at_k(ranks: Ranks, offsets: Offsets, k: int) -> float:
    """Mean over users of DCG@k / ideal DCG@k with binary relevance (Järvelin and Kekäläinen, TOIS 2002).

    A hit at rank r is worth 1 / log2(r + 2); the ideal puts min(k, targets) hits at the top.
    Arguments and errors as in `recall_at_k`.
    """
    _check_k(k)
    lengths = np.diff(offsets)
    gains = np.where(ranks < k, 1.0 / np.log2(ranks + 2.0), 0.0)
    ideal = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(k) + 2.0))])
    return _average_over_users(_sum_per_user(gains, offsets), ideal[np.minimum(lengths, k)])


def coverage_at_k(top_rows: Rows, n_items: int, k: int) -> float:
    """Share of the N items that stand in any user's top k.

    Args:
        top_rows: [B, at least k] rows, best first, -1 for none (see `select_top_rows`).
        n_items: N >= 1.
        k: 1 <= k.
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
    judged = ideals > 0
    if not judged.any():
        raise DataError(f"none of {len(sums)} users has a held-out item to judge by; check the split")
    return float((sums[judged] / ideals[judged]).mean())


def _check_k(k: int) -> None:
    if k < 1:
        raise ConfigError(f"evaluation.ks: k must be at least 1, got {k}")


def _check_shapes(scores: Scores, targets: RaggedArray, seen: RaggedArray | None) -> None:
    users, n_items = scores.shape
    for name, lists in (("targets", targets), ("seen", seen)):
        if lists is None:
            continue
        if len(lists) != users:
            raise DataError(f"{len(lists)} lists of {name} came with scores of {users} users; give one list each")
        if len(lists.values) and not 0 <= lists.values.min() <= lists.values.max() < n_items:
            raise DataError(
                f"{name} hold rows {lists.values.min()} to {lists.values.max()}, but only {n_items} items are scored; "
                "score all items of the vocabulary"
            )
