"""Item vectors from the interactions: leading singular vectors of the matrix of users and items.

Towers that begin there need a third of the epochs, and end higher where histories are short; see
docs/decisions/0015-set-preset.md. Beside trained vectors, untrained ones of another scaling find more still; see
docs/decisions/0018-spectral-part.md.
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
_L2 = 50.0  # regularization of the untrained vectors, in users
_OVERSAMPLING = 10  # singular vectors beyond those wanted, for precision
_POWER_ITERATIONS = 4
_EIGEN_ITERATIONS = 8  # where the diagonal makes eigenvalues more alike
_MAX_INTERACTIONS = 5_000_000  # of larger data, users are sampled
_MAX_ITEMS = 1_000_000  # of more items, the ones with most users; the others keep their random vectors
# For the estimate of memory: of the basis that is made orthonormal, two copies in double precision and one in single;
# beside it, at most two bases of items and of users in single precision; and buffers of two BLAS threads.
_BASIS_BYTES, _KEPT_BASES_BYTES, _BUFFER_BYTES = 2 * 8 + 4, 2 * 4, 4 * 2**23
_MATRIX_BYTES = 2 * (8 + 4)  # of an interaction: matrix and transposed matrix, with indices of 8 bytes
_COUNT_BYTES = 8  # of an item: its column
_FLOAT_BYTES = 4


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
    matrix, items = build_interaction_matrix(histories, towers.n_items, seed)
    users_by_item = np.bincount(matrix.indices, minlength=len(items))
    scale_columns(matrix, np.maximum(users_by_item, 1) ** _ITEM_COUNT_POWER)
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
    n_interactions, n_users, n_matrix_items = _count_matrix(histories, n_items)
    width = dim + _OVERSAMPLING
    side_bytes = width * (_BASIS_BYTES * max(n_users, n_matrix_items) + _KEPT_BASES_BYTES * (n_users + n_matrix_items))
    return side_bytes + _MATRIX_BYTES * n_interactions + _COUNT_BYTES * n_items + _BUFFER_BYTES


def estimate_spectral_part_bytes(histories: RaggedArray, n_items: int, dim: int) -> int:
    """Estimate the bytes that `compute_spectral_part` needs for `dim` dimensions; freed when it returns."""
    n_interactions, n_users, n_matrix_items = _count_matrix(histories, n_items)
    width = dim + _OVERSAMPLING
    # Of items alone: a basis is made orthonormal beside the one before and its multiple. While it is multiplied, there
    # is one of users.
    item_bytes = (_BASIS_BYTES + 2 * _FLOAT_BYTES) * n_matrix_items
    basis_bytes = width * max(item_bytes, _FLOAT_BYTES * (n_users + 3 * n_matrix_items))
    return basis_bytes + _MATRIX_BYTES * n_interactions + _COUNT_BYTES * n_items + _BUFFER_BYTES


@torch.no_grad()
def compute_spectral_part(towers: TwoTower, histories: RaggedArray, seed: int) -> None:
    """Compute the vectors of the spectral part from the histories; those of items without interactions are 0.

    They are the leading eigenvectors of D^-½ (XᵀX + l2·I) D^-½ for the binary matrix X [users, items] and l2 = 50, each
    times √(1 - 1 / its eigenvalue). With D = 1 / diag((XᵀX + l2·I)⁻¹), the products of these vectors would be the best
    approximation of their rank to the weights of EASE (Steck, WWW 2019), scaled to be symmetric. The
    diagonal of XᵀX + l2·I stands for that D: it needs no array of items × items.

    Args:
        towers: Towers; without a spectral part nothing happens.
        histories: U histories of item rows that are learned from.
        seed: Seed of the random projection, and of the sample of users in large data.
    """
    if towers.spectral_vectors is None:
        return
    vectors = towers.spectral_vectors
    matrix, items = build_interaction_matrix(histories, towers.n_items, seed)
    regularized_counts = np.bincount(matrix.indices, minlength=len(items)) + _L2
    scale_columns(matrix, regularized_counts**-0.5)
    rank = min(vectors.shape[1], len(items) - _OVERSAMPLING)
    vectors.zero_()
    if rank < 1:
        logger.info("%d items are too few for a spectral part: vectors are the trained part alone", len(items))
        return
    eigenvalues, eigenvectors = compute_leading_eigenvectors(matrix, _L2 / regularized_counts, rank, seed)
    scaled = eigenvectors * np.sqrt(np.maximum(1 - 1 / eigenvalues, 0)).astype(np.float32)
    vectors[torch.from_numpy(items), :rank] = torch.from_numpy(scaled)


def _count_matrix(histories: RaggedArray, n_items: int) -> tuple[int, int, int]:
    """Return about how many interactions, users and items `build_interaction_matrix` takes."""
    n_interactions = min(len(histories.values), _MAX_INTERACTIONS)
    n_users = int(len(histories) * n_interactions / max(1, len(histories.values)))
    return n_interactions, n_users, min(int(np.count_nonzero(count_rows(histories.values, n_items))), _MAX_ITEMS)


def build_interaction_matrix(
    histories: RaggedArray, n_items: int, seed: int
) -> tuple[sparse.csr_array, NDArray[np.int64]]:
    """Build the matrix of users and items: 1 where a user took an item, however often.

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
    return matrix, items


def scale_columns(matrix: sparse.csr_array, scales: NDArray[np.floating]) -> None:
    """Multiply the columns of a matrix by [columns] numbers, in place."""
    matrix.data *= scales.astype(np.float32)[matrix.indices]


def compute_leading_eigenvectors(
    matrix: sparse.csr_array, diagonal: NDArray[np.floating], rank: int, seed: int
) -> tuple[NDArray[np.float64], Vectors]:
    """Compute the leading eigenvectors of YᵀY + diag(d), by randomized subspace iteration as below.

    Args:
        matrix: Y, [users, items].
        diagonal: d, [items], 0 or more.
        rank: Number of eigenvectors, from 1 to `items` - 10.
        seed: Seed of the random projection.

    Returns:
        [rank] eigenvalues, falling, and [items, rank] float32 eigenvectors of length 1.
    """
    transposed = matrix.T.tocsr()
    weights = diagonal.astype(np.float32)[:, None]
    rng = np.random.default_rng(seed)
    basis = _orthonormalize(rng.standard_normal((matrix.shape[1], rank + _OVERSAMPLING), dtype=np.float32))
    for _ in range(_EIGEN_ITERATIONS):
        basis = _orthonormalize(transposed @ (matrix @ basis) + weights * basis)
    small = basis.T.astype(np.float64) @ (transposed @ (matrix @ basis) + weights * basis)
    eigenvalues, rotation = linalg.eigh((small + small.T) / 2)
    leading = np.argsort(-eigenvalues)[:rank]
    return eigenvalues[leading], basis @ rotation[:, leading].astype(np.float32)


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
