"""Follows the store's `CURRENT`, so that publishing from another process is enough."""

import logging
import math
import time
from collections.abc import Callable
from threading import Event

from vecall.errors import ReleaseRefused, VecallError
from vecall.live.live_index import LiveIndex
from vecall.release.store import Current, Store

logger = logging.getLogger(__name__)

_AGAIN = 30.0  # seconds: memory may be free by then, or the disk work


class Watcher:
    """Goes over to what becomes current. A damaged one is not tried again until `CURRENT` says something else.

    Args:
        store: whose `CURRENT` is looked at.
        live: what goes over.
        seconds: between two looks.
        went: told of each attempt whether it succeeded.
        looked: called after each look.
    """

    def __init__(
        self,
        store: Store,
        live: LiveIndex,
        seconds: float,
        went: Callable[[bool], None],
        looked: Callable[[], None],
    ) -> None:
        self._store, self._live, self._seconds, self._went, self._looked = store, live, seconds, went, looked
        self._refused: Current | None = None
        self._not_before = 0.0
        self._ended = Event()
        self.problem: str | None = None

    def run(self) -> None:
        """Look, until `end`."""
        while not self._ended.wait(self._seconds):
            try:
                self.look()
                self._looked()
            except Exception:
                logger.exception("a mistake of ours; it is looked again")

    def end(self) -> None:
        """Let `run` return."""
        self._ended.set()

    def look(self) -> None:
        """Go over to the current release, if it is another than the one served."""
        current: Current | None = None
        try:
            current = self._store.current()
            if current == self._refused and time.monotonic() < self._not_before:
                return
            began = time.perf_counter()
            name = self._live.switch_to_current()
        except (VecallError, OSError) as error:
            if str(error) != self.problem:
                logger.warning("the store's current release is not gone over to: %s", error)
                self._went(False)
            self._refused, self.problem = current, str(error)
            self._not_before = math.inf if isinstance(error, ReleaseRefused) else time.monotonic() + _AGAIN
            return
        self._refused = self.problem = None
        if name is not None:
            logger.info("went over to release %s in %.2f s", name, time.perf_counter() - began)
            self._went(True)
