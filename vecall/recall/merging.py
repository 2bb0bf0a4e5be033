"""Merging of the rankings of several channels into one, by ranks alone: scores of channels are not comparable."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import Rows
from vecall.channels.merge_plan import MergePlan
from vecall.channels.settings import ChannelName
from vecall.index.row_scores import RowScores
from vecall.recall.result_order import ScoredRows

RRF_CONSTANT = 60


def merge_rankings(rankings: Mapping[ChannelName, Rows], plan: MergePlan) -> ScoredRows:
    """Return the distinct rows of all rankings, in any order, with their fused scores.

    With w the channel's weight in the plan and r the item's rank in the channel, from 1, the fused score is
      - "rrf": Σ over channels of w / (60 + r), reciprocal rank fusion (Cormack, Clarke, Büttcher: SIGIR 2009);
      - "quota": the largest of w / r: of any first n items, a channel contributes the best of its own, about as many as
        its share of the weights.

    Args:
        rankings: Distinct rows of each channel of the plan, best first.
        plan: Method and weights; a channel that is not in `rankings` contributes nothing.
    """
    fused = RowScores(sum(map(len, rankings.values())))
    for name, rows in rankings.items():
        if plan.method == "rrf":
            fused.add_ranks(rows, plan.weights[name], RRF_CONSTANT)
        else:
            fused.raise_by_ranks(rows, plan.weights[name])
    return fused.rows, fused.scores.astype(np.float32)


def weigh_ranks(length: int, method: str, weight: float) -> NDArray[np.float64]:
    """Return [length] what each rank of a channel, from 1, contributes to the fused score.

    Args:
        length: Number of ranks.
        method: "rrf" or "quota".
        weight: Weight of the channel, above 0.
    """
    ranks = np.arange(1, length + 1, dtype=np.float64)
    return weight / (RRF_CONSTANT + ranks) if method == "rrf" else weight / ranks
