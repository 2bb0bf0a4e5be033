"""Initial item embeddings from the interactions: leading singular vectors of the matrix of users and items.

Towers that begin there need a third of the epochs, and end higher where histories are short; see
docs/decisions/0015-set-preset.md.
"""

import logging

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import linalg, sparse

from vecall.arrays import Vectors
from vecall.data.ragged import RaggedArray, count_rows, offsets_from_lengths
from vecall.towers.two_tower import TwoTower

logger = logging.getLogger(__name__)

_ITEM_COUNT_POWER = -0.25  # of the number of users of an item, which its column is scaled by
_OVERSAMPLING = 10  # singular vectors beyond those wanted, for precision
_POWER_ITERATIONS = 4
_MAX_INTERACTIONS = 5_000_000  # of larger data, users are sampled
_MAX_ITEMS = 1_000_000  # of more items, the ones with most users; the others keep their random vectors
# For the estimate of memory: of the basis that is made orthonormal, two copies in double precision and one in single;
# beside it, at most two bases of items and of users in single precision; and buffers of matrix products.
_BASIS_BYTES, _KEPT_BASES_BYTES, _BUFFER_BYTES = 2 * 8 + 4, 2 * 4, 2**23
_MATRIX_BYTES = 2 * (8 + 4)  # of an interaction: matrix and transposed matrix, with indices of 8 bytes
_COUNT_BYTES = 8  # of an item: its column


@torch.no_grad()
def initialize_item_ids(towers: TwoTower, histories: RaggedArray, seed: int) -> None:
    """Begin the id embeddings of items with interactions at their spectral vectors, at the scale of the random ones.

    Args:
        towers: New towers; without item ids nothing happens.
        histories: U histories of item rows that are learned from.
        seed: Seed of the random projection, and of the sample of users in large data.
    """
    if towers.item_id_embedding is None:
        return
    weight = towers.item_id_embedding.weight
    matrix, items = build_scaled_matrix(histories, towers.n_items, seed)
    rank = min(weight.shape[1], min(matrix.shape) - _OVERSAMPLING)
    if rank < 1:
        logger.info("%d users and %d items are too few for spectral vectors: embeddings begin at random", *matrix.shape)
        return
    vectors = compute_spectral_vectors(matrix, rank, seed)  # [items, rank]
    length = towers.settings.init_std * weight.shape[1] ** 0.5
    vectors *= length / max(float(np.linalg.norm(vectors, axis=1).mean()), 1e-12)
    rows = torch.from_numpy(items)
    weight[rows, :rank] = torch.from_numpy(vectors).to(weight.dtype)
    weight[rows, rank:] *= 1e-2  # of tables smaller than the embedding: nearly 0, so that the vectors lead


def estimate_spectral_bytes(histories: RaggedArray, n_items: int, dim: int) -> int:
    """Estimate the bytes that `initialize_item_ids` needs beside histories and weights; freed when it returns."""
    n_interactions = min(len(histories.values), _MAX_INTERACTIONS)
    n_users = int(len(histories) * n_interactions / max(1, len(histories.values)))
    n_matrix_items = min(int(np.count_nonzero(count_rows(histories.values, n_items))), _MAX_ITEMS)
    width = dim + _OVERSAMPLING
    side_bytes = width * (_BASIS_BYTES * max(n_users, n_matrix_items) + _KEPT_BASES_BYTES * (n_users + n_matrix_items))
    return side_bytes + _MATRIX_BYTES * n_interactions + _COUNT_BYTES * n_items + _BUFFER_BYTES


def build_scaled_matrix(histories: RaggedArray, n_items: int, seed: int) -> tuple[sparse.csr_array, NDArray[np.int64]]:
    """Build the matrix of users and items: 1 / (users of the item)^0.25 where a user took an item, however often.

    Args:
        histories: U histories of item rows.
        n_items: N.
        seed: Seed of the sample of users in large data.

    Returns:
        [users, items] matrix, and the [items] rows of its items, ascending: those with users, at most a million.
    """
    if len(histories.values) > _MAX_INTERACTIONS:
        n_users = int(len(histories) * _MAX_INTERACTIONS / len(histories.values))
        users = np.sort(np.random.default_rng(seed).choice(len(histories), size=max(1, n_users), replace=False))
        histories = histories.take(users)
    counts = count_rows(histories.values, n_items)
    items = np.flatnonzero(counts)
    if len(items) > _MAX_ITEMS:
        items = np.sort(items[np.argsort(-counts[items], kind="stable")[:_MAX_ITEMS]])
    column = np.full(n_items, -1, dtype=np.int64)
    column[items] = np.arange(len(items))
    columns = column[histories.values]
    is_kept = columns >= 0
    lengths = np.bincount(histories.segment_ids[is_kept], minlength=len(histories))
    matrix = sparse.csr_array(
        (np.ones(int(is_kept.sum()), dtype=np.float32), columns[is_kept], offsets_from_lengths(lengths)),
        shape=(len(histories), len(items)),
    )
    matrix.sum_duplicates()
    matrix.data[:] = 1.0
    users_by_item = np.maximum(np.bincount(matrix.indices, minlength=len(items)), 1)
    matrix.data[:] = (users_by_item**_ITEM_COUNT_POWER).astype(np.float32)[matrix.indices]
    return matrix, items


def compute_spectral_vectors(matrix: sparse.csr_array, rank: int, seed: int) -> Vectors:
    """Compute the leading right singular vectors, each times the square root of its singular value.

    Randomized subspace iteration (Halko, Martinsson & Tropp, SIAM Review 2011, algorithms 4.4 and 5.1).

    Args:
        matrix: [users, items], each side with at least `rank` + 10.
        rank: Number of vectors, at least 1.
        seed: Seed of the random projection.

    Returns:
        [items, rank] float32.
    """
    width = rank + _OVERSAMPLING
    transposed = matrix.T.tocsr()
    projection = np.random.default_rng(seed).standard_normal((matrix.shape[1], width), dtype=np.float32)
    basis = _orthonormalize(matrix @ projection)  # [users, width]
    for _ in range(_POWER_ITERATIONS):
        basis = _orthonormalize(matrix @ _orthonormalize(transposed @ basis))
    small = transposed @ basis  # [items, width]
    eigenvalues, rotation = linalg.eigh(small.T.astype(np.float64) @ small)
    leading = np.argsort(-eigenvalues)[:rank]
    singular_values = np.sqrt(np.maximum(eigenvalues[leading], 1e-12))
    vectors: Vectors = (small @ (rotation[:, leading] / np.sqrt(singular_values)).astype(np.float32)).astype(np.float32)
    return vectors


def _orthonormalize(matrix: Vectors) -> Vectors:
    """Return an orthonormal basis [n, width] of the columns, by two rounds of Cholesky QR: without large copies."""
    for _ in range(2):
        gram = matrix.T.astype(np.float64) @ matrix
        gram[np.diag_indices_from(gram)] += 1e-7 * np.trace(gram) / len(gram)
        factor = linalg.cholesky(gram, lower=True)
        inverse = linalg.solve_triangular(factor, np.eye(len(gram)), lower=True).T
        matrix = matrix @ inverse.astype(np.float32)
    return matrix
