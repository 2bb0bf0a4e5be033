"""Several worker processes on one port; a supervisor starts them and restarts those that die.

The workers share what is mapped of a release's files, and have the rest each in its own memory. Any of them may write,
one at a time; before each recall a worker applies what the others have written, so that it sees every acknowledged
write. The kernel spreads connections over them (SO_REUSEPORT).
"""

import logging
import os
import signal
import socket
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

import uvicorn

from vecall.errors import ConfigError, StoreError, VecallError
from vecall.release.file_lock import file_lock
from vecall.release.store import Store
from vecall.runtime.signals import treat_sighup_as_sigterm
from vecall.service.app import create_app
from vecall.service.auth import ApiKeys
from vecall.service.execution import start_daemon_thread
from vecall.service.host_names import format_url
from vecall.service.metrics.multiprocess import WorkerPeers
from vecall.service.recall_service import RecallService
from vecall.service.server_config import bind_socket, build_uvicorn_config, configure_json_logging
from vecall.service.settings import ServeSettings

logger = logging.getLogger(__name__)

_STARTED_MARKER = "started"  # file that exists once a worker has opened the store; from then on dead ones are restarted
_POLL_SECONDS, _RESTART_DELAY_SECONDS, _KILL_AFTER_SECONDS = 1.0, 2.0, 10.0


def run_workers(store_path: Path, settings: ServeSettings, api_keys: ApiKeys, *, verbose: bool) -> None:
    """Serve a store by `settings.workers` processes until SIGTERM or SIGINT.

    Raises:
        ConfigError: the port is taken.
        StoreError, InvalidReleaseError: there is no such store or current release, or the workers cannot serve it.
        LockedError: `writable`, and another process writes.
    """
    store = Store.open(store_path)
    store.get_current()  # reported here rather than by each worker
    with ExitStack() as resources:
        writer_lock = None
        if settings.writable:
            lock = file_lock(store.path / "writer.lock", timeout=0, inheritable=True)
            writer_lock = resources.enter_context(lock)
        directory = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="vecall-")))
        port = resources.enter_context(_reserve_port(settings.host, settings.port)).getsockname()[1]
        url = format_url(settings.host, port)
        logger.info("starting %d workers on %s", settings.workers, url)
        context = _WorkerContext(directory, os.getpid(), _InheritedFd(writer_lock))
        worker_settings = settings.model_copy(update={"port": port})
        worker_target = partial(_worker_main, store_path.absolute(), worker_settings, api_keys, verbose, context)
        _Supervisor(settings, directory, worker_target, url).run()


class _InheritedFd:
    """A file descriptor that pickling duplicates into a spawned worker; each duplicate keeps the file's lock held."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def __reduce__(self) -> tuple[Any, ...]:
        return _InheritedFd._from_duplicate, (None if self._fd is None else DupFd(self._fd),)

    @staticmethod
    def _from_duplicate(duplicate: Any) -> "_InheritedFd":  # noqa: ANN401 - multiprocessing's own type
        return _InheritedFd(None if duplicate is None else duplicate.detach())


@dataclass(frozen=True)
class _WorkerContext:
    """What the workers share.

    Attributes:
        directory: temporary directory that the workers share; not the store.
        supervisor_pid: process id of the supervisor.
        writer_lock: the store's `writer.lock`, held until the last worker has ended.
    """

    directory: Path
    supervisor_pid: int
    writer_lock: _InheritedFd


class _Supervisor:
    """Starts the workers and restarts those that die."""

    def __init__(self, settings: ServeSettings, directory: Path, worker_target: partial[None], url: str) -> None:
        self._settings, self._directory, self._worker_target, self._url = settings, directory, worker_target, url
        self._is_stopping = self._has_started = False
        self._workers: dict[int, SpawnProcess] = {}

    def run(self) -> None:
        """Supervise until a signal arrives."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle_signal)
        try:
            for worker_id in range(self._settings.workers):
                self._start_worker(worker_id)
            while not self._is_stopping:
                wait([worker.sentinel for worker in self._workers.values()], timeout=_POLL_SECONDS)
                self._check_started()
                self._restart_dead_workers()
        finally:
            self._stop_workers()

    def _handle_signal(self, *_: object) -> None:
        self._is_stopping = True

    def _start_worker(self, worker_id: int) -> None:
        worker = get_context("spawn").Process(target=self._worker_target, args=(worker_id,), name=f"vecall-{worker_id}")
        resource_tracker.ensure_running()  # else `start` starts it, and lifts the mask
        # A worker inherits the mask for good: Ctrl-C, which reaches all processes, is for this one, which ends them.
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            worker.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)
        self._workers[worker_id] = worker  # not before: one that could not be started cannot be waited for

    def _check_started(self) -> bool:
        """Whether a worker has ever opened the store; remembered, since cleaners of old files may remove the marker."""
        if not self._has_started and (self._directory / _STARTED_MARKER).exists():
            self._has_started = True
            logger.info("running on %s", self._url)
        return self._has_started

    def _restart_dead_workers(self) -> None:
        for worker_id, worker in list(self._workers.items()):
            if worker.is_alive() or self._is_stopping:
                continue
            if not self._check_started():
                raise StoreError(f"worker {worker_id} {self._describe_failure(worker_id, worker.exitcode)}")
            logger.error("worker %d exited with status %s; restarting it", worker_id, worker.exitcode)
            time.sleep(_RESTART_DELAY_SECONDS)
            try:
                self._start_worker(worker_id)
            except OSError:
                logger.exception("worker %d could not be started; trying again", worker_id)

    def _describe_failure(self, worker_id: int, exit_code: int | None) -> str:
        """Say why a worker has ended before any served."""
        if exit_code is not None and exit_code < 0:
            return (
                f"was killed by {signal.Signals(-exit_code).name} while it started, perhaps by the system for lack of "
                "memory; free some, or start fewer --workers"
            )
        with suppress(OSError):
            return f"cannot serve: {_get_error_path(self._directory, worker_id).read_text(encoding='utf-8')}"
        return "cannot serve; see the log"

    def _stop_workers(self) -> None:
        for worker in self._workers.values():
            worker.terminate()  # it drains its connections
        deadline = time.monotonic() + self._settings.drain_seconds + _KILL_AFTER_SECONDS
        for worker in self._workers.values():
            worker.join(max(0.0, deadline - time.monotonic()))
            worker.kill()
            worker.join()


def _worker_main(
    store_path: Path, settings: ServeSettings, api_keys: ApiKeys, verbose: bool, context: _WorkerContext, worker_id: int
) -> None:
    """Entry point of a worker process."""
    configure_json_logging(verbose=verbose)
    treat_sighup_as_sigterm()
    grace_seconds = settings.drain_seconds + _KILL_AFTER_SECONDS
    start_daemon_thread("vecall-orphan-check", partial(_exit_when_orphaned, context.supervisor_pid, grace_seconds))
    try:
        listener = bind_socket(settings.host, settings.port, reuse_port=True)
        service = RecallService.open(store_path, settings, peers=WorkerPeers(context.directory, worker_id))
    except VecallError as error:
        logger.critical("worker %d cannot serve: %s", worker_id, error)
        with suppress(OSError):
            _get_error_path(context.directory, worker_id).write_text(str(error), encoding="utf-8")
        sys.exit(1)
    (context.directory / _STARTED_MARKER).touch()
    uvicorn.Server(build_uvicorn_config(create_app(service, api_keys), settings)).run(sockets=[listener])


def _get_error_path(directory: Path, worker_id: int) -> Path:
    """Path of the text of the error for which a worker cannot serve."""
    return directory / f"{worker_id}.error"


def _exit_when_orphaned(supervisor_pid: int, grace_seconds: float) -> None:
    """End a worker whose supervisor has died: nothing would restart it, and it would keep the port."""
    while os.getppid() == supervisor_pid:
        time.sleep(_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace_seconds)
    os._exit(1)


def _reserve_port(host: str, port: int) -> socket.socket:
    """Bind the address for this service's workers, so that no other service shares it.

    Raises:
        ConfigError: the address is taken.
    """
    bind_socket(host, port, reuse_port=False).close()  # fails if somebody listens
    try:
        return bind_socket(host, port, reuse_port=True, reuse_address=False)  # so that nobody else can listen later
    except ConfigError:  # some connections of a former listener are in TIME_WAIT, which only SO_REUSEADDR permits
        return bind_socket(host, port, reuse_port=True)
