"""Random draws for a split, by (user, item) pair: all interactions of a pair are drawn together.

Pairs are numbered by user row and item row, so a draw depends on the ids in the tables and on the seed, and neither on
the order of the file nor on the process.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import Mask, Rows
from vecall.data.ragged import count_rows, offsets_from_lengths

MIN_ITEMS = 5  # distinct items of a user from which on some are held out
_ITEMS_PER_TEST_ITEM = 10
_VALID_SHARE = 0.1
_VALID_SEED = 0


@dataclass(frozen=True)
class _Pairs:
    """Distinct (user, item) pairs of n interactions, of which some may be held out.

    Attributes:
        of_interaction: [n] Number of the pair of each interaction.
        candidates: [c] Numbers of the pairs that may be held out, by user, shuffled within each.
        draws: [c] The random number in [0, 1) of each of them, ascending within a user.
        ranks: [c] Its position within its user, from 0.
        counts: [U] Number of candidates of each user.
        size: Number of pairs.
    """

    of_interaction: Rows
    candidates: Rows
    draws: NDArray[np.float64]
    ranks: Rows
    counts: NDArray[np.int64]
    size: int

    @classmethod
    def shuffle(cls, users: Rows, items: Rows, is_candidate: Mask | None, n_users: int, seed: int) -> "_Pairs":
        """Number the pairs of users [n] and items [n], and shuffle those with a candidate interaction; None for all."""
        n_items = int(items.max(initial=0)) + 1
        pairs, of_interaction = np.unique(users.astype(np.int64) * n_items + items, return_inverse=True)
        candidates = np.arange(len(pairs)) if is_candidate is None else np.unique(of_interaction[is_candidate])
        draws = np.random.default_rng(seed).random(len(candidates))
        candidate_users = pairs[candidates] // n_items
        order = np.lexsort((draws, candidate_users))
        counts = count_rows(candidate_users, n_users)
        ranks = np.arange(len(order)) - np.repeat(offsets_from_lengths(counts)[:-1], counts)
        return cls(of_interaction, candidates[order], draws[order], ranks, counts, len(pairs))

    def mark_interactions(self, mask: Mask) -> Mask:
        """Return a mask [n] of the interactions of the candidates where a mask [c] is true."""
        is_marked = np.zeros(self.size, dtype=np.bool_)
        is_marked[self.candidates[mask]] = True
        return is_marked[self.of_interaction]


def draw_held_out(users: Rows, items: Rows, is_target: Mask | None, n_users: int, seed: int) -> tuple[Mask, Mask]:
    """Draw a tenth of each user's items for validation and as many for the test.

    A tenth is rounded to the nearest number, and at least 1; of users with fewer than `MIN_ITEMS` items it is 0.

    Args:
        users: [n] User rows of interactions.
        items: [n] Item rows.
        is_target: [n] Whether the pair of an interaction may be drawn, which takes one such interaction; None for all.
            Items count only if they may be.
        n_users: U.
        seed: Seed of the draw.

    Returns:
        [n] Whether an interaction is in the validation, and [n] whether it is in the test.
    """
    pairs = _Pairs.shuffle(users, items, is_target, n_users, seed)
    tenths = np.maximum(1, (pairs.counts + _ITEMS_PER_TEST_ITEM // 2) // _ITEMS_PER_TEST_ITEM)
    n_test = np.repeat(np.where(pairs.counts < MIN_ITEMS, 0, tenths), pairs.counts)
    is_test = pairs.ranks < n_test
    is_valid = (pairs.ranks < 2 * n_test) & ~is_test
    return pairs.mark_interactions(is_valid), pairs.mark_interactions(is_test)


def draw_validation(users: Rows, items: Rows, is_target: Mask | None, n_users: int) -> Mask:
    """Draw a tenth of the (user, item) pairs that may be drawn for validation; each user keeps at least one of them.

    Args:
        users: [n] User rows of interactions.
        items: [n] Item rows.
        is_target: As for `draw_held_out`.
        n_users: U.

    Returns:
        [n] Whether an interaction is of a drawn pair.
    """
    pairs = _Pairs.shuffle(users, items, is_target, n_users, _VALID_SEED)
    is_drawable = pairs.ranks < np.repeat(pairs.counts, pairs.counts) - 1
    drawable = np.flatnonzero(is_drawable)
    by_draw = drawable[np.argsort(pairs.draws[drawable], kind="stable")]
    is_drawn = np.zeros(len(pairs.candidates), dtype=np.bool_)
    is_drawn[by_draw[: round(_VALID_SHARE * len(pairs.candidates))]] = True
    return pairs.mark_interactions(is_drawn)
