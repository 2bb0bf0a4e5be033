"""The one file that an index is kept in."""

from pathlib import Path
from typing import Any

import faiss

from vecall.errors import InvalidReleaseError, StoreError
from vecall.index.base import Index
from vecall.index.exact import ExactIndex
from vecall.index.hnsw import HnswIndex
from vecall.index.ivf import IvfPqIndex


def save_index(index: Index, path: Path) -> None:
    """Write an index to one file.

    Raises:
        StoreError: the file cannot be written.
    """
    try:
        index.save(path)
    except (OSError, RuntimeError) as error:
        raise StoreError(f"{path} cannot be written: is there such a folder, and room in it? {error}") from error


def load_index(path: Path) -> Index:
    """Read an index from a file whose sha256 was checked: faiss itself does not notice every damage.

    Raises:
        ReleaseRefused: the file is missing, or holds none of our indexes.
    """
    try:
        native = faiss.read_index(str(path))
    except RuntimeError as error:
        raise InvalidReleaseError(f"{path} is no faiss index that can be read: {error}", file=path.name) from error
    if isinstance(native, faiss.IndexHNSWSQ) and _is_half_precision(native.storage, native):
        return HnswIndex(native)
    if isinstance(native, faiss.IndexRefine) and _is_ivf_pq(native):
        return IvfPqIndex(native)
    if _is_half_precision(native, native):
        return ExactIndex(native)
    raise InvalidReleaseError(
        f"{path} holds a {type(native).__name__}; expected HNSW, IVF or a flat index in half precision by inner "
        "product, as vecall makes them: publish the release again",
        file=path.name,
    )


def _is_half_precision(storage: Any, index: Any) -> bool:  # noqa: ANN401 - faiss's stubs lack half of it
    flat = faiss.downcast_index(storage)
    return (
        isinstance(flat, faiss.IndexScalarQuantizer)
        and flat.sq.qtype == faiss.ScalarQuantizer.QT_fp16
        and flat.metric_type == index.metric_type == faiss.METRIC_INNER_PRODUCT
        and flat.ntotal == index.ntotal
        and flat.codes.size() == 2 * flat.d * flat.ntotal
    )


def _is_ivf_pq(index: Any) -> bool:  # noqa: ANN401 - as above
    lists = faiss.downcast_index(index.base_index)
    return (
        isinstance(lists, faiss.IndexIVFPQFastScan)
        and isinstance(faiss.downcast_index(lists.quantizer), faiss.IndexFlat)
        and lists.by_residual
        and (lists.d, lists.ntotal) == (index.d, index.ntotal)
        and _is_half_precision(index.refine_index, index)
    )
