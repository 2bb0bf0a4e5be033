"""Vectors that all libraries of `ann.py` index, and the protocol of a library."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vecall.arrays import HalfVectors, Rows, Vectors
from vecall.index.exact import ExactIndex


@dataclass(frozen=True)
class Workload:
    """A set of vectors, and the directory that holds them and all indexes over them.

    Attributes:
        directory: holds items.npy, tuning.npy (queries to tune with) and test.npy (queries to measure with).
        ks: numbers of results, ascending.
        target: mean ANN recall that the search parameters must reach, 0 .. 1.
    """

    directory: Path
    ks: tuple[int, ...]
    target: float

    def load_half_vectors(self) -> HalfVectors:
        """Return the items [N, D] in half precision, memory-mapped."""
        items: HalfVectors = np.load(self.directory / "items.npy", mmap_mode="r")
        return items

    def load_vectors(self) -> Vectors:
        """Return the items [N, D] in single precision, in memory: the same numbers, rounded to half precision."""
        return self.load_half_vectors().astype(np.float32)

    def load_queries(self, query_set: str) -> Vectors:
        """Return the queries [Q, D] of a set, "tuning" or "test"."""
        queries: Vectors = np.load(self.directory / f"{query_set}.npy")
        return queries

    def load_truth(self, query_set: str) -> Rows:
        """Return the exact results [Q, largest k] of a query set; they are computed once and kept in the directory."""
        path = self.directory / f"truth-{query_set}.npy"
        if not path.exists() or np.load(path, mmap_mode="r").shape[1] < max(self.ks):
            hits = ExactIndex.build(self.load_half_vectors()).search(self.load_queries(query_set), max(self.ks))
            np.save(path, hits.rows)
        rows: Rows = np.load(path)
        return rows


class Library(Protocol):
    """An approximate index over all vectors of a `Workload`. Its constructor imports what it needs.

    Attributes:
        name: name in results and on the command line.
        package: distribution whose version is recorded.
        file: file or directory of the saved index, in the workload's directory.
    """

    name: str
    package: str
    file: str

    def build(self, workload: Workload) -> dict[str, float]:
        """Build the index on all cores and save it.

        Returns:
            Durations; `seconds` is the time from vectors in memory to an index.
        """

    def load(self, workload: Workload) -> None:
        """Load the saved index and vectors without ids: memory is measured of this."""

    def open(self, workload: Workload) -> None:
        """Load everything that `search` needs."""

    def list_param_sweeps(self, k: int, n: int) -> list[list[Any]]:
        """Return sequences of search parameters for k of n items, each in ascending cost.

        There are several sequences where the parameters have two numbers: one for each value of the second.
        """

    def search(self, queries: Vectors, k: int, search_params: Any) -> Rows:
        """Return the rows [B, k] of queries [B, D], found on one thread."""

    def exercise_all_paths(self, queries: Vectors, k: int, search_params: Any) -> None:
        """Search in every way that the library has, so that memory is measured with all of its data touched."""
