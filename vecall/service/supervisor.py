"""Several processes that answer on one port; a parent starts them, and starts again which one dies.

Each has the store in memory by itself. All of them write, one at a time, and take in before each recall what the others
have written, so that whichever is asked knows all that was acknowledged. The kernel spreads connections over them.
"""

import logging
import os
import signal
import socket
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

import uvicorn

from vecall.errors import ConfigError, StoreError, VecallError
from vecall.release.file_lock import file_lock
from vecall.release.store import Store
from vecall.service.app import create_app
from vecall.service.auth import ApiKeys
from vecall.service.logs import configure_json_logging
from vecall.service.metrics.multiprocess import WorkerPeers
from vecall.service.recall_service import RecallService
from vecall.service.server_config import bind_socket, build_uvicorn_config
from vecall.service.settings import ServeSettings
from vecall.service.threads import start_daemon_thread

logger = logging.getLogger(__name__)

_STARTED_MARKER = "served"  # a file that is there once a process could open the store; from then on all are tried again
_POLL_SECONDS, _RESTART_DELAY_SECONDS, _KILL_AFTER_SECONDS = 1.0, 2.0, 10.0  # seconds


def run_workers(store_path: Path, settings: ServeSettings, api_keys: ApiKeys, *, verbose: bool) -> None:
    """Serve a store by `settings.processes` processes, until SIGTERM or SIGINT.

    Raises:
        ConfigError: the port cannot be had.
        StoreError, ReleaseRefused: there is no such store or current release, or the processes cannot serve it.
        Locked: `writable`, and another process writes.
    """
    opened = Store.open(store_path)
    opened.get_current()  # told here, and not by each process
    with ExitStack() as held:
        writer = (
            held.enter_context(file_lock(opened.path / "writer.lock", timeout=0, inheritable=True))
            if settings.writable
            else None
        )
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="vecall-")))
        port = held.enter_context(_reserve_port(settings.host, settings.port)).getsockname()[1]
        there = settings.model_copy(update={"port": port})
        logger.info("%d processes, running on http://%s:%d", settings.workers, settings.host, port)
        ours = _WorkerContext(folder, os.getpid(), _InheritedFd(writer))
        _Supervisor(
            settings, folder, partial(_worker_main, store_path.absolute(), there, api_keys, verbose, ours)
        ).run()


class _InheritedFd:
    """A descriptor that a process which is started gets a copy of: with it, it holds the parent's lock too."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def __reduce__(self) -> tuple[Any, ...]:
        return _InheritedFd._from_duplicate, (None if self._fd is None else DupFd(self._fd),)

    @staticmethod
    def _from_duplicate(duplicate: Any) -> "_InheritedFd":  # noqa: ANN401 - multiprocessing's
        return _InheritedFd(None if duplicate is None else duplicate.detach())


@dataclass(frozen=True)
class _WorkerContext:
    """What the processes have of their parent.

    Attributes:
        directory: of theirs alone.
        supervisor_pid: its process id.
        writer_lock: the store's `writer.lock`, held until the last of them has ended.
    """

    directory: Path
    supervisor_pid: int
    writer_lock: _InheritedFd


class _Supervisor:
    """Starts the processes and sees to it that they are there."""

    def __init__(self, settings: ServeSettings, directory: Path, worker_target: partial[None]) -> None:
        self._settings, self._directory, self._worker_target = settings, directory, worker_target
        self._is_stopping = False
        self._workers: dict[int, SpawnProcess] = {}

    def run(self) -> None:
        """Until a signal."""
        for one in (signal.SIGTERM, signal.SIGINT):
            signal.signal(one, self._handle_signal)
        try:
            for number in range(self._settings.workers):
                self._start_worker(number)
            while not self._is_stopping:
                wait([one.sentinel for one in self._workers.values()], timeout=_POLL_SECONDS)
                self._restart_dead_workers()
        finally:
            self._stop_workers()

    def _handle_signal(self, *_: object) -> None:
        self._is_stopping = True

    def _start_worker(self, worker_id: int) -> None:
        self._workers[worker_id] = get_context("spawn").Process(
            target=self._worker_target, args=(worker_id,), name=f"vecall-{worker_id}"
        )
        self._workers[worker_id].start()

    def _restart_dead_workers(self) -> None:
        for number, one in list(self._workers.items()):
            if one.is_alive() or self._is_stopping:
                continue
            if not (self._directory / _STARTED_MARKER).exists():
                raise StoreError(f"process {number} cannot serve; the log says why")
            logger.error("process %d has ended with status %s and is started again", number, one.exitcode)
            time.sleep(_RESTART_DELAY_SECONDS)
            try:
                self._start_worker(number)
            except OSError:
                logger.exception("process %d could not be started, and will be tried again", number)

    def _stop_workers(self) -> None:
        for one in self._workers.values():
            one.terminate()  # upon which it drains
        ends = time.monotonic() + self._settings.drain_seconds + _KILL_AFTER_SECONDS
        for one in self._workers.values():
            one.join(max(0.0, ends - time.monotonic()))
            one.kill()
            one.join()


def _worker_main(
    store_path: Path, settings: ServeSettings, api_keys: ApiKeys, verbose: bool, context: _WorkerContext, worker_id: int
) -> None:
    """One of the processes, from its start to its end."""
    configure_json_logging(verbose=verbose)
    start_daemon_thread(
        "vecall-parent",
        partial(_exit_when_orphaned, context.supervisor_pid, settings.drain_seconds + _KILL_AFTER_SECONDS),
    )
    try:
        port = bind_socket(settings.host, settings.port, reuse_port=True)
        serving = RecallService.open(store_path, settings, peers=WorkerPeers(context.directory, worker_id))
    except VecallError as error:
        logger.critical("process %d cannot serve: %s", worker_id, error)
        sys.exit(1)
    (context.directory / _STARTED_MARKER).touch()
    server = uvicorn.Server(build_uvicorn_config(create_app(serving, api_keys), settings))
    server.run(sockets=[port])


def _exit_when_orphaned(supervisor_pid: int, grace_seconds: float) -> None:
    """A process without its parent would be started again by nobody, and would keep the port."""
    while os.getppid() == supervisor_pid:
        time.sleep(_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace_seconds)
    os._exit(1)


def _reserve_port(host: str, port: int) -> socket.socket:
    """The address for these processes, and for none of another store.

    Raises:
        ConfigError: it cannot be had.
    """
    bind_socket(host, port, reuse_port=False).close()  # nobody listens
    try:
        return bind_socket(host, port, reuse_port=True, reuse_address=False)  # nor will anybody else begin to
    except ConfigError:  # connections of who listened before are not forgotten yet
        return bind_socket(host, port, reuse_port=True)
