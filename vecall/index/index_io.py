"""Reading and writing an index as one file."""

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
        raise StoreError(
            f"{path} cannot be written: {error}; check that its directory exists and has free space"
        ) from error


def load_index(path: Path) -> Index:
    """Read an index from a file. Check its sha256 first: faiss does not detect every kind of damage.

    Raises:
        InvalidReleaseError: the file is missing, or holds no index of a supported type.
    """
    try:
        faiss_index = faiss.read_index(str(path))
    except RuntimeError as error:
        raise InvalidReleaseError(
            f"{path} is not a readable faiss index: {error}; publish the release again", file=path.name
        ) from error
    if isinstance(faiss_index, faiss.IndexHNSWSQ) and _is_half_precision(faiss_index.storage, faiss_index):
        return HnswIndex(faiss_index)
    if isinstance(faiss_index, faiss.IndexRefine) and _is_ivf_pq(faiss_index):
        return IvfPqIndex(faiss_index)
    if _is_half_precision(faiss_index, faiss_index):
        return ExactIndex(faiss_index)
    raise InvalidReleaseError(
        f"{path} holds a faiss {type(faiss_index).__name__}; expected an HNSW, IVF or flat index as vecall builds it, "
        "in half precision by inner product: publish the release again",
        file=path.name,
    )


def _is_half_precision(storage: Any, index: Any) -> bool:  # noqa: ANN401 - faiss's type stubs lack these classes
    """Whether `storage` holds all vectors of `index` in half precision, and both use the inner product."""
    flat = faiss.downcast_index(storage)
    return (
        isinstance(flat, faiss.IndexScalarQuantizer)
        and flat.sq.qtype == faiss.ScalarQuantizer.QT_fp16
        and flat.metric_type == index.metric_type == faiss.METRIC_INNER_PRODUCT
        and flat.ntotal == index.ntotal
        and flat.codes.size() == 2 * flat.d * flat.ntotal
    )


def _is_ivf_pq(index: Any) -> bool:  # noqa: ANN401 - as above
    """Whether a `faiss.IndexRefine` has the structure that `IvfPqIndex` expects."""
    ivf_index = faiss.downcast_index(index.base_index)
    return (
        isinstance(ivf_index, faiss.IndexIVFPQFastScan)
        and isinstance(faiss.downcast_index(ivf_index.quantizer), faiss.IndexFlat)
        and ivf_index.by_residual
        and (ivf_index.d, ivf_index.ntotal) == (index.d, index.ntotal)
        and _is_half_precision(index.refine_index, index)
    )
