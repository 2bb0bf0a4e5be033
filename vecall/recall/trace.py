"""An answer to a query together with what led to it: for metrics, evaluation, ranking and the explorer."""

from collections.abc import Mapping
from dataclasses import dataclass

from vecall.live.snapshot import Snapshot
from vecall.recall.candidate_set import CandidateSet
from vecall.recall.channel_search import ChannelSearchResult
from vecall.recall.filters import FilterMask
from vecall.recall.query import Recalled
from vecall.recall.resolve import ResolvedQuery

STAGES = ("encode", "plan", "search", "merge")


@dataclass(frozen=True)
class RecallTrace:
    """An answer together with the intermediate results that led to it.

    Attributes:
        snapshot: What was searched.
        resolved_query: User vector and excluded rows.
        filter_mask: Items that pass `where`; None if the query has no conditions.
        candidates: Items that might have been answers.
        search_result: Rows of the snapshot, and what each channel contributed.
        answer: The answer.
        stage_ms: Milliseconds by stage, see `STAGES`.
    """

    snapshot: Snapshot
    resolved_query: ResolvedQuery
    filter_mask: FilterMask | None
    candidates: CandidateSet
    search_result: ChannelSearchResult
    answer: Recalled
    stage_ms: Mapping[str, float]
