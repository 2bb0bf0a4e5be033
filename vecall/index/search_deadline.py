"""The time by which a search on a server must have answered, set by whoever serves the request."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

NO_DEADLINE = math.inf

_deadline: ContextVar[float] = ContextVar("search deadline", default=NO_DEADLINE)


@contextmanager
def limit_search_time(deadline: float) -> Iterator[None]:
    """Let searches on a server within the context, in this thread, end by a time of the clock `time.perf_counter`.

    A context variable rather than an argument: between the service and the client of a server lie a dozen functions
    that have no other use for it. An enclosing context's earlier deadline stays.
    """
    token = _deadline.set(min(deadline, _deadline.get()))
    try:
        yield
    finally:
        _deadline.reset(token)


def get_remaining_seconds() -> float:
    """Seconds that a search on a server may take, at least 0; infinity without a deadline."""
    return max(0.0, _deadline.get() - time.perf_counter())
