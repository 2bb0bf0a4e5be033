"""Sparse matrices of histories, for the package implicit. Runs in the peers' own environment."""

import numpy as np
from scipy.sparse import csr_matrix

from harness.accuracy.peers.cases import ItemLists


def to_user_item_matrix(histories: ItemLists, n_items: int) -> csr_matrix:
    """Return [users, items] with 1 where the item is in the user's history."""
    ones = np.ones(len(histories.values), dtype=np.float64)
    matrix = csr_matrix((ones, histories.values, histories.offsets), shape=(len(histories), n_items))
    matrix.sum_duplicates()
    matrix.data[:] = 1.0
    return matrix
