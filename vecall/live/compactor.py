"""Automatic compaction: decide when to start one, and run it in a child process beside the server."""

import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Lock, Thread

from vecall.errors import LockedError, StoreError, VecallError
from vecall.live.snapshot import Snapshot
from vecall.release.file_lock import file_lock
from vecall.release.store import Store

logger = logging.getLogger(__name__)

_MIN_DELTA_ITEMS = 20_000  # a request scans fewer so fast that a compaction would gain nothing
_MIN_TOMBSTONES = 100  # a tiny base is scanned anyway
_MAX_TOMBSTONE_SHARE = 0.1  # of the base; with more, searches of the index waste too much on deleted items
_RETRY_SECONDS = 600.0  # after a compaction that failed another one starts without more changes
_UNSERVED_FILE = "compaction.unserved"  # beside the lock
_MAX_RETRY_SECONDS = 6 * 3_600.0  # the time doubles with every further failure
_TERMINATE_TIMEOUT_SECONDS = 10.0  # from SIGTERM to SIGKILL
_PR_SET_PDEATHSIG = 1  # an option of prctl(2)
_THREAD_COUNT_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS", "NUMBA_NUM_THREADS")


def should_compact(
    *, delta_items: int, tombstones: int, base_items: int, expected_arrivals: float, max_delta_items: int
) -> bool:
    """Return whether there are enough changes for a compaction.

    Args:
        delta_items: number of items in the delta, including deleted ones.
        tombstones: number of base rows that are deleted or replaced.
        base_items: number of items in the base release, N.
        expected_arrivals: number of operations that are expected to arrive while a compaction runs. With fewer changes
            than that, compactions would run without a pause.
        max_delta_items: capacity of the delta. A compaction starts when it is half full at the latest.
    """
    min_delta_items = min(max(_MIN_DELTA_ITEMS, expected_arrivals), max_delta_items / 2)
    return delta_items >= min_delta_items or tombstones >= max(_MAX_TOMBSTONE_SHARE * base_items, _MIN_TOMBSTONES)


class Compactor:
    """Runs `vecall compact` in a child process, one at a time.

    Args:
        store_path: directory of the store.
        on_compacted: called with the names of the base release and of its compaction.
        max_delta_items: capacity of the delta, see `should_compact`.
        write_lock_path: lock file of the processes that write to the store, of which one compacts at a time; None if
            there is only one.
    """

    def __init__(
        self,
        store_path: Path,
        on_compacted: Callable[[str, str], None],
        max_delta_items: int,
        write_lock_path: Path | None = None,
    ) -> None:
        self._lock_path = None if write_lock_path is None else write_lock_path.with_name("compaction.lock")
        self._store_path, self._on_compacted = store_path.absolute(), on_compacted
        self._max_delta_items = max_delta_items
        self._last_duration_seconds = 0.0  # of the last compaction
        self._arrivals_start = (time.monotonic(), 0)  # time and `seq` from which arriving operations are counted
        # After a compaction has failed, the next one needs so many changes, or to be so late.
        self._retry_threshold, self._retry_time = 0.0, 0.0
        self._failure_count = 0  # in a row
        self._unserved = "", ""  # base and name of a compaction that was not switched to
        self._lock = Lock()  # guards the attributes below
        self._is_closed = False
        self._child: subprocess.Popen[str] | None = None
        self._thread: Thread | None = None

    def maybe_start(self, snapshot: Snapshot) -> None:
        """Start a compaction if there are enough changes and none runs. Not thread-safe: call it under `write_lock`."""
        if self._thread is not None and self._thread.is_alive():
            return
        start_time, start_seq = self._arrivals_start
        if start_seq == 0:
            self._arrivals_start = (time.monotonic(), snapshot.seq)
        arrivals_per_second = (snapshot.seq - start_seq) / max(time.monotonic() - start_time, 1.0)
        change_count = snapshot.delta.distinct_id_count + snapshot.tombstone_count
        is_due = should_compact(
            delta_items=snapshot.delta.distinct_id_count,
            tombstones=snapshot.tombstone_count,
            base_items=snapshot.release.vectors.size,
            expected_arrivals=self._last_duration_seconds * arrivals_per_second,
            max_delta_items=self._max_delta_items,
        )
        may_retry = change_count >= self._retry_threshold or time.monotonic() >= self._retry_time
        if is_due and may_retry:
            self._start(snapshot.release.name, snapshot.seq, change_count)

    def _start(self, base_name: str, seq: int, change_count: int) -> None:
        thread = Thread(target=self._run, args=(base_name, seq, change_count), name="vecall-compaction", daemon=True)
        with self._lock:  # `close` joins the thread, which must have started by then
            if not self._is_closed:
                thread.start()
                self._thread = thread

    def close(self) -> None:
        """Stop a running compaction. The store's next draft removes the files that it has written."""
        with self._lock:
            self._is_closed = True
            child, thread = self._child, self._thread
        if child is not None and child.poll() is None:
            child.terminate()
            try:
                child.wait(_TERMINATE_TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
        if thread is not None:
            thread.join()

    def _run(self, base_name: str, seq: int, change_count: int) -> None:
        try:
            with ExitStack() as stack:
                if self._lock_path is None or self._acquire_base(stack, self._lock_path, base_name):
                    self._compact_and_switch(base_name, seq, change_count)
        except Exception as error:
            self._failure_count += 1
            wait_seconds = min(_MAX_RETRY_SECONDS, _RETRY_SECONDS * 2 ** (self._failure_count - 1))
            self._retry_threshold, self._retry_time = 1.1 * change_count + 1, time.monotonic() + wait_seconds
            if self._is_closed:
                return
            is_expected = isinstance(error, (VecallError, OSError, subprocess.SubprocessError, ValueError))
            logger.warning(
                "compaction of release %s failed and waits for more changes: %s",
                base_name, error, exc_info=None if is_expected else error,
            )  # fmt: skip

    def _acquire_base(self, stack: ExitStack, lock_path: Path, base_name: str) -> bool:
        """Acquire the right to compact the base release.

        Returns:
            False if another process is compacting, or has switched to the compaction of the base; this process follows
            the current release in any case.
        """
        try:
            stack.enter_context(file_lock(lock_path, timeout=0))
        except LockedError:
            return False
        current = Store.open(self._store_path).find_current()
        return current is None or current.release == base_name

    def _compact_and_switch(self, base_name: str, seq: int, change_count: int) -> None:
        compacted_name = self._find_unserved(base_name)
        if compacted_name is None:
            start = time.monotonic()
            logger.info("started compaction of release %s with %d changes", base_name, change_count)
            compacted_name = self._run_compaction_process(base_name)
            self._last_duration_seconds, self._arrivals_start = time.monotonic() - start, (start, seq)
            self._remember_unserved(base_name, compacted_name)
        if not self._is_closed:
            self._on_compacted(base_name, compacted_name)
            self._remember_unserved("", "")
        self._retry_threshold, self._failure_count = 0.0, 0

    def _find_unserved(self, base_name: str) -> str | None:
        """Return the compaction of the base that could not be switched to; another one would not fit either."""
        base, name = self._unserved
        if self._lock_path is not None:
            with suppress(FileNotFoundError):
                base, _, name = self._lock_path.with_name(_UNSERVED_FILE).read_text().partition("\n")
        is_there = base == base_name and (self._store_path / "releases" / name).is_dir()  # else it was pruned
        return name if is_there else None

    def _remember_unserved(self, base_name: str, name: str) -> None:
        """Remember a compaction until it is served: for this process, or for all that write to the store."""
        self._unserved = base_name, name
        if self._lock_path is not None:
            self._lock_path.with_name(_UNSERVED_FILE).write_text(f"{base_name}\n{name}")

    def _run_compaction_process(self, base_name: str) -> str:
        """Run `vecall compact` and return the name of the new release.

        Raises:
            StoreError: the command failed, or the compactor is closed.
        """
        command = [sys.executable, "-m", "vecall", "compact", "--store", str(self._store_path), "--release", base_name]
        with self._lock:
            if self._is_closed:
                raise StoreError("the compactor is closed")
            self._child = subprocess.Popen(  # noqa: S603 - our own interpreter and arguments
                [*command, "--no-activate", "--json", "--exit-with-parent"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | dict.fromkeys(_THREAD_COUNT_VARIABLES, "1"),
            )
        output, log = self._child.communicate()
        if self._child.returncode != 0:
            raise StoreError(f"`vecall compact` exited with {self._child.returncode}: {(output or log).strip()[-500:]}")
        return str(json.loads(output)["release"])


def exit_with_parent() -> None:
    """Let the kernel send SIGTERM to this process when the thread that started it ends or is killed (Linux only).

    Without the server nobody would switch to the compacted release.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
