"""Search by several channels: each is asked, and their rankings are merged."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vecall.arrays import Rows, Scores
from vecall.channels.merge_plan import VECTORS_ALONE, MergePlan
from vecall.channels.settings import ChannelName
from vecall.errors import EngineUnavailableError, QueryError, VecallError
from vecall.index.row_positions import RowPositions
from vecall.recall.channels.available import CHANNELS, list_available_channels
from vecall.recall.channels.base import ChannelQuery
from vecall.recall.engine_fallback import DEGRADED_ENGINE, check_when_down, fill_by_popularity
from vecall.recall.merging import merge_rankings
from vecall.recall.query import Fallback, Query
from vecall.recall.result_order import ScoredRows, rank_by_score_and_id
from vecall.recall.search import SearchResult, search_candidates
from vecall.release.release import Release

logger = logging.getLogger(__name__)

NO_DEADLINE = float("inf")


@dataclass(frozen=True)
class ChannelSearchResult:
    """Rows by score descending, then id ascending, and what each channel contributed.

    Attributes:
        rows: [at most k] rows of the snapshot.
        scores: Score of each row: the channel's own if one channel was asked, else the fused one.
        vector_result: Result of the search by the user's vector, or of its fallback; None if it was not asked for.
        hits: Rows and scores of each channel that answered, in the order of the plan.
        channel_ms: Milliseconds of each channel that answered, but for popular items that fill the answer.
        degraded: Channels that failed, or were left out because the deadline had passed; "engine" if the server that
            holds the index did not answer.
        fallback: "popular" if popular items fill the answer in place of an engine that did not answer; else None.
    """

    rows: Rows
    scores: Scores
    vector_result: SearchResult | None
    hits: Mapping[ChannelName, ScoredRows]
    channel_ms: Mapping[ChannelName, float]
    degraded: tuple[str, ...] = ()
    fallback: Fallback | None = None

    @cached_property
    def positions_by_channel(self) -> Mapping[ChannelName, Rows]:
        """For each channel that answered [len(rows)] the position of each of `rows` in its hits; -1 without one."""
        found, positions = RowPositions(self.rows), {}
        for name, (channel_rows, _) in self.hits.items():
            targets = found.find(channel_rows)
            aligned = np.full(len(self.rows) + 1, -1)
            aligned[targets] = np.arange(len(targets))  # target -1, of a row that is not here, is the last
            positions[name] = aligned[:-1]
        return positions

    def list_channels(self, positions: Rows) -> list[list[str]]:
        """Return for each position among `rows` the names of the channels that recalled the row."""
        combinations, indices = self.combine_channels(positions)
        return [list(combinations[index]) for index in indices.tolist()]

    def combine_channels(self, positions: Rows) -> tuple[list[list[str]], Rows]:
        """Return the distinct combinations of channels that recalled rows, and the index of each row's combination.

        Args:
            positions: [n] positions among `rows`.
        """
        codes = np.zeros(len(positions), dtype=np.int64)  # a bit per channel
        for bit, channel_positions in enumerate(self.positions_by_channel.values()):
            codes |= (channel_positions[positions] >= 0).astype(np.int64) << bit
        distinct, indices = np.unique(codes, return_inverse=True)
        names = list(self.positions_by_channel)
        return [[name for bit, name in enumerate(names) if code >> bit & 1] for code in distinct.tolist()], indices

    def describe_channels(self) -> dict[str, dict[str, float]]:
        """Return for each channel that answered its number of items, how many no other channel has, and its time."""
        rows = [channel_rows for channel_rows, _ in self.hits.values()]
        distinct, counts = np.unique(np.concatenate(rows), return_counts=True)
        unique_rows = distinct[counts == 1]
        return {
            name: {
                "count": len(channel_rows),
                "unique": int(np.isin(channel_rows, unique_rows).sum()),
                "ms": self.channel_ms.get(name, 0.0),
            }
            for name, (channel_rows, _) in self.hits.items()
        }


def select_plan(release: Release, query: Query) -> MergePlan:
    """Return the channels of a query and how they are merged: the release's own plan if the query names none.

    A query by `vector` that names none is answered by vectors alone.

    Raises:
        QueryError: A name is not that of a channel, or the release has no data for it.
    """
    channels = query.channels
    if channels is None:
        return release.merge_plan if query.vector is None else VECTORS_ALONE
    available = list_available_channels(release)
    for position, name in enumerate(channels):
        if name not in available:
            field = f"channels[{position}]"
            raise QueryError(
                f"{field}: expected one of {list(available)} of this release, got {name!r:.80}", field=field
            )
    return release.merge_plan.select(tuple(name for name in available if name in channels))


def search_channels(
    query: ChannelQuery, plan: MergePlan, k: int, *, deadline: float = NO_DEADLINE
) -> ChannelSearchResult:
    """Ask each channel of a plan for k items, or for more if the plan says so, and merge them.

    Args:
        query: What every channel is asked.
        plan: The channels, and how they are merged.
        k: At least 1.
        deadline: `time.perf_counter` from which on no further channel is asked; the first is asked in any case.

    Raises:
        QueryError, TooManyScansError: As for `search_snapshot`.
        EngineUnavailableError: The server that holds the index does not answer, and nothing may answer instead.
        Exception: What a channel raised, if no channel answered.
    """
    hits: dict[ChannelName, ScoredRows] = {}
    channel_ms: dict[ChannelName, float] = {}
    degraded: list[str] = []
    vector_result: SearchResult | None = None
    channel_k = plan.get_channel_k(k)
    engine_error: EngineUnavailableError | None = None
    for name in plan.channels:
        start = time.perf_counter()
        if name in hits:  # `popular` has answered if it replaced the vector
            continue
        if start >= deadline and hits:
            degraded.append(name)
            continue
        try:
            answering, channel_hits, search_result = _ask(query, name, channel_k)
        except EngineUnavailableError as error:
            engine_error = check_when_down(query, error)
        except VecallError:  # the request is invalid, or too many scans run
            raise
        except Exception:
            if not hits and len(degraded) == len(plan.channels) - 1:
                raise
            logger.exception("channel %s of release %s failed", name, query.snapshot.release.name)
            degraded.append(name)
        else:
            hits[answering], vector_result = channel_hits, search_result or vector_result
            channel_ms[answering] = round((time.perf_counter() - start) * 1e3, 3)
    fallback: Fallback | None = None
    if engine_error is not None:
        plan, popular_result, fallback = fill_by_popularity(query, plan, hits, k, engine_error)
        vector_result = popular_result or vector_result
        degraded.append(DEGRADED_ENGINE)
    rows, scores = _merge(query, plan, hits, k)
    return ChannelSearchResult(rows, scores, vector_result, hits, channel_ms, tuple(degraded), fallback)


def _ask(query: ChannelQuery, name: ChannelName, k: int) -> tuple[ChannelName, ScoredRows, SearchResult | None]:
    """Return the channel that answered, its rows and scores, and of `vector` the result of its search.

    Popular items answer in place of `vector` where there is no vector.
    """
    if name != "vector":
        return name, CHANNELS[name](query, k), None
    matrix = query.resolved_query.query_matrix
    result = search_candidates(query.snapshot, matrix, query.candidates, k, scan_limiter=query.scan_limiter)
    return ("popular" if result.route == "popular" else name), (result.rows, result.scores), result


def _merge(query: ChannelQuery, plan: MergePlan, hits: Mapping[ChannelName, ScoredRows], k: int) -> ScoredRows:
    if len(plan.channels) == 1:
        return next(iter(hits.values()))
    rankings = {name: channel_rows for name, (channel_rows, _) in hits.items()}
    selected = plan.select(tuple(rankings))
    if "popular" in rankings and "popular" not in plan.weights and "vector" in plan.weights:  # in place of the vector
        weights = {**selected.weights, "popular": plan.weights["vector"]}
        selected = selected.model_copy(update={"weights": weights})
    rows, scores = merge_rankings(rankings, selected)
    return rank_by_score_and_id(query.snapshot, rows, scores, k)
