"""How long rankings take, to tell whether one more would end in time."""

from collections import deque
from statistics import median
from threading import Lock

from vecall.ranking.ranker import NamedRanker

_WINDOW_SIZE = 16  # latest rankings


class RankingTimer:
    """Median time of the latest rankings by the same ranker, of whatever numbers of candidates. Thread-safe."""

    def __init__(self) -> None:
        self._ranker: NamedRanker | None = None
        self._seconds: deque[float] = deque(maxlen=_WINDOW_SIZE)
        self._lock = Lock()

    def fits(self, ranker: NamedRanker, seconds: float) -> bool:
        """Return whether a ranking is expected to take at most so many seconds; true while nothing is known of it.

        Each "no" forgets the oldest of the times: after a slow minute the ranker is tried again.
        """
        with self._lock:
            if self._ranker is not ranker or not self._seconds or median(self._seconds) <= seconds:
                return True
            self._seconds.popleft()
            return False

    def record(self, ranker: NamedRanker, seconds: float) -> None:
        """Record a ranking that succeeded."""
        with self._lock:
            if self._ranker is not ranker:
                self._ranker = ranker
                self._seconds.clear()
            self._seconds.append(seconds)
