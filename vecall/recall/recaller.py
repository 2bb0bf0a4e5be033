"""The recall stage itself: any number of queries, from any number of threads, while items change. No torch."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

import numpy as np
import polars as pl

from vecall.data.casting import to_id_dtype
from vecall.data.id_map import Id
from vecall.live.live_index import MAX_DELTA_ITEMS, LiveIndex
from vecall.live.snapshot import Snapshot
from vecall.recall.filters import FilterCache, FilterMask
from vecall.recall.query import ExecutionPlan, Query, Recalled, parse_id
from vecall.recall.resolve import ResolvedQuery, resolve_query
from vecall.recall.scan_limiter import UNLIMITED_SCANS, ScanLimiter
from vecall.recall.search import SearchResult, search_snapshot
from vecall.release.store import Store
from vecall.runtime.fork_safety import check_not_forked
from vecall.schema import IdType

STAGES = ("encode", "plan", "search", "merge")


def _noop() -> None:
    """Between stages."""


@dataclass(frozen=True)
class RecallTrace:
    """An answer and what it was made of.

    Attributes:
        snapshot: what was searched.
        resolved_query: the query as it was understood.
        filter_mask: what passed `where`; None: there was none.
        search_result: rows of the view.
        answer: the answer.
        stage_ms: milliseconds by stage, see `STAGES`.
    """

    snapshot: Snapshot
    resolved_query: ResolvedQuery
    filter_mask: FilterMask | None
    search_result: SearchResult
    answer: Recalled
    stage_ms: Mapping[str, float]


class Recaller:
    """Answers queries, each from one release and the changes made to it so far. A context manager.

    Args:
        live_index: what is served, and changed.
        scan_limiter: how many large exact scans may run at a time.

    Attributes:
        live_index: what is served, and changed: the methods of its name here, with fuller answers.
    """

    def __init__(self, live_index: LiveIndex, *, scan_limiter: ScanLimiter = UNLIMITED_SCANS) -> None:
        self.live_index = live_index
        self._filter_cache = FilterCache(scan_limiter)
        self._scan_limiter = scan_limiter

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def __reduce__(self) -> NoReturn:
        """A recaller has files, threads and locks of one process."""
        raise TypeError(
            "a Recaller cannot be pickled or copied: give other processes the store's path, and call open_recaller in "
            "each of them"
        )

    def close(self) -> None:
        """Take no more changes, and let another process take them. What only reads has nothing to close."""
        self.live_index.close()

    @property
    def release(self) -> str:
        """Name of the release that answers."""
        return self.live_index.snapshot.release.name

    @property
    def user_id_type(self) -> IdType:
        """Of this release's users; where it has none, ids are taken as text."""
        users = self.live_index.snapshot.release.users
        return "string" if users is None else users.ids.id_type

    def parse_user_id(self, text: str) -> Id:
        """A user id written as text, such as on a command line, in the type that this release's ids have.

        Raises:
            QueryError: ids are integers, and the text is none.
        """
        return parse_id("user_id", text, self.user_id_type)

    def recall(self, query: Query) -> Recalled:
        """The k items that the user most likely wants.

        Returns:
            Exactly k items that pass `where` and are not excluded, or all of them where there are fewer.

        Raises:
            QueryError: the query does not go with this release.
        """
        return self.recall_with_trace(query).answer

    def candidates(self, query: Query) -> pl.DataFrame:
        """The same items as a table for ranking: `id`, `score`, `rank` (from 1), `channel` and the attributes.

        Raises:
            QueryError: the query does not go with this release.
        """
        made = self.recall_with_trace(query)
        view, answer = made.snapshot, made.answer
        channel = "vector" if made.resolved_query.vector is not None else "popular"
        table = pl.DataFrame(
            {
                "id": pl.Series(answer.ids, dtype=to_id_dtype(view.release.item_ids.id_type)),
                "score": pl.Series(answer.scores, dtype=pl.Float32),
                "rank": np.arange(1, len(answer.ids) + 1),
                "channel": pl.Series([channel] * len(answer.ids), dtype=pl.String),
            }
        )
        return table.hstack(view.get_attributes(made.search_result.rows))

    def upsert(self, items: Sequence[Mapping[str, object]], *, partial: bool = False) -> int:
        """Add or replace items, all or none; the next request sees them, and they outlive a crash.

        Args:
            items: `{"id", "fields"}`, or `{"id", "vector", "encoder", "fields"}`: `fields` by column, one that is
                left out is null; `vector` [D] replaces the item tower, made by the encoder of that hash. A release
                without towers has no encoder and takes vectors alone. Of equal ids the last one counts.
            partial: a column that is left out keeps its value, and so does a vector that was given; the items must be
                there. Of equal ids one builds upon the other.

        Returns:
            How many distinct items were taken.

        Raises:
            QueryError: an item is not as it has to be; `field` is such as `items[3].fields.colour`.
            EncoderMismatch: a vector is of another encoder.
            DeltaFull: too many items are new since the release was made; they wait for a compaction.
            JournalFailed: the disk does not take them; nothing has changed.
            StoreError: this recaller was not opened with `writable=True`.
        """
        return self.live_index.upsert(items, partial=partial).accepted

    def delete(self, ids: Sequence[Id]) -> int:
        """Delete items, all or none; no later request returns them.

        Returns:
            How many of them were there.

        Raises:
            QueryError: an id is of the wrong type.
            JournalFailed, StoreError: as for `upsert`.
        """
        return self.live_index.delete(ids).deleted

    def activate(self, name: str) -> str | None:
        """Go over to another release, once it has proved itself; it becomes the store's current one.

        Requests that have begun end with the release they began with. Changes made so far, and meanwhile, are brought
        onto the new one.

        Returns:
            Name of the release that was current before.

        Raises:
            StoreError: there is no such release, or the journal is not its own.
            ReleaseRefused: it is damaged, or answers otherwise than it did when it was published.
        """
        return self.live_index.activate(name)

    def recall_with_trace(self, query: Query, *, check_cancelled: Callable[[], object] = _noop) -> RecallTrace:
        """What `recall` answers, with what it was made of.

        Args:
            query: the request.
            check_cancelled: called between the stages; what it raises ends the request.

        Raises:
            QueryError: the query does not go with this release.
            TooManyScans: it takes a large scan, and as many run as may.
        """
        check_not_forked()
        view = self.live_index.snapshot
        times = [time.perf_counter()]
        ask = resolve_query(query, view)
        times.append(time.perf_counter())
        check_cancelled()
        passing = (
            self._filter_cache.get_mask(query.where, view, check_cancelled=check_cancelled) if query.where else None
        )
        times.append(time.perf_counter())
        check_cancelled()
        found = search_snapshot(view, ask, passing, query.k, scan_limiter=self._scan_limiter)
        times.append(time.perf_counter())
        ids = view.to_ids(found.rows)
        times.append(time.perf_counter())
        ms = {stage: round((end - begin) * 1e3, 3) for stage, (begin, end) in zip(STAGES, pairwise(times), strict=True)}
        recalled = Recalled(
            release=view.release.name,
            ids=ids,
            scores=found.scores.tolist(),
            exhausted=len(ids) == found.eligible_count,
            fallback=ask.fallback,
            unknown=ask.unknown,
            plan=_build_execution_plan(found, ms) if query.explain else None,
        )
        return RecallTrace(view, ask, passing, found, recalled, ms)


def _build_execution_plan(search_result: SearchResult, stage_ms: Mapping[str, float]) -> ExecutionPlan:
    return ExecutionPlan(
        path=search_result.route,
        matches=search_result.match_count,
        excluded=search_result.match_count - search_result.eligible_count,
        delta=search_result.delta_count,
        effort=None if search_result.search_params is None else search_result.search_params._asdict(),
        ms=stage_ms,
    )


def open_recaller(
    store: str | Path,
    *,
    release: str | None = None,
    writable: bool = False,
    max_delta_items: int = MAX_DELTA_ITEMS,
    auto_compact: bool = True,
) -> Recaller:
    """Open a store for recall, once every byte of the release was verified. Loads no torch.

    Live changes that the store's journal holds are brought onto the release. Without `writable` later ones are not
    seen.

    Args:
        store: the store's folder.
        release: None is the current one.
        writable: take upserts and deletes. Of all processes one may at a time; close the recaller to let go.
        max_delta_items: items beside the release, beyond which upserts of new ones are refused until a compaction.
        auto_compact: where writable, make the next release in a process of low priority when there are many changes,
            and go over to it.

    Raises:
        StoreError: there is no such store or release.
        ReleaseRefused: a file is damaged, missing or too many.
        JournalDamaged, JournalFailed: the journal is damaged, or cannot be read or written just now.
        Locked: `writable`, and another process is; the error carries its pid.
        ForkError: this process was forked from one that had used vecall.
    """
    check_not_forked()
    opened = Store.open(Path(store))
    return Recaller(
        LiveIndex.open(opened, release, writable=writable, max_delta_items=max_delta_items, auto_compact=auto_compact)
    )
