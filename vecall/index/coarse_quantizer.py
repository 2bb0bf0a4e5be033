"""The centroids of cells: found by k-means on a sample, in two levels where they are many."""

import math
from typing import Any

import faiss as typed_faiss
import numpy as np

from vecall.arrays import Rows, Vectors
from vecall.index.exact import ExactIndex

faiss: Any = typed_faiss  # its type stubs lack half of what is used here

_TRAIN_ROWS_PER_CENTROID = 32  # vectors for each centroid
_KMEANS_ITERATIONS = 10  # of k-means
_MAX_FLAT_CENTROIDS = 4096  # centroids that are found in one level, and compared one by one with each vector
_GROUP_NPROBE = 12  # of many centroids: fewer put vectors into wrong cells


def choose_nlist(n: int) -> int:
    """The power of two nearest to 2 sqrt(N): each visit has a price, so few large ones are quicker."""
    return int(min(n, 2 ** max(0, round(math.log2(2 * math.sqrt(n))))))


def sample_rows(n: int, max_rows: int, seed: int) -> Rows:
    """Up to `max_rows` of N rows, ascending."""
    rows: Rows = np.sort(np.random.default_rng(seed).choice(n, min(n, max_rows), replace=False))
    return rows


def train_centroids(exact_index: ExactIndex, nlist: int, *, seed: int) -> Vectors:
    """[cells, D] centroids of length 1, by k-means for inner products (spherical).

    More than 4,096 are found in two levels: groups, then centroids within each, as many as its share of vectors.
    """
    sample = exact_index.get_vectors(sample_rows(exact_index.size, max(_TRAIN_ROWS_PER_CENTROID * nlist, 1000), seed))
    if nlist <= _MAX_FLAT_CENTROIDS:
        return _run_kmeans(sample, nlist)
    groups = math.isqrt(nlist)
    group_of = _assign_to_nearest(sample, _run_kmeans(sample, groups))
    shares = _apportion(np.bincount(group_of, minlength=groups), nlist)
    return np.concatenate([_run_kmeans(sample[group_of == group], int(share)) for group, share in enumerate(shares)])


def build_coarse_quantizer(centroids: Vectors) -> Any:  # noqa: ANN401 - an index of faiss
    """A faiss index over [cells, D] centroids that finds the nearest: exactly, or by groups where they are many."""
    dim, groups = centroids.shape[1], math.isqrt(len(centroids))
    finder = faiss.IndexFlatIP(dim)
    if len(centroids) > _MAX_FLAT_CENTROIDS:
        finder.add(_run_kmeans(centroids, groups))
        finder.this.disown()
        finder = faiss.IndexIVFFlat(finder, dim, groups, faiss.METRIC_INNER_PRODUCT)
        finder.own_fields, finder.nprobe = True, _GROUP_NPROBE
        finder.make_direct_map()  # residuals are taken from the centroid itself
    finder.add(centroids)
    return finder


def _run_kmeans(vectors: Vectors, n_clusters: int) -> Vectors:
    if not n_clusters:
        return np.empty((0, vectors.shape[1]), dtype=np.float32)
    means = faiss.Clustering(vectors.shape[1], n_clusters)
    means.niter, means.spherical = _KMEANS_ITERATIONS, True
    means.min_points_per_centroid, means.max_points_per_centroid = 1, max(1, -(-len(vectors) // n_clusters))
    means.train(vectors, faiss.IndexFlatIP(vectors.shape[1]))
    centroids: Vectors = faiss.vector_to_array(means.centroids).reshape(n_clusters, vectors.shape[1])
    faiss.normalize_L2(centroids)  # where there are as many as vectors, they are the vectors
    return centroids


def _assign_to_nearest(vectors: Vectors, centroids: Vectors) -> Rows:
    rows: Any = build_coarse_quantizer(centroids).search(vectors, 1)[1]  # [n, 1]
    nearest: Rows = rows[:, 0]
    return nearest


def _apportion(counts: Rows, total: int) -> Rows:
    """[groups] integers in proportion to the counts, none above its count, whose sum is `total` <= sum of counts."""
    exact = counts * (total / counts.sum())
    shares: Rows = np.minimum(np.floor(exact).astype(np.int64), counts)
    order = np.argsort(shares - exact, kind="stable")  # those that lost most by rounding get one more
    for group in order[: total - int(shares.sum())]:
        shares[group] += 1
    return shares
