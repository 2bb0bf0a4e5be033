"""Long loops that let requests of other threads through."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

_TURN = 16  # items; some tenths of a millisecond


def in_turns(items: Iterable[Item]) -> Iterator[Item]:
    """The same items. Python lets no other thread run for 5 ms at a time, several times as long as a request takes."""
    for number, item in enumerate(items, 1):
        if number % _TURN == 0:
            time.sleep(0)
        yield item
