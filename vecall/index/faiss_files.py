"""Reading and writing faiss indexes as files, and checks of what they hold."""

from pathlib import Path
from typing import Any

import faiss as typed_faiss

from vecall.errors import InvalidReleaseError, StoreError

faiss: Any = typed_faiss  # its type stubs lack half of what is used here

INDEX_FILE = "index.faiss"


def write_faiss_index(index: Any, path: Path) -> None:  # noqa: ANN401 - a faiss object
    """Write a faiss index through a Python file: faiss's own writer does not report the loss of the last bytes.

    Raises:
        StoreError: the file cannot be written.
    """
    try:
        with path.open("wb") as file:
            faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))
    except (OSError, RuntimeError) as error:
        raise StoreError(
            f"{path} cannot be written: {error}; check that its directory exists and has free space"
        ) from error


def read_faiss_index(path: Path, *, mapped: bool) -> Any:  # noqa: ANN401 - a faiss object
    """Read a faiss index of any structure. Check its sha256 first: faiss does not detect every kind of damage.

    Args:
        path: the file.
        mapped: whether the vectors, and the links of a graph, stay in the file, which is mapped into memory: processes
            on one machine then share them. Inverted lists are read into memory of the process anyway.

    Raises:
        InvalidReleaseError: the file is missing, or holds no faiss index.
    """
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mapped else 0)
    except RuntimeError as error:
        raise InvalidReleaseError(
            f"{path} is not a readable faiss index: {error}; publish the release again", file=path.name
        ) from error


def make_structure_error(path: Path, index: Any, expected: str) -> InvalidReleaseError:  # noqa: ANN401 - as above
    """Make the error about a file that holds another faiss index than expected, such as "an HNSW index"."""
    return InvalidReleaseError(
        f"{path} holds a faiss {type(index).__name__}; expected {expected} as vecall builds it, in half precision by "
        "inner product: publish the release again",
        file=path.name,
    )


def is_half_precision(storage: Any, index: Any) -> bool:  # noqa: ANN401 - as above
    """Whether `storage` holds all vectors of `index` in half precision, and both use the inner product."""
    flat = faiss.downcast_index(storage)
    return (
        isinstance(flat, faiss.IndexScalarQuantizer)
        and flat.sq.qtype == faiss.ScalarQuantizer.QT_fp16
        and flat.metric_type == index.metric_type == faiss.METRIC_INNER_PRODUCT
        and flat.ntotal == index.ntotal
        and flat.codes.size() == 2 * flat.d * flat.ntotal
    )
