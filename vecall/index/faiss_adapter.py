"""What every call into faiss needs: a number of threads, the rows that may be answers, and a file that is whole."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss as typed_faiss

from vecall.index.bitmap import Bitmap

faiss: Any = typed_faiss  # its type stubs lack half of what is used here


@contextmanager
def use_faiss_threads(threads: int | None) -> Iterator[None]:
    """Let faiss use so many threads for this thread's calls; None leaves the number as it is."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads or before)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def build_id_selector(allowed: Bitmap | None) -> Any:  # noqa: ANN401 - an object of faiss
    """The rows as faiss takes them; None where all are allowed."""
    return None if allowed is None else faiss.IDSelectorBitmap(allowed.bits)


def write_faiss_index(index: Any, path: Path) -> None:  # noqa: ANN401 - an object of faiss
    """Write an index to a file of ours: faiss does not tell when the last bytes of its own are lost.

    Raises:
        OSError: the file cannot be written.
    """
    with path.open("wb") as file:
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))
