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

from vecall.errors import Locked, StoreError, VecallError
from vecall.live.snapshot import Snapshot
from vecall.release.file_lock import hold
from vecall.release.store import Store

logger = logging.getLogger(__name__)

_DELTA_FROM = 20_000  # items; below, a request scans them faster than it could gain by a compaction
_TOMBSTONES_FROM = 100  # rows; a tiny base is scanned anyway
_TOMBSTONE_SHARE = 0.1  # of the base; beyond, searches of the index lose too much to what is gone
_PATIENCE = 10.0  # seconds for the child to end when it is told to
_PR_SET_PDEATHSIG = 1  # prctl(2)
_POOLS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS", "NUMBA_NUM_THREADS")


def is_due(*, held: int, tombstones: int, base: int, arriving: float, delta_max: int) -> bool:
    """Whether to compact.

    Args:
        held: items beside the base, deleted ones among them.
        tombstones: rows of the base that are deleted or replaced.
        base: N.
        arriving: operations that arrive while a compaction runs: with fewer changes than that, one would follow
            upon the other.
        delta_max: `held` may not be more. A compaction starts at half of it at the latest.
    """
    enough = min(max(_DELTA_FROM, arriving), delta_max / 2)
    return held >= enough or tombstones >= max(_TOMBSTONE_SHARE * base, _TOMBSTONES_FROM)


class Compactor:
    """Runs `vecall compact` in a fresh interpreter, one at a time.

    Args:
        store: the store's folder.
        adopt: called with the names of the base and of the release that was made of it.
        delta_max: see `is_due`.
        turns: a file of processes that write side by side, of which one compacts at a time; None: there are no others.
    """

    def __init__(
        self, store: Path, adopt: Callable[[str, str], None], delta_max: int, turns: Path | None = None
    ) -> None:
        self._lock_file = None if turns is None else turns.with_name("compaction.lock")
        self._store, self._adopt, self._delta_max = store.absolute(), adopt, delta_max
        self._seconds = 0.0  # that the last compaction took
        self._since = (time.monotonic(), 0)  # from when on arrivals are counted, and the operation then
        self._not_below = 0.0  # changes that there must be, after one failed
        self._lock = Lock()  # of what follows
        self._closed = False
        self._child: subprocess.Popen[str] | None = None
        self._thread: Thread | None = None

    def consider(self, view: Snapshot) -> None:
        """Start a compaction if one is due and none runs. Call it after each write."""
        if self._thread is not None and self._thread.is_alive():
            return
        began, seq = self._since
        if seq == 0:
            self._since = (time.monotonic(), view.seq)
        arriving = self._seconds * (view.seq - seq) / max(time.monotonic() - began, 1.0)
        base, changes = view.release.index.size, view.delta.held + view.tombstones
        due = is_due(
            held=view.delta.held,
            tombstones=view.tombstones,
            base=base,
            arriving=arriving,
            delta_max=self._delta_max,
        )
        if due and changes >= self._not_below:
            self._thread = Thread(
                target=self._run, args=(view.release.name, view.seq, changes), name="vecall-compaction", daemon=True
            )
            self._thread.start()

    def close(self) -> None:
        """End a compaction that runs; what it has written so far is swept away by the store's next draft."""
        with self._lock:
            self._closed = True
            child = self._child
        if child is not None and child.poll() is None:
            child.terminate()
            try:
                child.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                child.kill()
        if self._thread is not None:
            self._thread.join()

    def _run(self, base: str, seq: int, changes: int) -> None:
        try:
            with ExitStack() as held:
                if self._lock_file is None or self._is_ours(held, self._lock_file, base):
                    self._compact_and_adopt(base, seq, changes)
        except (VecallError, OSError, subprocess.SubprocessError, ValueError) as error:
            if not self._closed:
                logger.warning("compaction of release %s failed, and waits for more changes: %s", base, error)

    def _is_ours(self, held: ExitStack, lock_file: Path, base: str) -> bool:
        """Whether no other process compacts the base, or has; all follow what it makes."""
        try:
            held.enter_context(hold(lock_file, timeout=0))
        except Locked:
            return False
        current = Store.open(self._store).find_current()
        return current is None or current.release == base

    def _compact_and_adopt(self, base: str, seq: int, changes: int) -> None:
        began = time.monotonic()
        self._not_below = 1.1 * changes + 1  # should it fail
        logger.info("compaction of release %s starts, with %d changes", base, changes)
        made = self._compact(base)
        self._seconds, self._since = time.monotonic() - began, (began, seq)
        if not self._closed:
            self._adopt(base, made)
        self._not_below = 0.0

    def _compact(self, base: str) -> str:
        """Name of the release that was made."""
        command = [sys.executable, "-m", "vecall", "compact", "--store", str(self._store), "--release", base]
        with self._lock:
            if self._closed:
                raise StoreError("closed")
            self._child = subprocess.Popen(  # noqa: S603 - our own interpreter and arguments
                [*command, "--no-activate", "--json", "--ends-with-parent"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | dict.fromkeys(_POOLS, "1"),
            )
        answer, log = self._child.communicate()
        if self._child.returncode != 0:
            raise StoreError(f"exit {self._child.returncode}: {(answer or log).strip()[-500:]}")
        return str(json.loads(answer)["release"])


def end_with_parent() -> None:
    """Let this process end when the one that started it does, be it killed: nobody would take what it makes."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
