"""Popularity and EASE, fitted on the training histories: scorers that read histories alone."""

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse

from vecall.arrays import Scores
from vecall.data.ragged import EvalCases, RaggedArray, count_users
from vecall.errors import ConfigError
from vecall.evaluation.baseline_memory import check_baseline_memory
from vecall.evaluation.scorer import BlockScorer

MAX_EASE_DIM = 30_000
"""Largest min(users, items) of EASE, which inverts a matrix of that size squared: some minutes here."""

DEFAULT_EASE_L2 = 500.0

_EASE_BYTES_PER_WEIGHT = 12  # float32 counts and, before, their sparse form; after, the weights for two values of l2
_EASE_BYTES_PER_INTERACTION = 60  # sparse matrices and their construction


def build_interaction_matrix(lists: RaggedArray, n_items: int) -> sparse.csr_array:
    """Return [lists, N] float32: 1 where a list contains an item, however often."""
    matrix = sparse.coo_array(
        (np.ones(len(lists.values), dtype=np.float32), (lists.segment_ids, lists.values)), shape=(len(lists), n_items)
    ).tocsr()
    matrix.data[:] = 1.0
    return matrix


class Popularity:
    """Scores each item by the number of its users, the same for every case.

    Args:
        train: A list of item rows per user.
        n_items: N.

    Attributes:
        item_counts: [N] number of users of each item.
    """

    def __init__(self, train: RaggedArray, n_items: int) -> None:
        self.item_counts: Scores = count_users(train, n_items).astype(np.float32)

    def __call__(self, cases: EvalCases) -> BlockScorer:
        """Return the scorer of blocks of items for B cases."""
        return lambda start, stop: np.broadcast_to(self.item_counts[start:stop], (len(cases), stop - start))


class EaseGram:
    """Item-item or user-user counts of EASE, whichever are fewer: several regularizations can be fitted to them.

    Args:
        train: A list of item rows per user.
        n_items: N.

    Attributes:
        dim: min(users with interactions, N).

    Raises:
        ConfigError: `dim` is above `MAX_EASE_DIM`, or memory is too small.
    """

    def __init__(self, train: RaggedArray, n_items: int) -> None:
        n_users = int(np.count_nonzero(train.lengths))
        self.dim = min(n_users, n_items)
        if self.dim > MAX_EASE_DIM:
            raise ConfigError(
                f"EASE inverts a matrix of min(users, items) squared: expected at most {MAX_EASE_DIM:,} of either, "
                f"got {n_users:,} users and {n_items:,} items"
            )
        needed_bytes = _EASE_BYTES_PER_WEIGHT * self.dim**2 + _EASE_BYTES_PER_INTERACTION * len(train.values)
        check_baseline_memory("EASE", needed_bytes)
        interactions = build_interaction_matrix(train.take(np.flatnonzero(train.lengths)), n_items)
        self._interactions = interactions if n_users < n_items else None  # [users, N], of the dual form alone
        counts = interactions @ interactions.T if n_users < n_items else interactions.T @ interactions
        self._counts: NDArray[np.float32] = counts.toarray()

    def solve(self, l2: float) -> "_PrimalEase | _DualEase":
        """Return the weights for one regularization, above 0."""
        regularized = self._counts.copy()
        regularized[np.diag_indices_from(regularized)] += np.float32(l2)
        inverse = _invert_spd(regularized)
        return _PrimalEase(inverse) if self._interactions is None else _DualEase(self._interactions, inverse, l2)


class Ease:
    """The linear autoencoder EASE (Steck, WWW 2019, arXiv 1905.03375).

    With the binary matrix X [users, N] and P = (XᵀX + l2·I)⁻¹, the weight from item i to item j ≠ i is −Pij / Pjj.
    With fewer users than items P is never built: by the Woodbury identity P = (I − Xᵀ(l2·I + XXᵀ)⁻¹X) / l2, so the
    [users, users] inverse and the diagonal of P suffice.

    Args:
        train: A list of item rows per user.
        n_items: N.
        l2: Regularization, above 0; a larger value gives rare items less weight.
        gram: Counts of the same `train`, to fit several `l2` to; None to count.

    Raises:
        ConfigError: `l2` is not positive, min(users, items) is above `MAX_EASE_DIM`, or memory is too small.
    """

    def __init__(
        self, train: RaggedArray, n_items: int, l2: float = DEFAULT_EASE_L2, gram: EaseGram | None = None
    ) -> None:
        if not l2 > 0:
            raise ConfigError(f"EASE: expected a positive l2, got {l2}")
        self._n_items = n_items
        self._solver = (gram or EaseGram(train, n_items)).solve(l2)

    def __call__(self, cases: EvalCases) -> BlockScorer:
        """Return the scorer of blocks of items for B cases, from the set of items in each history."""
        return self._solver.score(build_interaction_matrix(cases.histories, self._n_items))


class _PrimalEase:
    """EASE with its item-item weights [N, N] in memory, made of P, which is overwritten."""

    def __init__(self, p_matrix: NDArray[np.float32]) -> None:
        self._weights = p_matrix
        self._weights /= -np.diag(self._weights)
        np.fill_diagonal(self._weights, 0.0)

    def score(self, histories: sparse.csr_array) -> BlockScorer:
        """Return the scorer of blocks of items for binary histories [B, N].

        All N items are scored at once: they are few beside the weights, and a slice of these would be copied.
        """
        scores: Scores = histories @ self._weights
        return lambda start, stop: scores[:, start:stop]


class _DualEase:
    """EASE with the [users, users] inverse M = (XXᵀ + l2·I)⁻¹ and the diagonal of P, [N], in memory."""

    def __init__(
        self,
        interactions: sparse.csr_array,
        kernel_inverse: NDArray[np.float32],
        l2: float,
        block_size: int = 1024,
    ) -> None:
        self._interactions = interactions.tocsc()  # [users, N], by item
        self._l2, self._kernel_inverse = np.float32(l2), kernel_inverse
        items = interactions.T.tocsr()  # [N, users]
        quadratic_forms = [
            _compute_quadratic_forms(items[start : start + block_size], self._kernel_inverse)
            for start in range(0, interactions.shape[1], block_size)
        ]
        self._p_diagonal = (1.0 - np.concatenate(quadratic_forms)) / self._l2

    def score(self, histories: sparse.csr_array) -> BlockScorer:
        """Return the scorer of blocks of items for binary histories [B, N]."""
        user_similarity = (histories @ self._interactions.T).toarray()  # [B, N] -> [B, users]
        projection = user_similarity @ self._kernel_inverse  # [B, users]
        histories_by_item = histories.tocsc()

        def score_block(start: int, stop: int) -> Scores:
            projected = projection @ self._interactions[:, start:stop]  # [B, users] -> [B, stop - start]
            dense = histories_by_item[:, start:stop].toarray()
            scores: Scores = dense - (dense - projected) / self._l2 / self._p_diagonal[start:stop]
            return scores

        return score_block


def _compute_quadratic_forms(rows: sparse.csr_array, matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return [n] r M rᵀ for each of the n binary rows r."""
    owners = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
    terms = (rows @ matrix)[owners, rows.indices]
    return np.bincount(owners, weights=terms, minlength=rows.shape[0]).astype(np.float32)


def _invert_spd(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the inverse of a symmetric positive definite matrix, which is overwritten.

    LAPACK's potri needs 0.4 of the operations of solving for the identity.
    """
    factor, _ = linalg.cho_factor(matrix.T, lower=True, overwrite_a=True, check_finite=False)
    inverse: NDArray[np.float32] = linalg.lapack.spotri(factor, lower=1, overwrite_c=1)[0]  # the lower triangle
    for row in range(len(inverse)):
        inverse[row, row + 1 :] = inverse[row + 1 :, row]
    return inverse
