"""Long loops that let other threads take the GIL."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

_ITEMS_PER_SLICE = 16  # items, some tenths of a millisecond of work


def iterate_cooperatively(items: Iterable[T]) -> Iterator[T]:
    """Iterate over items and release the GIL after every few of them.

    Otherwise a waiting thread gets the GIL only after CPython's switch interval of 5 ms, several times as long as a
    recall request takes.
    """
    for number, item in enumerate(items, 1):
        if number % _ITEMS_PER_SLICE == 0:
            time.sleep(0)
        yield item
