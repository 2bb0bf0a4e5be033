"""Building an index as its settings say, and the one file that it is kept in."""

from pathlib import Path

import faiss

from vecall.errors import ReleaseRefused, StoreError
from vecall.index.base import Index, Vectors
from vecall.index.exact import ExactIndex
from vecall.index.hnsw import HnswIndex
from vecall.index.settings import IndexSettings

_SCANNED_BELOW = 2_000  # items; a scan of so few is as fast as a graph, and exact


def build(vectors: Vectors, settings: IndexSettings) -> Index:
    """An index over [N, D] float32 vectors.

    Raises:
        DataError: the array is empty, of another type or shape, or holds what half precision cannot.
    """
    auto_exact = settings.engine == "auto" and len(vectors) < _SCANNED_BELOW
    if settings.engine == "exact" or auto_exact:
        return ExactIndex.build(vectors)
    return HnswIndex.build(
        vectors,
        m=settings.M or 16,
        ef_construction=settings.ef_construction or 200,
        ef=settings.ef or 50,
    )


def save(index: Index, path: Path) -> None:
    """Write an index to one file.

    Raises:
        StoreError: the file cannot be written.
    """
    try:
        index.save(path)
    except RuntimeError as error:
        raise StoreError(f"{path} cannot be written: is there such a folder, and room in it? {error}") from error


def load(path: Path) -> Index:
    """Read an index from a file whose sha256 was checked: faiss itself does not notice every damage.

    Raises:
        ReleaseRefused: the file is missing, or holds none of our indexes.
    """
    try:
        native = faiss.read_index(str(path))
    except RuntimeError as error:
        raise ReleaseRefused(f"{path} is no faiss index that can be read: {error}", file=path.name) from error
    storage = faiss.downcast_index(native.storage) if isinstance(native, faiss.IndexHNSWSQ) else native
    half = isinstance(storage, faiss.IndexScalarQuantizer) and (
        storage.sq.qtype == faiss.ScalarQuantizer.QT_fp16
        and storage.metric_type == native.metric_type == faiss.METRIC_INNER_PRODUCT
        and storage.codes.size() == 2 * native.d * native.ntotal
    )
    if not half:
        raise ReleaseRefused(
            f"{path} holds a {type(native).__name__}; expected IndexHNSWSQ or IndexScalarQuantizer of "
            "half-precision numbers by inner product: publish the release again",
            file=path.name,
        )
    return ExactIndex(native) if native is storage else HnswIndex(native)
