"""How the service's threads are set up.

None gets a lower priority: one that is not let run while it holds Python's lock would hold up all others. What can wait
rests in between instead.
"""

import logging
import sys
import threading
from collections.abc import Callable

import faiss

_TURN = 0.0005  # seconds

logger = logging.getLogger(__name__)


def one_core_each() -> None:
    """One core for a search of the calling thread, where faiss would take all: requests are what runs side by side."""
    faiss.omp_set_num_threads(1)


def answer_first() -> None:
    """Let Python go from one thread to another sooner than after 5 ms: a recall asks for it back some ten times."""
    sys.setswitchinterval(_TURN)


def start(name: str, work: Callable[[], None]) -> None:
    """Do what goes on beside requests, in a daemon thread."""
    threading.Thread(target=_run, args=(name, work), name=name, daemon=True).start()


def _run(name: str, work: Callable[[], None]) -> None:
    one_core_each()
    try:
        work()
    except Exception:
        logger.exception("%s ended by a mistake of ours", name)
