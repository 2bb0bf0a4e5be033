"""What answers in place of the vectors while the server that holds the index does not answer."""

from collections.abc import MutableMapping
from typing import NamedTuple

import numpy as np

from vecall.channels.merge_plan import MergePlan
from vecall.channels.settings import ChannelName
from vecall.errors import EngineUnavailableError
from vecall.recall.channels.base import ChannelQuery
from vecall.recall.query import Fallback
from vecall.recall.result_order import ScoredRows
from vecall.recall.search import SearchResult, search_candidates

DEGRADED_ENGINE = "engine"  # in `Recalled.degraded`
_FILLING_WEIGHT = 1e-6  # of the lowest weight: filling items rank below those of all other channels


class EngineFallback(NamedTuple):
    """How the channels answer without the vectors.

    Attributes:
        plan: How they are merged.
        popular_result: Popular items that were added to fill the answer; None if none were.
        fallback: "popular" if the other channels have too few items, so that popular ones fill the answer.
    """

    plan: MergePlan
    popular_result: SearchResult | None = None
    fallback: Fallback | None = None


def check_when_down(query: ChannelQuery, error: EngineUnavailableError) -> EngineUnavailableError:
    """Return what the engine raised, if the release lets other channels answer instead.

    Raises:
        EngineUnavailableError: It has such requests refused; `error` is raised.
    """
    remote_index = query.snapshot.release.remote_index
    if remote_index is None or remote_index.when_down == "refuse":
        raise error
    return error


def fill_by_popularity(
    query: ChannelQuery,
    plan: MergePlan,
    hits: MutableMapping[ChannelName, ScoredRows],
    k: int,
    error: EngineUnavailableError,
) -> EngineFallback:
    """Fill the answer of the other channels to k items, or to all that are eligible.

    Args:
        query: The query.
        plan: The channels that were asked.
        hits: Rows and scores of those that answered; popular items are added if the others are too few.
        k: At least 1.
        error: What the engine raised.

    Raises:
        EngineUnavailableError: No channel answered, and the release has no popularity; `error` is raised.
    """
    others = [rows for name, (rows, _) in hits.items() if name != "popular"]
    found_count = len(np.unique(np.concatenate(others))) if others else 0
    if found_count >= min(k, query.candidates.eligible_count):
        return EngineFallback(plan)
    if "popular" in hits:
        return EngineFallback(plan, fallback="popular")
    if query.snapshot.release.popularity is None:
        if not hits:
            raise error
        return EngineFallback(plan)
    popular = search_candidates(query.snapshot, None, query.candidates, k)
    weight = _FILLING_WEIGHT * min(plan.weights.values())
    filled_plan = (
        plan.select(("popular",))
        if not hits
        else plan.model_copy(update={"weights": {**plan.weights, "popular": weight}})
    )
    hits["popular"] = popular.rows, popular.scores
    return EngineFallback(filled_plan, popular, "popular")
