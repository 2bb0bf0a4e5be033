"""Threads for numba kernels, which release the GIL."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache


def run_on_threads(kernel: Callable[..., object], argument_lists: Sequence[Sequence[object]]) -> None:
    """Call a kernel once with each list of arguments, each call on a thread of its own; the first on this one."""
    futures = [_get_executor(len(argument_lists)).submit(kernel, *arguments) for arguments in argument_lists[1:]]
    kernel(*argument_lists[0])
    for future in futures:
        future.result()


@cache
def _get_executor(n_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_threads, thread_name_prefix="kernels")
