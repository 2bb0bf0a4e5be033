"""Simple recommenders that a model has to beat, fitted in moments on the training histories.

Each is a scorer: called with cases it scores all items from their histories, float32 [B, N].
"""

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse

from vecall.arrays import Scores
from vecall.data.ragged import EvalCases, RaggedArray
from vecall.errors import ConfigError

MAX_EASE_DIM = 30_000
"""EASE keeps a dense float32 matrix of min(users, items) squared: 3.6 GB at this size."""


def build_interaction_matrix(lists: RaggedArray, n_items: int) -> sparse.csr_array:
    """[lists, N] float32: 1 where a list holds an item, however often."""
    matrix = sparse.coo_array(
        (np.ones(len(lists.values), dtype=np.float32), (lists.segment_ids, lists.values)), shape=(len(lists), n_items)
    ).tocsr()
    matrix.data[:] = 1.0
    return matrix


class Popularity:
    """Every user gets the items that most users took.

    Args:
        train: a list of item rows per user.
        n_items: N.
    """

    def __init__(self, train: RaggedArray, n_items: int) -> None:
        self.item_counts: Scores = build_interaction_matrix(train, n_items).sum(axis=0).astype(np.float32)  # [N]

    def __call__(self, cases: EvalCases) -> Scores:
        """The same scores for all: a read-only view [B, N]."""
        return np.broadcast_to(self.item_counts, (len(cases), len(self.item_counts)))


class Ease:
    """The linear autoencoder EASE (Steck, WWW 2019, arXiv 1905.03375).

    With the binary matrix X [users, N] and P = (XᵀX + l2·I)⁻¹, item i speaks for item j ≠ i by −Pij / Pjj.
    When users are fewer than items, P is never built: by the Woodbury identity
    P = (I − Xᵀ(l2·I + XXᵀ)⁻¹X) / l2, so a [users, users] inverse and its diagonal's share are enough.

    Args:
        train: a list of item rows per user.
        n_items: N.
        l2: > 0; larger trusts rare items less.

    Raises:
        ConfigError: l2 is not positive, or both users and items are more than EASE can hold.
    """

    def __init__(self, train: RaggedArray, n_items: int, l2: float = 500.0) -> None:
        if not l2 > 0:
            raise ConfigError(f"EASE: l2 must be positive, got {l2}")
        x = build_interaction_matrix(train.take(np.flatnonzero(train.lengths)), n_items)
        if min(x.shape) > MAX_EASE_DIM:
            raise ConfigError(
                f"EASE inverts a matrix of min(users, items) squared: there are {x.shape[0]:,} users and {n_items:,} "
                f"items, and it can hold {MAX_EASE_DIM:,} of one of them"
            )
        self._n_items = n_items
        self._solver = _DualEase(x, l2) if x.shape[0] < n_items else _PrimalEase(x, l2)

    def __call__(self, cases: EvalCases) -> Scores:
        """[B, N] from the set of items in each history."""
        return self._solver.score(build_interaction_matrix(cases.histories, self._n_items))


class _PrimalEase:
    """The weights B [N, N] themselves."""

    def __init__(self, interactions: sparse.csr_array, l2: float) -> None:
        gram = (interactions.T @ interactions).toarray()
        gram[np.diag_indices_from(gram)] += np.float32(l2)
        inverse = _invert_spd(gram)
        self._weights = inverse / -np.diag(inverse)
        np.fill_diagonal(self._weights, 0.0)

    def score(self, histories: sparse.csr_array) -> Scores:
        scores: Scores = histories @ self._weights
        return scores


class _DualEase:
    """The [users, users] inverse M, and the diagonal of P [N]."""

    def __init__(self, interactions: sparse.csr_array, l2: float, block_size: int = 1024) -> None:
        kernel = (interactions @ interactions.T).toarray()
        kernel[np.diag_indices_from(kernel)] += np.float32(l2)
        self._interactions, self._l2, self._kernel_inverse = interactions, np.float32(l2), _invert_spd(kernel)
        items = interactions.T.tocsr()  # [N, users]
        explained = [
            _compute_quadratic_forms(items[start : start + block_size], self._kernel_inverse)
            for start in range(0, interactions.shape[1], block_size)
        ]
        self._p_diagonal = (1.0 - np.concatenate(explained)) / self._l2

    def score(self, histories: sparse.csr_array) -> Scores:
        through = (
            (histories @ self._interactions.T).toarray() @ self._kernel_inverse @ self._interactions
        )  # [B, users] to [B, N]
        dense = histories.toarray()
        scores: Scores = dense - (dense - through) / self._l2 / self._p_diagonal
        return scores


def _compute_quadratic_forms(rows: sparse.csr_array, matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """[rows] r M rᵀ of each binary row r."""
    owners = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
    reached = (rows @ matrix)[owners, rows.indices]
    return np.bincount(owners, weights=reached, minlength=rows.shape[0]).astype(np.float32)


def _invert_spd(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of a symmetric positive definite matrix, which is overwritten.

    LAPACK's potri takes two fifths of the work of solving for the identity.
    """
    factor, _ = linalg.cho_factor(matrix.T, lower=True, overwrite_a=True, check_finite=False)
    inverse: NDArray[np.float32] = linalg.lapack.spotri(factor, lower=1, overwrite_c=1)[0]  # the lower half of it
    for row in range(len(inverse)):
        inverse[row, row + 1 :] = inverse[row + 1 :, row]
    return inverse


class RecentCooccurrence:
    """Items that stood near the newest ones of the history in the histories of others.

    score(j) = Σ over the last `n_recent` items i of decay^age(i) · near(i, j) / √(n_i · n_j), where n counts
    the users who took an item, and near(i, j), i ≠ j, adds 1 / √gap for each time that both stand in one
    history at most `window` places apart, in either order.

    Args:
        train: a list of item rows per user, oldest first.
        n_items: N.
        n_recent: newest history items that are looked at.
        decay: 0 < decay <= 1, what is left of an item's weight one step further into the past.
        window: places; fitting holds at most window pairs per interaction.
    """

    def __init__(
        self, train: RaggedArray, n_items: int, *, n_recent: int = 10, decay: float = 0.9, window: int = 50
    ) -> None:
        self._n_recent, self._decay = n_recent, decay
        rows, owners, shape = train.values, train.segment_ids, (n_items, n_items)
        near = sparse.csr_array(shape, dtype=np.float32)
        for gap in range(1, min(window, len(rows) - 1) + 1):
            together = (owners[gap:] == owners[:-gap]) & (rows[gap:] != rows[:-gap])
            earlier, later = rows[:-gap][together], rows[gap:][together]
            weights = np.full(len(later), gap**-0.5, dtype=np.float32)
            near += sparse.coo_array((weights, (earlier, later)), shape=shape).tocsr()
        scale = np.maximum(build_interaction_matrix(train, n_items).sum(axis=0), 1.0).astype(np.float32) ** -0.5
        self._similarity = (sparse.diags_array(scale) @ (near + near.T) @ sparse.diags_array(scale)).tocsr()

    def __call__(self, cases: EvalCases) -> Scores:
        """[B, N] from the newest items of each history."""
        history = cases.histories.take_last(self._n_recent)
        ages = history.offsets[1:][history.segment_ids] - 1 - np.arange(len(history.values))
        asked = sparse.csr_array(
            ((self._decay**ages).astype(np.float32), history.values, history.offsets),
            shape=(len(history), self._similarity.shape[0]),
        )
        scores: Scores = (asked @ self._similarity).toarray()
        return scores
