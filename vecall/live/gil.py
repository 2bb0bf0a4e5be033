"""Long loops that let requests of other threads through."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

_ITEMS_PER_SLICE = 16  # items; some tenths of a millisecond


def iterate_cooperatively(items: Iterable[T]) -> Iterator[T]:
    """The same items. Python lets no other thread run for 5 ms at a time, several times as long as a request takes."""
    for number, item in enumerate(items, 1):
        if number % _ITEMS_PER_SLICE == 0:
            time.sleep(0)
        yield item
