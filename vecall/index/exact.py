"""Engine `exact`: every stored vector is scored."""

from pathlib import Path
from typing import Any, Self

from vecall.arrays import HalfVectors, Rows, Vectors
from vecall.index.base import AdaptedSearch, SearchParams, SearchRequest
from vecall.index.bitmap import Bitmap
from vecall.index.engine import Engine, EngineBuild
from vecall.index.faiss_adapter import build_flat_index, view_flat_vectors
from vecall.index.faiss_files import (
    INDEX_FILE,
    is_half_precision,
    make_structure_error,
    read_faiss_index,
    write_faiss_index,
)
from vecall.index.filter_profile import FilterProfile
from vecall.index.hits import Hits
from vecall.index.stored_vectors import StoredVectors


class ExactIndex:
    """Index that scans N vectors, stored in half precision in faiss's flat format.

    Args:
        flat_index: `faiss.IndexScalarQuantizer` in half precision by inner product.

    Attributes:
        vectors: the stored vectors.
    """

    def __init__(self, flat_index: Any) -> None:  # noqa: ANN401 - a faiss object
        self._flat_index = flat_index
        self.vectors = StoredVectors(view_flat_vectors(flat_index), owner=flat_index)

    @classmethod
    def build(cls, vectors: Vectors | HalfVectors) -> Self:
        """Store a copy of [N, D] float32 or float16 vectors in half precision.

        Raises:
            DataError: the array is empty, of a wrong type or shape, or not representable in half precision.
        """
        return cls(build_flat_index(vectors))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the index from a file of which the sha256 has been checked.

        Raises:
            InvalidReleaseError: the file is missing, or holds another structure.
        """
        # Not mapped: faiss writes 17 bytes before the vectors, whose numbers would lie at odd addresses.
        faiss_index = read_faiss_index(path, mapped=False)
        if not is_half_precision(faiss_index, faiss_index):
            raise make_structure_error(path, faiss_index, "a flat index")
        return cls(faiss_index)

    @property
    def max_width(self) -> int:
        """N: a scan has no width."""
        return self.vectors.size

    def search(
        self,
        queries: Vectors,
        k: int,
        *,
        search_params: SearchParams | None = None,  # noqa: ARG002
        allowed: Bitmap | None = None,
        lists: Rows | None = None,  # noqa: ARG002
    ) -> Hits:
        """Return the k best rows of each query; other arguments are ignored. See `Index.search`."""
        return self.vectors.search_exact(queries, k, allowed=allowed)

    def profile_filter(self, allowed: Bitmap) -> FilterProfile:
        """Return the filter alone: a scan needs to know no more."""
        return FilterProfile(allowed)

    def adapt(self, request: SearchRequest, search_params: SearchParams) -> AdaptedSearch:  # noqa: ARG002
        """Return the search parameters as they are: a scan ignores them. See `Index.adapt`."""
        return AdaptedSearch(search_params)

    def save(self, path: Path) -> None:
        """Write the index to one file, for `load`.

        Raises:
            StoreError: the file cannot be written.
        """
        write_faiss_index(self._flat_index, path)


EXACT_ENGINE = Engine(
    name="exact",
    file=INDEX_FILE,
    build=lambda vectors, _: EngineBuild(ExactIndex.build(vectors)),
    open=lambda path, _: ExactIndex.load(path),
    is_exact=True,
)
