"""The centroids of cells: found by k-means on a sample, in two levels where they are many."""

import math
from typing import Any

import faiss as typed_faiss
import numpy as np

from vecall.index.base import Rows, Vectors
from vecall.index.exact import ExactIndex

faiss: Any = typed_faiss  # its type stubs lack half of what is used here

_TRAINED_ON = 32  # vectors for each centroid
_ROUNDS = 10  # of k-means
_AT_ONCE = 4096  # centroids that are found in one level, and compared one by one with each vector
_GROUPS_SEEN = 12  # of many centroids: fewer put vectors into wrong cells


def usual_cells(n: int) -> int:
    """The power of two nearest to 2 sqrt(N): each visit has a price, so few large ones are quicker."""
    return int(min(n, 2 ** max(0, round(math.log2(2 * math.sqrt(n))))))


def sample_rows(n: int, most: int, seed: int) -> Rows:
    """Up to `most` of N rows, ascending."""
    rows: Rows = np.sort(np.random.default_rng(seed).choice(n, min(n, most), replace=False))
    return rows


def find_centroids(stored: ExactIndex, cells: int, *, seed: int) -> Vectors:
    """[cells, D] centroids of length 1, by k-means for inner products (spherical).

    More than 4,096 are found in two levels: groups, then centroids within each, as many as its share of vectors.
    """
    sample = stored.vectors(sample_rows(stored.size, max(_TRAINED_ON * cells, 1000), seed))
    if cells <= _AT_ONCE:
        return _k_means(sample, cells)
    groups = math.isqrt(cells)
    group_of = _nearest(sample, _k_means(sample, groups))
    shares = _shares(np.bincount(group_of, minlength=groups), cells)
    return np.concatenate([_k_means(sample[group_of == group], int(share)) for group, share in enumerate(shares)])


def nearest_finder(centroids: Vectors) -> Any:  # noqa: ANN401 - an index of faiss
    """A faiss index over [cells, D] centroids that finds the nearest: exactly, or by groups where they are many."""
    dim, groups = centroids.shape[1], math.isqrt(len(centroids))
    finder = faiss.IndexFlatIP(dim)
    if len(centroids) > _AT_ONCE:
        finder.add(_k_means(centroids, groups))
        finder.this.disown()
        finder = faiss.IndexIVFFlat(finder, dim, groups, faiss.METRIC_INNER_PRODUCT)
        finder.own_fields, finder.nprobe = True, _GROUPS_SEEN
        finder.make_direct_map()  # residuals are taken from the centroid itself
    finder.add(centroids)
    return finder


def _k_means(vectors: Vectors, cells: int) -> Vectors:
    if not cells:
        return np.empty((0, vectors.shape[1]), dtype=np.float32)
    means = faiss.Clustering(vectors.shape[1], cells)
    means.niter, means.spherical = _ROUNDS, True
    means.min_points_per_centroid, means.max_points_per_centroid = 1, max(1, -(-len(vectors) // cells))
    means.train(vectors, faiss.IndexFlatIP(vectors.shape[1]))
    centroids: Vectors = faiss.vector_to_array(means.centroids).reshape(cells, vectors.shape[1])
    faiss.normalize_L2(centroids)  # where there are as many as vectors, they are the vectors
    return centroids


def _nearest(vectors: Vectors, centroids: Vectors) -> Rows:
    rows: Any = nearest_finder(centroids).search(vectors, 1)[1]  # [n, 1]
    nearest: Rows = rows[:, 0]
    return nearest


def _shares(counts: Rows, total: int) -> Rows:
    """[groups] integers in proportion to the counts, none above its count, whose sum is `total` <= sum of counts."""
    exact = counts * (total / counts.sum())
    shares: Rows = np.minimum(np.floor(exact).astype(np.int64), counts)
    order = np.argsort(shares - exact, kind="stable")  # those that lost most by rounding get one more
    for group in order[: total - int(shares.sum())]:
        shares[group] += 1
    return shares
