"""Helpers around calls into faiss: thread count, row filter and flat storage."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import faiss as typed_faiss
import numpy as np

from vecall.arrays import HalfVectors, Vectors
from vecall.index.bitmap import Bitmap
from vecall.index.scan import check_vectors

faiss: Any = typed_faiss  # its type stubs lack half of what is used here


@contextmanager
def use_faiss_threads(threads: int | None) -> Iterator[None]:
    """Set the number of threads that faiss uses for calls from this thread; None leaves it unchanged."""
    previous = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads or previous)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(previous)


def build_id_selector(allowed: Bitmap | None) -> Any:  # noqa: ANN401 - a faiss object
    """Convert a bitmap to a faiss selector; None, which allows all rows, stays None."""
    return None if allowed is None else faiss.IDSelectorBitmap(allowed.bits)


def build_flat_index(vectors: Vectors | HalfVectors) -> Any:  # noqa: ANN401 - a faiss object
    """Copy [N, D] float32 or float16 vectors into a `faiss.IndexScalarQuantizer` in half precision.

    Raises:
        DataError: the array is empty, of a wrong type or shape, or not representable in half precision.
    """
    check_vectors(vectors)
    n, dim = vectors.shape
    flat = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    flat.codes.resize(n * flat.code_size)  # filled below instead of by flat.add: see `round_to_half_precision`
    flat.ntotal = n
    view_flat_vectors(flat)[:] = vectors
    return flat


def view_flat_vectors(flat_index: Any) -> HalfVectors:  # noqa: ANN401 - a faiss object
    """[N, D] the memory of a `faiss.IndexScalarQuantizer` in half precision, which must outlive the array."""
    raw = faiss.rev_swig_ptr(flat_index.codes.data(), flat_index.codes.size())
    half_vectors: HalfVectors = raw.view(np.float16).reshape(flat_index.ntotal, flat_index.d)
    return half_vectors
