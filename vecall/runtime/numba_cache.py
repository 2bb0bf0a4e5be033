"""Compilation of numba kernels, kept in numba's cache where a directory for it is writable.

Two processes that compile the same kernel for different types at the same time would give both the same file name in
numba's cache: the index of one would lead to the machine code of the other, for good. So one at a time reads or writes
the cache of a directory.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import numba
from numba.core.errors import NumbaError


def compile_cached(**options: Any) -> Callable[[Callable[..., Any]], Any]:  # noqa: ANN401 - numba's have no type
    """Return a decorator that compiles a kernel which releases the GIL.

    Without a cache where neither the package's nor the user's directory is writable.

    Args:
        options: Further options of `numba.njit`.
    """

    def compile_kernel(function: Callable[..., Any]) -> Any:  # noqa: ANN401
        try:
            kernel = numba.njit(nogil=True, cache=True, **options)(function)
        except (RuntimeError, NumbaError):
            return numba.njit(nogil=True, **options)(function)
        _lock_cache(kernel)
        return kernel

    return compile_kernel


def _lock_cache(kernel: Any) -> None:  # noqa: ANN401
    """Make a kernel lock the directory of its cache while it reads or writes there; numba has no public hook for it."""
    cache = kernel._cache  # noqa: SLF001
    for name in ("load", "save"):
        setattr(cache._cache_file, name, _make_exclusive(getattr(cache._cache_file, name), cache.cache_path))  # noqa: SLF001


def _make_exclusive(access: Callable[..., Any], directory: str) -> Callable[..., Any]:
    @wraps(access)
    def access_locked(*args: Any) -> Any:  # noqa: ANN401
        with _hold_directory(directory):
            return access(*args)

    return access_locked


@contextmanager
def _hold_directory(directory: str) -> Iterator[None]:
    """Hold the directory's lock; nothing where there is none, see `_lock_directory`."""
    descriptor = _lock_directory(directory)
    try:
        yield
    finally:
        if descriptor is not None:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # not only closed: a child process may have a copy of the descriptor
            os.close(descriptor)


def _lock_directory(directory: str) -> int | None:
    """Return the descriptor of the locked directory; None if it is not readable, or the file system has no locks."""
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
