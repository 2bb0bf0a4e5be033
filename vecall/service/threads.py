"""How the service's threads are set up.

None gets a lower priority: one that is not let run while it holds Python's lock would hold up all others. What can wait
rests in between instead.
"""

import logging
import sys
import threading
from collections.abc import Callable

import faiss

_SWITCH_INTERVAL_SECONDS = 0.0005  # seconds

logger = logging.getLogger(__name__)


def limit_faiss_to_one_thread() -> None:
    """One core for a search of the calling thread, where faiss would take all: requests are what runs side by side."""
    faiss.omp_set_num_threads(1)


def reduce_gil_switch_interval() -> None:
    """Let Python go from one thread to another sooner than after 5 ms: a recall asks for it back some ten times."""
    sys.setswitchinterval(_SWITCH_INTERVAL_SECONDS)


def start_daemon_thread(name: str, work: Callable[[], None]) -> None:
    """Do what goes on beside requests, in a daemon thread."""
    threading.Thread(target=_run_logging_errors, args=(name, work), name=name, daemon=True).start()


def _run_logging_errors(name: str, work: Callable[[], None]) -> None:
    limit_faiss_to_one_thread()
    try:
        work()
    except Exception:
        logger.exception("%s ended by a mistake of ours", name)
