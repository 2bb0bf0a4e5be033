"""Helpers around calls into faiss: thread count, row filter and reliable file writes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss as typed_faiss

from vecall.index.bitmap import Bitmap

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


def write_faiss_index(index: Any, path: Path) -> None:  # noqa: ANN401 - a faiss object
    """Write a faiss index through a Python file: faiss's own writer does not report the loss of the last bytes.

    Raises:
        OSError: the file cannot be written.
    """
    with path.open("wb") as file:
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))
