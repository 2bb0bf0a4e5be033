"""Unloading of indexes on servers, a while after another release was switched to."""

import logging
from collections.abc import Callable
from threading import Lock, Timer

from vecall.errors import VecallError
from vecall.release.release import Release

logger = logging.getLogger(__name__)

# Times the processes that follow the switch, one after another; also for requests that run, and for a rollback without
# loading.
UNLOAD_GRACE_SECONDS, MAX_UNLOAD_GRACE_SECONDS = 120.0, 600.0


class IndexUnloader:
    """Frees what releases that are no longer served take of their server's memory. Thread-safe.

    A thread exists only from the switch until the release is unloaded.

    Args:
        is_current: whether a release is the store's current one, so that other processes serve it; by name.
    """

    def __init__(self, is_current: Callable[[str], bool]) -> None:
        self._is_current = is_current
        self._lock = Lock()  # held while an index is unloaded, so that `cancel` waits for that
        self._timers: dict[int, tuple[Release, Timer]] = {}  # by the release's `id`

    def schedule(self, release: Release, process_count: int = 1) -> None:
        """Unload and close the index of a release later, if it lies on a server.

        Args:
            release: the release that was served.
            process_count: number of processes that follow the switch.
        """
        if release.remote_index is None:
            return
        self.cancel(release)
        grace_seconds = min(MAX_UNLOAD_GRACE_SECONDS, UNLOAD_GRACE_SECONDS * process_count)
        timer = Timer(grace_seconds, self._unload, (release,))
        timer.name, timer.daemon = "vecall-unload", True
        with self._lock:
            self._timers[id(release)] = release, timer
        timer.start()

    def cancel(self, release: Release) -> None:
        """Keep an index loaded, since its release is to be served again; if it is being unloaded, wait for the end."""
        with self._lock:
            _, timer = self._timers.pop(id(release), (release, None))
        if timer is not None:
            timer.cancel()

    def close(self) -> None:
        """Close what is still to be unloaded; it stays in the server's memory, as other processes may serve it."""
        with self._lock:
            timers, self._timers = self._timers, {}
        for release, timer in timers.values():
            timer.cancel()
            timer.join()
            release.close()

    def _unload(self, release: Release) -> None:
        with self._lock:
            if self._timers.pop(id(release), None) is None or release.remote_index is None:
                return
            try:
                if not self._is_current(release.name):
                    release.remote_index.unload()
                    logger.info("release %s was taken out of the memory of its engine's server", release.name)
            except VecallError as error:
                logger.warning("release %s stays in the memory of its engine's server: %s", release.name, error)
            release.close()
