"""The stored vectors of a release's items: exact search, scores, and the vectors themselves."""

import mmap
from pathlib import Path
from typing import Self

import numpy as np

from vecall.arrays import HalfVectors, Rows, Scores, Vectors
from vecall.errors import InvalidReleaseError, QueryError, StoreError
from vecall.index.bitmap import Bitmap
from vecall.index.completion_scans import acquire_completion_scan
from vecall.index.hits import Hits
from vecall.index.kernels import compute_inner_products, gather_vectors
from vecall.index.scan import check_vectors, compute_block_rows, scan

VECTORS_FILE = "vectors.npy"


class StoredVectors:
    """N vectors of D dimensions in half precision. Scores, ties and histories are theirs, whatever finds the rows.

    Args:
        half_vectors: [N, D] float16, in memory or mapped from a file; made read-only.
        owner: object that owns the memory of `half_vectors`, if the array does not; it is kept alive.

    Attributes:
        half_vectors: As given.
    """

    def __init__(self, half_vectors: HalfVectors, owner: object = None) -> None:
        self.half_vectors, self._owner = half_vectors, owner
        self.half_vectors.flags.writeable = False

    @classmethod
    def open(cls, path: Path) -> Self:
        """Map a file that `write_vectors` has written into memory. Check its sha256 first.

        Raises:
            InvalidReleaseError: the file is missing, or holds no float16 [N, D] with N, D >= 1 in rows.
        """
        try:
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InvalidReleaseError(
                f"{path} is not a readable array: {error}; publish the release again", file=path.name
            ) from error
        if mapped.dtype != np.float16 or mapped.ndim != 2 or 0 in mapped.shape or not mapped.flags.c_contiguous:
            raise InvalidReleaseError(
                f"{path} holds {mapped.dtype} {list(mapped.shape)}; expected float16 [N, D], row by row, as vecall "
                "writes it: publish the release again",
                file=path.name,
            )
        return cls(mapped.view(np.ndarray))  # indexing an `np.memmap` takes several times as long

    def prefault(self) -> None:
        """Read every page of mapped vectors once, so that no search waits for the kernel to map it."""
        self.half_vectors.reshape(-1)[:: mmap.PAGESIZE // self.half_vectors.itemsize].max()

    @property
    def size(self) -> int:
        """N, the number of vectors."""
        return len(self.half_vectors)

    @property
    def dim(self) -> int:
        """D, the dimension of a vector."""
        return int(self.half_vectors.shape[1])

    def search_exact(self, queries: Vectors, k: int, *, allowed: Bitmap | None = None) -> Hits:
        """Return the k best rows of each query, exactly. See `vecall.index.scan.scan`.

        Args:
            queries: [B, D] float32, finite.
            k: number of rows per query, at least 1; may exceed N.
            allowed: bitmap of the N rows that may be returned; None allows all.

        Returns:
            Hits [B, k], padded with row -1 where fewer than k rows are allowed or exist.
        """
        return scan(self.half_vectors, queries, k, allowed)

    def score(self, query: Vectors, rows: Rows) -> Scores:
        """[n] inner products of one query [D] with the vectors of rows [n], equal to those of a search.

        Rows are in 0 .. N - 1 and are not checked.
        """
        return compute_inner_products(self.half_vectors, query, np.ascontiguousarray(rows))

    def get_vectors(self, rows: Rows) -> Vectors:
        """[n, D] vectors of rows [n], as float32.

        Raises:
            QueryError: a row is not in 0 .. N - 1.
        """
        if len(rows) and not (rows.min() >= 0 and rows.max() < self.size):
            raise QueryError(
                f"rows range from {rows.min()} to {rows.max()}; expected rows of this index, 0 to {self.size - 1}: "
                "drop the padding (row -1) of hits first"
            )
        return gather_vectors(self.half_vectors, np.ascontiguousarray(rows, dtype=np.int64))

    def fill_missing_hits(self, hits: Hits, queries: Vectors, allowed: Bitmap | None) -> Hits:
        """Replace, in place, the hits of each query that has fewer than it could by an exact search.

        A graph over many equal vectors is disconnected, a search under a bitmap may not reach the allowed rows, and a
        server may answer with fewer rows than it was asked for.

        Args:
            hits: [B, k] approximate hits; modified.
            queries: [B, D].
            allowed: bitmap that the hits were searched under.

        Returns:
            `hits`.

        Raises:
            Exception: of `limit_completion_scans`, if no further scan may run.
        """
        expected = min(hits.rows.shape[1], self.size if allowed is None else allowed.count)
        if not expected or not len(hits.rows):
            return hits
        incomplete = np.flatnonzero(hits.rows[:, expected - 1] < 0)
        if len(incomplete):
            with acquire_completion_scan(self.size if allowed is None else allowed.count):
                exact = self.search_exact(queries[incomplete], hits.rows.shape[1], allowed=allowed)
            hits.rows[incomplete], hits.scores[incomplete] = exact.rows, exact.scores
        return hits


def write_vectors(vectors: Vectors | HalfVectors, path: Path) -> None:
    """Write [N, D] float32 or float16 vectors in half precision, block by block, for `StoredVectors.open`.

    Raises:
        DataError: the array is empty, of a wrong type or shape, or not representable in half precision.
        StoreError: the file cannot be written.
    """
    check_vectors(vectors)
    step = compute_block_rows(vectors.shape[1])
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float16)), "fortran_order": False}
    try:
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header | {"shape": vectors.shape})
            for start in range(0, len(vectors), step):
                # A bare write reports a full disk; `np.save` writes through C and may lose the last bytes.
                file.write(np.ascontiguousarray(vectors[start : start + step], dtype=np.float16).data)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written: {error}; check that its directory exists and has free space"
        ) from error
