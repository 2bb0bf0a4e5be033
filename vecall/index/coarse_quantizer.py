"""Coarse quantizer of the IVF index: centroids by k-means on a sample, in two levels if they are many."""

import math
from typing import Any

import faiss as typed_faiss
import numpy as np

from vecall.arrays import Rows, Vectors
from vecall.index.faiss_adapter import use_faiss_threads
from vecall.index.sampling import sample_rows
from vecall.index.stored_vectors import StoredVectors

faiss: Any = typed_faiss  # its type stubs lack half of what is used here

_TRAIN_ROWS_PER_CENTROID = 32
_KMEANS_ITERATIONS = 10
_MAX_FLAT_CENTROIDS = 4096  # more are trained in two levels, and the nearest of them are found by a graph
# Of that graph: 998 of 1,000 vectors get the nearest of 8,192 centroids, in 0.8 of an exact search's time. A vector in
# another list is hardly ever found: see docs/decisions/0019-lists-by-expectation.md.
_GRAPH_M, _GRAPH_EF_CONSTRUCTION, _GRAPH_EF = 16, 100, 32


def choose_nlist(n: int) -> int:
    """Number of inverted lists for N vectors: the power of two nearest to 2 sqrt(N), at most N.

    Visiting a list has a fixed cost, so few large lists are faster than many small ones.
    """
    return int(min(n, 2 ** max(0, round(math.log2(2 * math.sqrt(n))))))


def train_centroids(stored_vectors: StoredVectors, nlist: int, *, seed: int) -> Vectors:
    """Train centroids of length 1 by spherical k-means, for inner products.

    More than 4,096 are trained in two levels: sqrt(nlist) groups, then centroids within each group in proportion to its
    number of sampled vectors.

    Args:
        stored_vectors: the N vectors.
        nlist: number of centroids, 1 <= nlist <= N.
        seed: seed of the sample that k-means runs on.

    Returns:
        [nlist, D] centroids.
    """
    sample = stored_vectors.get_vectors(
        sample_rows(stored_vectors.size, max(_TRAIN_ROWS_PER_CENTROID * nlist, 1000), seed)
    )
    if nlist <= _MAX_FLAT_CENTROIDS:
        return _run_kmeans(sample, nlist)
    n_groups = math.isqrt(nlist)
    group_of = _assign_to_nearest(sample, _run_kmeans(sample, n_groups))
    shares = _apportion(np.bincount(group_of, minlength=n_groups), nlist)
    return np.concatenate([_run_kmeans(sample[group_of == group], int(share)) for group, share in enumerate(shares)])


def build_coarse_quantizer(centroids: Vectors) -> Any:  # noqa: ANN401 - a faiss index
    """Build a faiss index over [nlist, D] centroids: exact up to 4,096, else an HNSW graph."""
    dim = centroids.shape[1]
    if len(centroids) <= _MAX_FLAT_CENTROIDS:
        quantizer = faiss.IndexFlatIP(dim)
    else:
        quantizer = faiss.IndexHNSWFlat(dim, _GRAPH_M, faiss.METRIC_INNER_PRODUCT)
        quantizer.hnsw.efConstruction, quantizer.hnsw.efSearch = _GRAPH_EF_CONSTRUCTION, _GRAPH_EF
    with use_faiss_threads(1):  # the graph depends on the order in which vectors are added
        quantizer.add(centroids)
    return quantizer


def _run_kmeans(vectors: Vectors, n_clusters: int) -> Vectors:
    if not n_clusters:
        return np.empty((0, vectors.shape[1]), dtype=np.float32)
    kmeans = faiss.Clustering(vectors.shape[1], n_clusters)
    kmeans.niter, kmeans.spherical = _KMEANS_ITERATIONS, True
    kmeans.min_points_per_centroid, kmeans.max_points_per_centroid = 1, max(1, -(-len(vectors) // n_clusters))
    kmeans.train(vectors, faiss.IndexFlatIP(vectors.shape[1]))
    centroids: Vectors = faiss.vector_to_array(kmeans.centroids).reshape(n_clusters, vectors.shape[1])
    faiss.normalize_L2(centroids)  # with as many clusters as vectors faiss returns the vectors, of any length
    return centroids


def _assign_to_nearest(vectors: Vectors, centroids: Vectors) -> Rows:
    """[n] nearest centroid of each vector [n, D]."""
    rows: Any = build_coarse_quantizer(centroids).search(vectors, 1)[1]  # [n, 1]
    nearest: Rows = rows[:, 0]
    return nearest


def _apportion(counts: Rows, total: int) -> Rows:
    """Split `total` in proportion to counts [n]: integers that sum to it, none above its count.

    Largest-remainder method; `total` is at most the sum of the counts.
    """
    quotas = counts * (total / counts.sum())
    shares: Rows = np.minimum(np.floor(quotas).astype(np.int64), counts)
    largest_remainder_first = np.argsort(shares - quotas, kind="stable")
    for group in largest_remainder_first[: total - int(shares.sum())]:
        shares[group] += 1
    return shares
