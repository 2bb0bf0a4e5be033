"""Compilation of numba kernels, kept in numba's cache where a directory for it is writable."""

from collections.abc import Callable
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
            return numba.njit(nogil=True, cache=True, **options)(function)
        except (RuntimeError, NumbaError):
            return numba.njit(nogil=True, **options)(function)

    return compile_kernel
