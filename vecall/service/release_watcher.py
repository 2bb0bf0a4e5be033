"""Follows the store's `CURRENT` file, so that a release published by another process is served."""

import errno
import logging
import math
import time
from collections.abc import Callable
from threading import Event

from vecall.errors import InvalidReleaseError, VecallError
from vecall.live.live_index import LiveIndex
from vecall.release.current_pointer import CurrentPointer
from vecall.release.store import Store

logger = logging.getLogger(__name__)

_PASSING_ERRORS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)
_RETRY_SECONDS = 30.0  # after a failed switch, for example for lack of memory or a read error


class ReleaseWatcher:
    """Polls the store and switches to its current release. A damaged release is not retried until `CURRENT` changes.

    Args:
        store: whose `CURRENT` is polled.
        live_index: the index that is switched to the store's current release.
        poll_seconds: between two polls.
        on_switch: called with True after each switch, and with False if switching fails with a new error; a retry
            that fails with the same error does not call it.
        on_poll: called after each poll.

    Attributes:
        switch_error: why the current release is not the served one; None if it is.
    """

    def __init__(
        self,
        store: Store,
        live_index: LiveIndex,
        poll_seconds: float,
        *,
        on_switch: Callable[[bool], None],
        on_poll: Callable[[], None],
    ) -> None:
        self._store, self._live_index, self._poll_seconds = store, live_index, poll_seconds
        self._on_switch, self._on_poll = on_switch, on_poll
        self._rejected_release: CurrentPointer | None = None
        self._retry_at = 0.0
        self._stop_event = Event()
        self.switch_error: str | None = None

    def run(self) -> None:
        """Poll until `stop`."""
        while not self._stop_event.wait(self._poll_seconds):
            try:
                self.poll()
                self._on_poll()
            except Exception:
                logger.exception("internal error; polling goes on")

    def stop(self) -> None:
        """Let `run` return."""
        self._stop_event.set()

    def poll(self) -> None:
        """Switch to the store's current release, if another one is served."""
        current: CurrentPointer | None = None
        start = time.perf_counter()
        try:
            current = self._store.get_current()
            if current == self._rejected_release and time.monotonic() < self._retry_at:
                return
            name = self._live_index.switch_to_current()
        except (VecallError, OSError, MemoryError) as error:
            text = str(error) or "out of memory"  # a MemoryError may have no text
            if text != self.switch_error:
                logger.warning("cannot switch to the current release: %s", text)
                self._on_switch(False)
            self._rejected_release, self.switch_error = current, text
            is_final = isinstance(error, InvalidReleaseError) and not _is_passing(error.__cause__)
            self._retry_at = math.inf if is_final else time.monotonic() + _RETRY_SECONDS
            return
        self._rejected_release = self.switch_error = None
        if name is not None:
            logger.info("switched to release %s in %.2f s", name, time.perf_counter() - start)
            self._on_switch(True)


def _is_passing(cause: BaseException | None) -> bool:
    """Return whether a file could not be read for want of something that may be there later."""
    return isinstance(cause, OSError) and cause.errno in _PASSING_ERRORS
