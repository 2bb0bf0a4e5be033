"""Ranking of all items for a batch of users, block by block of items: the scores [B, N] are never in memory.

Ranks are pessimistic: a target ranks below every other item with the same score. A model that gives all items the
same score therefore has a recall of 0, and not of whatever a sort happens to put first.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import Rows, Scores
from vecall.data.ragged import RaggedArray
from vecall.errors import DataError, TrainingError
from vecall.evaluation.metrics import Ranks
from vecall.evaluation.scorer import BlockScorer
from vecall.evaluation.top_rows import TopRows


@dataclass(frozen=True)
class BatchRanking:
    """The best unseen items of B users, and the scores of chosen pairs of user and item.

    Attributes:
        top_rows: [B, depth] best unseen rows: score descending, then row ascending; -1 after the last.
        top_scores: [B, depth] their scores; NaN after the last.
        seen: B lists of the distinct seen rows.
        seen_scores: Their scores, in the order of `seen.values`.
        pair_scores: [P] scores of the pairs.
    """

    top_rows: Rows
    top_scores: Scores
    seen: RaggedArray
    seen_scores: Scores
    pair_scores: Scores

    def rank_targets(self, targets: RaggedArray, target_scores: Scores) -> tuple[Ranks, Ranks]:
        """Rank each target among the unseen items, and among all items.

        Args:
            targets: B lists of rows.
            target_scores: Their scores, in the order of `targets.values`.

        Returns:
            [targets] 0-based ranks among the unseen items, and among all: the number of other items that score at
            least as high as the target. They are exact below `depth` - 1; from there on they are lower bounds, still
            of at least `depth` - 1. The first are valid for targets that are not seen.
        """
        unseen_counts, seen_counts = (np.zeros(len(target_scores), dtype=np.int64) for _ in range(2))
        negated_top, negated_seen = -self.top_scores, -self.seen_scores  # ascending; NaN, the padding, sorts last
        target_bounds, seen_bounds = targets.offsets, self.seen.offsets
        for user in range(len(targets)):
            own = slice(target_bounds[user], target_bounds[user + 1])
            sought = -target_scores[own]
            unseen_counts[own] = np.searchsorted(negated_top[user], sought, side="right")
            seen = np.sort(negated_seen[seen_bounds[user] : seen_bounds[user + 1]])
            seen_counts[own] = np.searchsorted(seen, sought, side="right")
        return unseen_counts - 1, unseen_counts + seen_counts - 1  # without the target itself

    def select_top_rows_of_all(self, k: int) -> Rows:
        """Return [B, k] the best rows of each user, seen ones included, in the order of `top_rows`; k <= depth."""
        merged = TopRows(len(self.top_rows), k)
        is_row = self.top_rows[:, :k] >= 0
        users = np.nonzero(is_row)[0]
        merged.add(users, self.top_rows[:, :k][is_row], self.top_scores[:, :k][is_row])
        seen_users = self.seen.segment_ids
        worst_scores = self.top_scores[:, :k].min(axis=1)  # NaN if it has fewer than k rows
        is_candidate = ~(self.seen_scores < worst_scores[seen_users])
        merged.add(seen_users[is_candidate], self.seen.values[is_candidate], self.seen_scores[is_candidate])
        return merged.sort()[0]


def rank_batch(
    score_block: BlockScorer,
    seen: RaggedArray,
    pairs: tuple[NDArray[np.int64], Rows],
    *,
    n_items: int,
    depth: int,
    block_items: int,
) -> BatchRanking:
    """Score all N items for B users and keep the best unseen ones.

    Args:
        score_block: Scores of blocks of items.
        seen: B lists of rows that are not ranked, repeats allowed.
        pairs: [P] users in 0 .. B - 1 and [P] rows, whose scores are kept.
        n_items: N.
        depth: Rows kept per user, at least 1; fewer if N is smaller.
        block_items: Items scored together, at least 1.

    Raises:
        TrainingError: A score is NaN.
        DataError: The scores are not of shape [B, items of the block].
    """
    n_users, depth = len(seen), min(depth, n_items)
    seen = _drop_duplicates(seen, n_items)
    seen_users = seen.segment_ids
    kept_users = np.concatenate([pairs[0], seen_users])
    kept_rows = np.concatenate([pairs[1], seen.values])
    kept = _PairScores(kept_users, kept_rows)
    top_rows = TopRows(n_users, depth)
    for first, scores in _iterate_blocks(score_block, n_users, n_items, block_items):
        kept.read_block(scores, first)
        if top_rows.add_block(scores, first, seen) or np.isnan(kept.last_read).any():
            raise TrainingError(
                f"{int(np.isnan(scores).sum())} of {scores.size} scores are NaN and cannot be ranked; "
                "training has probably diverged: lower training.lr or raise training.temperature"
            )
    best_rows, best_scores = top_rows.sort()
    n_pairs = len(pairs[0])
    return BatchRanking(best_rows, best_scores, seen, kept.scores[n_pairs:], kept.scores[:n_pairs])


def _iterate_blocks(
    score_block: BlockScorer, n_users: int, n_items: int, block_items: int
) -> Iterator[tuple[int, Scores]]:
    """Yield the first row and the scores [B, n] of consecutive blocks of all items."""
    for first in range(0, n_items, block_items):
        stop = min(first + block_items, n_items)
        scores = np.asarray(score_block(first, stop), dtype=np.float32)
        if scores.shape != (n_users, stop - first):
            raise DataError(
                f"the scorer returned scores of shape {scores.shape}; expected (users, items of the block) = "
                f"{(n_users, stop - first)}"
            )
        yield first, scores


class _PairsByBlock:
    """Pairs of user and row, found by blocks of rows.

    Args:
        users: [P] users.
        rows: [P] rows.
    """

    def __init__(self, users: NDArray[np.int64], rows: Rows) -> None:
        self.order = np.argsort(rows, kind="stable")
        self._users, self._rows = users[self.order], rows[self.order]

    def find(self, first: int, width: int) -> slice:
        """Return the slice of `order` with the pairs in the block of `width` rows from `first` on."""
        return slice(*np.searchsorted(self._rows, [first, first + width]))

    def locate(self, first: int, width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the users and the columns within the block of its pairs."""
        found = self.find(first, width)
        return self._users[found], self._rows[found] - first


class _PairScores:
    """Scores of pairs of user and row, read from the blocks that hold them.

    Attributes:
        scores: [P] scores of the pairs, in their order.
        last_read: Scores read from the last block.
    """

    def __init__(self, users: NDArray[np.int64], rows: Rows) -> None:
        self._pairs = _PairsByBlock(users, rows)
        self.scores: Scores = np.full(len(rows), np.nan, dtype=np.float32)
        self.last_read: Scores = self.scores[:0]

    def read_block(self, scores: Scores, first: int) -> None:
        """Read the pairs of a block [B, n] of the rows from `first` on."""
        self.last_read = scores[self._pairs.locate(first, scores.shape[1])]
        self.scores[self._pairs.order[self._pairs.find(first, scores.shape[1])]] = self.last_read


def _drop_duplicates(lists: RaggedArray, n_items: int) -> RaggedArray:
    """Return the lists of rows below N without repeats, ascending."""
    codes = np.unique(lists.segment_ids * n_items + lists.values)
    return RaggedArray.from_sorted_pairs(codes // n_items, codes % n_items, len(lists))
