"""Inner products that do not depend on where a vector stands: what metrics need of ties, and BLAS does not promise."""

import numpy as np

from vecall.arrays import Scores, Vectors


def compute_all_scores(queries: Vectors, vectors: Vectors) -> Scores:
    """Return the inner products of B queries [B, D] and n vectors [n, D] as float32 [B, n].

    Equal vectors get equal scores. In single precision they would not on every machine: a BLAS adds up the products in
    another order at the edges of its tiles, and on some processors everywhere but in the first tile. In double
    precision such sums differ by less than 1e-15 of |q| |x|, and round to the same float32 but about once in 10^8.
    """
    scores: Scores = (queries.astype(np.float64) @ vectors.astype(np.float64).T).astype(np.float32)
    return scores
