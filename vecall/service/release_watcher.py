"""Follows the store's `CURRENT`, so that publishing from another process is enough."""

import logging
import math
import time
from collections.abc import Callable
from threading import Event

from vecall.errors import InvalidReleaseError, VecallError
from vecall.live.live_index import LiveIndex
from vecall.release.store import CurrentPointer, Store

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 30.0  # seconds: memory may be free by then, or the disk work


class ReleaseWatcher:
    """Goes over to what becomes current. A damaged one is not tried again until `CURRENT` says something else.

    Args:
        store: whose `CURRENT` is looked at.
        live_index: what goes over.
        poll_seconds: between two looks.
        on_switch: told of each attempt whether it succeeded.
        on_poll: called after each look.
    """

    def __init__(
        self,
        store: Store,
        live_index: LiveIndex,
        poll_seconds: float,
        on_switch: Callable[[bool], None],
        on_poll: Callable[[], None],
    ) -> None:
        self._store, self._live_index, self._poll_seconds, self._on_switch, self._on_poll = (
            store,
            live_index,
            poll_seconds,
            on_switch,
            on_poll,
        )
        self._rejected_release: CurrentPointer | None = None
        self._retry_at = 0.0
        self._stop_event = Event()
        self.switch_error: str | None = None

    def run(self) -> None:
        """Look, until `end`."""
        while not self._stop_event.wait(self._poll_seconds):
            try:
                self.poll()
                self._on_poll()
            except Exception:
                logger.exception("a mistake of ours; it is looked again")

    def stop(self) -> None:
        """Let `run` return."""
        self._stop_event.set()

    def poll(self) -> None:
        """Go over to the current release, if it is another than the one served."""
        current: CurrentPointer | None = None
        try:
            current = self._store.get_current()
            if current == self._rejected_release and time.monotonic() < self._retry_at:
                return
            began = time.perf_counter()
            name = self._live_index.switch_to_current()
        except (VecallError, OSError) as error:
            if str(error) != self.switch_error:
                logger.warning("the store's current release is not gone over to: %s", error)
                self._on_switch(False)
            self._rejected_release, self.switch_error = current, str(error)
            self._retry_at = math.inf if isinstance(error, InvalidReleaseError) else time.monotonic() + _RETRY_SECONDS
            return
        self._rejected_release = self.switch_error = None
        if name is not None:
            logger.info("went over to release %s in %.2f s", name, time.perf_counter() - began)
            self._on_switch(True)
