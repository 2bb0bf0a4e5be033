"""What a channel is: a function from a query to scored rows."""

from dataclasses import dataclass
from typing import Protocol

from vecall.live.snapshot import Snapshot
from vecall.recall.candidate_set import CandidateSet
from vecall.recall.resolve import ResolvedQuery
from vecall.recall.result_order import ScoredRows
from vecall.recall.scan_limiter import UNLIMITED_SCANS, ScanLimiter


@dataclass(frozen=True)
class ChannelQuery:
    """What every channel is asked.

    Attributes:
        snapshot: What is searched.
        resolved_query: User vector, history and features.
        candidates: Items that may be answers.
        scan_limiter: Limits the large exact scans that run at once.
    """

    snapshot: Snapshot
    resolved_query: ResolvedQuery
    candidates: CandidateSet
    scan_limiter: ScanLimiter = UNLIMITED_SCANS


class Channel(Protocol):
    """Recalls items in one way."""

    def __call__(self, query: ChannelQuery, n: int) -> ScoredRows:
        """Return at most n distinct eligible rows of the snapshot, score descending, then id ascending.

        Args:
            query: The query.
            n: At least 1. Fewer rows are returned where the channel has no more.
        """
        ...
