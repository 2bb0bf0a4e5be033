"""From recalled candidates to the final list: ranking, diversity, the first k."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.arrays import Rows
from vecall.errors import QueryError, RankerUnavailableError, VecallError
from vecall.ranking.ranker import NamedRanker, score_candidates
from vecall.recall.candidate_columns import RecalledColumns
from vecall.recall.channel_search import NO_DEADLINE
from vecall.recall.diversity import AttributeCap, Positions, select_by_marginal_relevance, select_with_cap
from vecall.recall.filters import never_cancel
from vecall.recall.query import ExecutionPlan
from vecall.recall.ranking_timer import RankingTimer
from vecall.recall.recommend_query import RECALL_ORDER, Recommended, RecommendRequest
from vecall.recall.snapshot_items import SnapshotItems
from vecall.recall.trace import RecallTrace

logger = logging.getLogger(__name__)

RANKING_STAGE = "rank"
DEGRADED_RANKER = "ranker"  # in `Recommended.degraded`


@dataclass(frozen=True)
class RecommendTrace:
    """A final list together with the recall that it comes from.

    Attributes:
        recall: Recall of the candidates.
        rows: [at most k] rows of the snapshot, those of `answer.ids`.
        answer: The answer.
        rank_ms: Milliseconds from the candidates to the answer.
    """

    recall: RecallTrace
    rows: Rows
    answer: Recommended
    rank_ms: float


def recommend_from_candidates(
    recall: RecallTrace,
    request: RecommendRequest,
    ranker: NamedRanker | None,
    timer: RankingTimer,
    *,
    deadline: float = NO_DEADLINE,
    check_cancelled: Callable[[], object] = never_cancel,
) -> RecommendTrace:
    """Rank recalled candidates and return the first k that the request's diversity allows.

    Args:
        recall: Recall by `request.to_candidate_query()`.
        request: The request.
        ranker: Scores the candidates; None for the order of recall, which also answers if the ranker fails.
        timer: Knows how long the ranker takes.
        deadline: `time.perf_counter` by which ranking must end: it does not start if that is not to be expected. A
            ranking that has started is not interrupted, and its result is used.
        check_cancelled: Called before ranking, and between the steps of `diversity.mmr`.

    Raises:
        QueryError: `diversity.by` is not an attribute.
    """
    start = time.perf_counter()
    search_result, degraded = recall.search_result, list(recall.answer.degraded)
    _check_attribute(recall, request)
    check_cancelled()
    columns = RecalledColumns(recall.snapshot, recall.resolved_query, search_result)
    used_ranker = ranker if len(search_result.rows) else None
    scores = None if used_ranker is None else _rank(recall, columns, used_ranker, timer, deadline)
    if used_ranker is not None and scores is None:
        degraded.append(DEGRADED_RANKER)
        used_ranker = None
    final_scores = search_result.scores if scores is None else scores
    ranked = np.argsort(-final_scores, kind="stable") if scores is not None else np.arange(len(final_scores))
    positions = ranked[_select(columns.items, request, ranked, final_scores[ranked], check_cancelled)]
    ids = [recall.answer.ids[position] for position in positions.tolist()]
    rank_ms = round((time.perf_counter() - start) * 1e3, 3)
    answer = Recommended(
        release=recall.answer.release,
        ids=ids,
        scores=final_scores[positions].tolist(),
        channels=search_result.list_channels(positions),
        ranker=RECALL_ORDER if used_ranker is None else used_ranker.name,
        degraded=tuple(degraded),
        exhausted=len(ids) == recall.candidates.eligible_count,
        fallback=recall.answer.fallback,
        unknown=recall.answer.unknown,
        plan=_add_stage(recall.answer.plan, rank_ms),
    )
    return RecommendTrace(recall, search_result.rows[positions], answer, rank_ms)


def _check_attribute(recall: RecallTrace, request: RecommendRequest) -> None:
    attributes, diversity = recall.snapshot.release.attributes, request.diversity
    if not isinstance(diversity, AttributeCap):
        return
    if diversity.by not in attributes.columns:
        raise QueryError(
            f"diversity.by: expected one of the attributes {attributes.columns}, got {diversity.by!r:.80}",
            field="diversity.by",
        )
    dtype = attributes.schema[diversity.by]
    if (dtype.inner if isinstance(dtype, (pl.List, pl.Array)) else dtype).is_nested():
        raise QueryError(
            f"diversity.by: expected an attribute of single values or of lists of such, got {diversity.by!r} of type "
            f"{dtype}",
            field="diversity.by",
        )


def _rank(
    recall: RecallTrace, columns: RecalledColumns, ranker: NamedRanker, timer: RankingTimer, deadline: float
) -> NDArray[np.float64] | None:
    """Return [C] the ranker's scores; None if it failed, or would not end in time."""
    start = time.perf_counter()
    if start >= deadline or not timer.fits(ranker, deadline - start):
        return None
    try:
        scores = score_candidates(columns, ranker.ranker)
    except RankerUnavailableError:  # a warning was logged when the release was opened
        return None
    except VecallError as error:  # which says all in its text
        logger.warning("ranker %s of release %s failed: %s", ranker.name, recall.answer.release, error)
        return None
    except Exception:
        logger.exception("ranker %s of release %s failed", ranker.name, recall.answer.release)
        return None
    timer.record(ranker, time.perf_counter() - start)
    return scores


def _select(
    items: SnapshotItems,
    request: RecommendRequest,
    ranked: Positions,
    scores: NDArray[np.floating],
    check_cancelled: Callable[[], object],
) -> Positions:
    """Return the positions in `ranked` of the final list.

    Args:
        items: The C candidates in the order of recall; what the ranker has read of them is not read again.
        request: The request.
        ranked: [C] positions of the candidates, best first.
        scores: [C] in that order.
        check_cancelled: As for `recommend_from_candidates`.
    """
    diversity = request.diversity
    if diversity is None:
        return np.arange(min(request.k, len(ranked)))
    if isinstance(diversity, AttributeCap):
        values = items.get_values(diversity.by)[ranked].to_list()
        return select_with_cap(values, diversity.max, request.k)
    return select_by_marginal_relevance(
        scores.astype(np.float64), items.vectors[ranked], diversity.mmr, request.k, check_cancelled=check_cancelled
    )


def _add_stage(plan: ExecutionPlan | None, rank_ms: float) -> ExecutionPlan | None:
    return None if plan is None else replace(plan, ms={**plan.ms, RANKING_STAGE: rank_ms})
