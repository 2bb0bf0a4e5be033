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
from vecall.release.file_lock import hold
from vecall.release.store import Store
from vecall.service.app import make_app
from vecall.service.auth import Keys
from vecall.service.logs import log_json
from vecall.service.metrics.multiprocess import Siblings
from vecall.service.recall_service import Serving
from vecall.service.server_config import bind, listening
from vecall.service.settings import ServeSettings
from vecall.service.threads import start

logger = logging.getLogger(__name__)

_HAS_SERVED = "served"  # a file that is there once a process could open the store; from then on all are tried again
_LOOK, _PAUSE, _KILLED_AFTER = 1.0, 2.0, 10.0  # seconds


def run_together(store: Path, settings: ServeSettings, keys: Keys, *, verbose: bool) -> None:
    """Serve a store by `settings.processes` processes, until SIGTERM or SIGINT.

    Raises:
        ConfigError: the port cannot be had.
        StoreError, ReleaseRefused: there is no such store or current release, or the processes cannot serve it.
        Locked: `writable`, and another process writes.
    """
    opened = Store.open(store)
    opened.current()  # told here, and not by each process
    with ExitStack() as held:
        writer = (
            held.enter_context(hold(opened.path / "writer.lock", timeout=0, shared=True)) if settings.writable else None
        )
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="vecall-")))
        port = held.enter_context(_reserved(settings.host, settings.port)).getsockname()[1]
        there = settings.model_copy(update={"port": port})
        logger.info("%d processes, running on http://%s:%d", settings.processes, settings.host, port)
        ours = _Ours(folder, os.getpid(), _Descriptor(writer))
        _Parent(settings, folder, partial(_serve, store.absolute(), there, keys, verbose, ours)).run()


class _Descriptor:
    """A descriptor that a process which is started gets a copy of: with it, it holds the parent's lock too."""

    def __init__(self, number: int | None) -> None:
        self._number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _Descriptor._copied, (None if self._number is None else DupFd(self._number),)

    @staticmethod
    def _copied(copy: Any) -> "_Descriptor":  # noqa: ANN401 - multiprocessing's
        return _Descriptor(None if copy is None else copy.detach())


@dataclass(frozen=True)
class _Ours:
    """What the processes have of their parent.

    Attributes:
        folder: of theirs alone.
        parent: its process id.
        writer: the store's `writer.lock`, held until the last of them has ended.
    """

    folder: Path
    parent: int
    writer: _Descriptor


class _Parent:
    """Starts the processes and sees to it that they are there."""

    def __init__(self, settings: ServeSettings, folder: Path, serve: partial[None]) -> None:
        self._settings, self._folder, self._serve = settings, folder, serve
        self._ended = False
        self._running: dict[int, SpawnProcess] = {}

    def run(self) -> None:
        """Until a signal."""
        for one in (signal.SIGTERM, signal.SIGINT):
            signal.signal(one, self._told_to_end)
        try:
            for number in range(self._settings.processes):
                self._start(number)
            while not self._ended:
                wait([one.sentinel for one in self._running.values()], timeout=_LOOK)
                self._see_to_them()
        finally:
            self._end()

    def _told_to_end(self, *_: object) -> None:
        self._ended = True

    def _start(self, number: int) -> None:
        self._running[number] = get_context("spawn").Process(
            target=self._serve, args=(number,), name=f"vecall-{number}"
        )
        self._running[number].start()

    def _see_to_them(self) -> None:
        for number, one in list(self._running.items()):
            if one.is_alive() or self._ended:
                continue
            if not (self._folder / _HAS_SERVED).exists():
                raise StoreError(f"process {number} cannot serve; the log says why")
            logger.error("process %d has ended with status %s and is started again", number, one.exitcode)
            time.sleep(_PAUSE)
            try:
                self._start(number)
            except OSError:
                logger.exception("process %d could not be started, and will be tried again", number)

    def _end(self) -> None:
        for one in self._running.values():
            one.terminate()  # upon which it drains
        ends = time.monotonic() + self._settings.drain_seconds + _KILLED_AFTER
        for one in self._running.values():
            one.join(max(0.0, ends - time.monotonic()))
            one.kill()
            one.join()


def _serve(store: Path, settings: ServeSettings, keys: Keys, verbose: bool, ours: _Ours, number: int) -> None:
    """One of the processes, from its start to its end."""
    log_json(verbose=verbose)
    start("vecall-parent", partial(_end_with, ours.parent, settings.drain_seconds + _KILLED_AFTER))
    try:
        port = bind(settings.host, settings.port, shared=True)
        serving = Serving.open(store, settings, siblings=Siblings(ours.folder, number))
    except VecallError as error:
        logger.critical("process %d cannot serve: %s", number, error)
        sys.exit(1)
    (ours.folder / _HAS_SERVED).touch()
    server = uvicorn.Server(listening(make_app(serving, keys), settings))
    server.run(sockets=[port])


def _end_with(parent: int, seconds: float) -> None:
    """A process without its parent would be started again by nobody, and would keep the port."""
    while os.getppid() == parent:
        time.sleep(_LOOK)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(seconds)
    os._exit(1)


def _reserved(host: str, port: int) -> socket.socket:
    """The address for these processes, and for none of another store.

    Raises:
        ConfigError: it cannot be had.
    """
    bind(host, port, shared=False).close()  # nobody listens
    try:
        return bind(host, port, shared=True, again=False)  # nor will anybody else begin to
    except ConfigError:  # connections of who listened before are not forgotten yet
        return bind(host, port, shared=True)
