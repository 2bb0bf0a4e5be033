"""Follows the store's `CURRENT`, so that publishing from another process is enough."""

import logging
import time
from collections.abc import Callable
from threading import Event

from vecall.errors import VecallError
from vecall.live.source import Source
from vecall.release.store import Current, Store

logger = logging.getLogger(__name__)


class Watcher:
    """Goes over to what becomes current. What was refused is not tried again until `CURRENT` says something else.

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
        live: Source,
        seconds: float,
        went: Callable[[bool], None],
        looked: Callable[[], None],
    ) -> None:
        self._store, self._live, self._seconds, self._went, self._looked = store, live, seconds, went, looked
        self._refused: Current | None = None
        self._ended = Event()
        self.problem: str | None = None

    def run(self) -> None:
        """Look, until `end`."""
        while not self._ended.wait(self._seconds):
            self.look()
            self._looked()

    def end(self) -> None:
        """Let `run` return."""
        self._ended.set()

    def look(self) -> None:
        """Go over to the current release, if it is another than the one served."""
        current: Current | None = None
        try:
            current = self._store.current()
            if current == self._refused:
                return
            began = time.perf_counter()
            name = self._live.follow()
        except (VecallError, OSError) as error:
            if str(error) != self.problem:
                logger.warning("the store's current release is not gone over to: %s", error)
                self._went(False)
            self._refused, self.problem = current, str(error)
            return
        self._refused = self.problem = None
        if name is not None:
            logger.info("went over to release %s in %.2f s", name, time.perf_counter() - began)
            self._went(True)
