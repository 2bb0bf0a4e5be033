"""When live changes are compacted into the next release, and the process that does it beside the server."""

import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from threading import Lock, Thread

from vecall.errors import LockedError, StoreError, VecallError
from vecall.live.snapshot import Snapshot
from vecall.release.file_lock import file_lock
from vecall.release.store import Store

logger = logging.getLogger(__name__)

_MIN_DELTA_ITEMS = 20_000  # items; below, a request scans them faster than it could gain by a compaction
_MIN_TOMBSTONES = 100  # rows; a tiny base is scanned anyway
_MAX_TOMBSTONE_SHARE = 0.1  # of the base; beyond, searches of the index lose too much to what is gone
_TERMINATE_TIMEOUT_SECONDS = 10.0  # seconds for the child to end when it is told to
_PR_SET_PDEATHSIG = 1  # prctl(2)
_THREAD_COUNT_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS", "NUMBA_NUM_THREADS")


def should_compact(
    *, delta_items: int, tombstones: int, base_items: int, expected_arrivals: float, max_delta_items: int
) -> bool:
    """Whether to compact.

    Args:
        delta_items: items beside the base, deleted ones among them.
        tombstones: rows of the base that are deleted or replaced.
        base_items: N.
        expected_arrivals: operations that arrive while a compaction runs: with fewer changes than that, one would follow
            upon the other.
        delta_max: `delta_items` may not be more. A compaction starts at half of it at the latest.
    """
    enough = min(max(_MIN_DELTA_ITEMS, expected_arrivals), max_delta_items / 2)
    return delta_items >= enough or tombstones >= max(_MAX_TOMBSTONE_SHARE * base_items, _MIN_TOMBSTONES)


class Compactor:
    """Runs `vecall compact` in a fresh interpreter, one at a time.

    Args:
        store_path: the store's folder.
        on_compacted: called with the names of the base and of the release that was made of it.
        max_delta_items: see `should_compact`.
        write_lock_path: a file of processes that write side by side, of which one compacts at a time; None: there are no others.
    """

    def __init__(
        self,
        store_path: Path,
        on_compacted: Callable[[str, str], None],
        max_delta_items: int,
        write_lock_path: Path | None = None,
    ) -> None:
        self._lock_path = None if write_lock_path is None else write_lock_path.with_name("compaction.lock")
        self._store_path, self._on_compacted, self._max_delta_items = (
            store_path.absolute(),
            on_compacted,
            max_delta_items,
        )
        self._last_duration_seconds = 0.0  # that the last compaction took
        self._arrivals_start = (time.monotonic(), 0)  # from when on arrivals are counted, and the operation then
        self._retry_threshold = 0.0  # changes that there must be, after one failed
        self._lock = Lock()  # of what follows
        self._is_closed = False
        self._child: subprocess.Popen[str] | None = None
        self._thread: Thread | None = None

    def maybe_start(self, snapshot: Snapshot) -> None:
        """Start a compaction if one is due and none runs. Call it after each write."""
        if self._thread is not None and self._thread.is_alive():
            return
        began, seq = self._arrivals_start
        if seq == 0:
            self._arrivals_start = (time.monotonic(), snapshot.seq)
        arriving = self._last_duration_seconds * (snapshot.seq - seq) / max(time.monotonic() - began, 1.0)
        base, changes = snapshot.release.index.size, snapshot.delta.distinct_id_count + snapshot.tombstone_count
        due = should_compact(
            delta_items=snapshot.delta.distinct_id_count,
            tombstones=snapshot.tombstone_count,
            base_items=base,
            expected_arrivals=arriving,
            max_delta_items=self._max_delta_items,
        )
        if due and changes >= self._retry_threshold:
            self._thread = Thread(
                target=self._run,
                args=(snapshot.release.name, snapshot.seq, changes),
                name="vecall-compaction",
                daemon=True,
            )
            self._thread.start()

    def close(self) -> None:
        """End a compaction that runs; what it has written so far is swept away by the store's next draft."""
        with self._lock:
            self._is_closed = True
            child = self._child
        if child is not None and child.poll() is None:
            child.terminate()
            try:
                child.wait(_TERMINATE_TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
        if self._thread is not None:
            self._thread.join()

    def _run(self, base_name: str, seq: int, change_count: int) -> None:
        try:
            with ExitStack() as held:
                if self._lock_path is None or self._acquire_base(held, self._lock_path, base_name):
                    self._compact_and_switch(base_name, seq, change_count)
        except (VecallError, OSError, subprocess.SubprocessError, ValueError) as error:
            if not self._is_closed:
                logger.warning("compaction of release %s failed, and waits for more changes: %s", base_name, error)

    def _acquire_base(self, stack: ExitStack, lock_path: Path, base_name: str) -> bool:
        """Whether no other process compacts the base, or has; all follow what it makes."""
        try:
            stack.enter_context(file_lock(lock_path, timeout=0))
        except LockedError:
            return False
        current = Store.open(self._store_path).find_current()
        return current is None or current.release == base_name

    def _compact_and_switch(self, base_name: str, seq: int, change_count: int) -> None:
        began = time.monotonic()
        self._retry_threshold = 1.1 * change_count + 1  # should it fail
        logger.info("compaction of release %s starts, with %d changes", base_name, change_count)
        made = self._run_compaction_process(base_name)
        self._last_duration_seconds, self._arrivals_start = time.monotonic() - began, (began, seq)
        if not self._is_closed:
            self._on_compacted(base_name, made)
        self._retry_threshold = 0.0

    def _run_compaction_process(self, base_name: str) -> str:
        """Name of the release that was made."""
        command = [sys.executable, "-m", "vecall", "compact", "--store", str(self._store_path), "--release", base_name]
        with self._lock:
            if self._is_closed:
                raise StoreError("closed")
            self._child = subprocess.Popen(  # noqa: S603 - our own interpreter and arguments
                [*command, "--no-activate", "--json", "--ends-with-parent"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | dict.fromkeys(_THREAD_COUNT_VARIABLES, "1"),
            )
        answer, log = self._child.communicate()
        if self._child.returncode != 0:
            raise StoreError(f"exit {self._child.returncode}: {(answer or log).strip()[-500:]}")
        return str(json.loads(answer)["release"])


def exit_with_parent() -> None:
    """Let this process end when the one that started it does, be it killed: nobody would take what it makes."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
