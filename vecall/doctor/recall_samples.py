"""Recall of each of a sample of users, which paired comparisons of two scorers need."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import Rows
from vecall.data.ragged import EvalCases, RaggedArray
from vecall.doctor.context import RecallGap
from vecall.evaluation.metrics import limit_depth
from vecall.evaluation.ranking import rank_batch
from vecall.evaluation.sampling import sample_cases
from vecall.evaluation.scorer import Scorer

MAX_USERS = 2_000
_BATCH_SIZE, _BLOCK_ITEMS = 256, 4096


@dataclass(frozen=True)
class RecallSample:
    """What a scorer recalls for S users.

    Attributes:
        recalls: [S] recall@k of each user, ranked among unseen items; NaN for users whose targets are all seen. If
            that is so for all users, ranked among all items.
        top_rows: [S, k] best unseen rows, best first; -1 after the last.
    """

    recalls: NDArray[np.float64]
    top_rows: Rows

    def compare(self, other: "RecallSample") -> RecallGap:
        """Return the mean recalls of both, and the standard error of their paired difference."""
        is_defined = ~np.isnan(self.recalls)
        own, others = self.recalls[is_defined], other.recalls[is_defined]
        error = float((own - others).std(ddof=1) / np.sqrt(len(own))) if len(own) > 1 else 0.0
        return RecallGap(float(own.mean()), float(others.mean()), error)


def draw_cases(cases: EvalCases, *, min_history: int = 0) -> EvalCases:
    """Return a random sample of at most `MAX_USERS` cases with long enough histories, in their order."""
    return sample_cases(cases.take(np.flatnonzero(cases.histories.lengths >= min_history)), MAX_USERS)


def sample_recalls(scorer: Scorer, cases: EvalCases, n_items: int) -> RecallSample:
    """Rank all N items for S cases, at least one, and measure recall at `limit_depth` of each.

    Raises:
        TrainingError: A score is NaN.
    """
    k = limit_depth(n_items)
    excluded, included, top_rows = [], [], []
    for start in range(0, len(cases), _BATCH_SIZE):
        batch = cases.take(np.arange(start, min(start + _BATCH_SIZE, len(cases))))
        pairs = batch.targets.segment_ids, batch.targets.values
        ranking = rank_batch(
            scorer(batch), batch.histories, pairs, n_items=n_items, depth=k + 1, block_items=_BLOCK_ITEMS
        )
        unseen_ranks, all_ranks = ranking.rank_targets(batch.targets, ranking.pair_scores)
        seen = batch.histories.segment_ids * n_items + batch.histories.values
        is_new = ~np.isin(pairs[0] * n_items + pairs[1], seen)
        excluded.append(_share_per_user(unseen_ranks < k, is_new, batch.targets))
        included.append(_share_per_user(all_ranks < k, np.ones_like(is_new), batch.targets))
        rows = ranking.top_rows[:, :k]
        top_rows.append(np.pad(rows, ((0, 0), (0, k - rows.shape[1])), constant_values=-1))
    recalls = np.concatenate(excluded)
    return RecallSample(np.concatenate(included) if np.isnan(recalls).all() else recalls, np.concatenate(top_rows))


def _share_per_user(is_hit: NDArray[np.bool_], counts: NDArray[np.bool_], targets: RaggedArray) -> NDArray[np.float64]:
    """Return [B] the share of hits among the targets that count; NaN where none does."""
    owners, n = targets.segment_ids, len(targets)
    totals = np.bincount(owners, weights=counts, minlength=n)
    hits = np.bincount(owners, weights=is_hit & counts, minlength=n)
    shares: NDArray[np.float64] = np.divide(hits, totals, out=np.full(n, np.nan), where=totals > 0)
    return shares
