"""How the service's threads are set up."""

import logging
import os
import threading
from collections.abc import Callable

import faiss

logger = logging.getLogger(__name__)

_LOWEST = 19  # nice; on Linux it is a thread's own


def one_core_each() -> None:
    """One core for a search of the calling thread, where faiss would take all: requests are what runs side by side."""
    faiss.omp_set_num_threads(1)


def give_way() -> None:
    """Likewise, and only when no other thread wants the core."""
    one_core_each()
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST)
    except OSError:
        logger.debug("%s runs at the usual priority", threading.current_thread().name)


def start(name: str, work: Callable[[], None]) -> None:
    """Do what can wait in a daemon thread that gives way."""
    threading.Thread(target=_run, args=(name, work), name=name, daemon=True).start()


def _run(name: str, work: Callable[[], None]) -> None:
    give_way()
    try:
        work()
    except Exception:
        logger.exception("%s ended by a mistake of ours", name)
