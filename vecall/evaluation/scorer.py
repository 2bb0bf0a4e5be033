"""What is evaluated: a scorer of items for batches of users, block by block of items."""

from collections.abc import Callable

from vecall.arrays import Scores, Vectors
from vecall.data.ragged import EvalCases
from vecall.runtime.inner_products import compute_all_scores

BlockScorer = Callable[[int, int], Scores]
"""Scores of the items `start` to `stop` - 1 for B cases: float32 [B, stop - start], larger is better, no NaN."""

Scorer = Callable[[EvalCases], BlockScorer]
"""Takes a batch of B cases and returns the scorer of blocks of items for them, so that [B, N] is never in memory."""


class VectorScorer:
    """Scorer of dot products of user vectors and item vectors.

    Args:
        encode_users: Maps B cases to user vectors [B, D].
        item_vectors: [N, D], kept as they are.
    """

    def __init__(self, encode_users: Callable[[EvalCases], Vectors], item_vectors: Vectors) -> None:
        self._encode_users, self._item_vectors = encode_users, item_vectors

    def __call__(self, cases: EvalCases) -> BlockScorer:
        """Encode the users of B cases and return the scorer of blocks of items."""
        user_vectors = self._encode_users(cases)  # [B, D]

        return lambda start, stop: compute_all_scores(user_vectors, self._item_vectors[start:stop])
