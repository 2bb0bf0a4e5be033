"""Baseline recommenders, fitted in seconds on the training histories.

Each is a scorer: called with B cases, it scores all N items from their histories, float32 [B, N].
"""

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse

from vecall.arrays import Scores
from vecall.data.ragged import EvalCases, RaggedArray
from vecall.errors import ConfigError

MAX_EASE_DIM = 30_000
"""Largest min(users, items) of EASE, which holds a dense float32 matrix of that size squared: 3.6 GB here."""


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
        self.item_counts: Scores = build_interaction_matrix(train, n_items).sum(axis=0).astype(np.float32)

    def __call__(self, cases: EvalCases) -> Scores:
        """Return [B, N] scores, a read-only view."""
        return np.broadcast_to(self.item_counts, (len(cases), len(self.item_counts)))


class Ease:
    """The linear autoencoder EASE (Steck, WWW 2019, arXiv 1905.03375).

    With the binary matrix X [users, N] and P = (XᵀX + l2·I)⁻¹, the weight from item i to item j ≠ i is −Pij / Pjj.
    With fewer users than items P is never built: by the Woodbury identity P = (I − Xᵀ(l2·I + XXᵀ)⁻¹X) / l2, so the
    [users, users] inverse and the diagonal of P suffice.

    Args:
        train: A list of item rows per user.
        n_items: N.
        l2: Regularization, above 0; a larger value gives rare items less weight.

    Raises:
        ConfigError: `l2` is not positive, or min(users, items) is above `MAX_EASE_DIM`.
    """

    def __init__(self, train: RaggedArray, n_items: int, l2: float = 500.0) -> None:
        if not l2 > 0:
            raise ConfigError(f"EASE: expected a positive l2, got {l2}")
        interactions = build_interaction_matrix(train.take(np.flatnonzero(train.lengths)), n_items)
        if min(interactions.shape) > MAX_EASE_DIM:
            raise ConfigError(
                f"EASE inverts a matrix of min(users, items) squared: expected at most {MAX_EASE_DIM:,} of either, "
                f"got {interactions.shape[0]:,} users and {n_items:,} items"
            )
        self._n_items = n_items
        self._solver = _DualEase(interactions, l2) if interactions.shape[0] < n_items else _PrimalEase(interactions, l2)

    def __call__(self, cases: EvalCases) -> Scores:
        """Return [B, N] scores from the set of items in each history."""
        return self._solver.score(build_interaction_matrix(cases.histories, self._n_items))


class _PrimalEase:
    """EASE with its item-item weights [N, N] in memory."""

    def __init__(self, interactions: sparse.csr_array, l2: float) -> None:
        gram = (interactions.T @ interactions).toarray()
        gram[np.diag_indices_from(gram)] += np.float32(l2)
        inverse = _invert_spd(gram)
        self._weights = inverse / -np.diag(inverse)
        np.fill_diagonal(self._weights, 0.0)

    def score(self, histories: sparse.csr_array) -> Scores:
        """Return [B, N] scores of binary histories [B, N]."""
        scores: Scores = histories @ self._weights
        return scores


class _DualEase:
    """EASE with the [users, users] inverse M = (XXᵀ + l2·I)⁻¹ and the diagonal of P, [N], in memory."""

    def __init__(self, interactions: sparse.csr_array, l2: float, block_size: int = 1024) -> None:
        kernel = (interactions @ interactions.T).toarray()
        kernel[np.diag_indices_from(kernel)] += np.float32(l2)
        self._interactions, self._l2, self._kernel_inverse = interactions, np.float32(l2), _invert_spd(kernel)
        items = interactions.T.tocsr()  # [N, users]
        quadratic_forms = [
            _compute_quadratic_forms(items[start : start + block_size], self._kernel_inverse)
            for start in range(0, interactions.shape[1], block_size)
        ]
        self._p_diagonal = (1.0 - np.concatenate(quadratic_forms)) / self._l2

    def score(self, histories: sparse.csr_array) -> Scores:
        """Return [B, N] scores of binary histories [B, N]."""
        user_similarity = (histories @ self._interactions.T).toarray()  # [B, N] -> [B, users]
        projected = user_similarity @ self._kernel_inverse @ self._interactions  # [B, users] -> [B, N]
        dense = histories.toarray()
        scores: Scores = dense - (dense - projected) / self._l2 / self._p_diagonal
        return scores


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


class RecentCooccurrence:
    """Scores items by their co-occurrence, close in time, with the newest items of the history.

    score(j) = Σ over the last `n_recent` items i of decay^age(i) · near(i, j) / √(n_i · n_j), where n is the number
    of users of an item, and near(i, j), i ≠ j, is the sum of 1 / √gap over all pairs of i and j in one training
    history that are gap <= `window` positions apart, in either order.

    Args:
        train: A list of item rows per user, oldest first.
        n_items: N.
        n_recent: Number of newest history items that count.
        decay: Factor of an item's weight per step into the past, in (0, 1].
        window: Largest gap in positions; fitting holds at most `window` pairs per interaction in memory.
    """

    def __init__(
        self, train: RaggedArray, n_items: int, *, n_recent: int = 10, decay: float = 0.9, window: int = 50
    ) -> None:
        self._n_recent, self._decay = n_recent, decay
        rows, owners, shape = train.values, train.segment_ids, (n_items, n_items)
        near = sparse.csr_array(shape, dtype=np.float32)
        for gap in range(1, min(window, len(rows) - 1) + 1):
            is_pair = (owners[gap:] == owners[:-gap]) & (rows[gap:] != rows[:-gap])
            earlier, later = rows[:-gap][is_pair], rows[gap:][is_pair]
            weights = np.full(len(later), gap**-0.5, dtype=np.float32)
            near += sparse.coo_array((weights, (earlier, later)), shape=shape).tocsr()
        scale = np.maximum(build_interaction_matrix(train, n_items).sum(axis=0), 1.0).astype(np.float32) ** -0.5
        self._similarity = (sparse.diags_array(scale) @ (near + near.T) @ sparse.diags_array(scale)).tocsr()

    def __call__(self, cases: EvalCases) -> Scores:
        """Return [B, N] scores from the newest items of each history."""
        history = cases.histories.truncate_to_last(self._n_recent)
        ages = history.offsets[1:][history.segment_ids] - 1 - np.arange(len(history.values))
        recent_weights = sparse.csr_array(  # [B, N]
            ((self._decay**ages).astype(np.float32), history.values, history.offsets),
            shape=(len(history), self._similarity.shape[0]),
        )
        scores: Scores = (recent_weights @ self._similarity).toarray()
        return scores
