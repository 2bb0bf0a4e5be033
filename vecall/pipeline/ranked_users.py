"""Validation users with what channels recall for them, by which plans are chosen.

The objective is the mean of recall@k over k from 1 to the largest of `[index] ks`, evenly spaced in log k. One target
per user makes recall@k at a single k so noisy that some hundred users cannot tell a good plan from a bad one; the mean
moves with every rank.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import Rows
from vecall.channels.merge_plan import VECTORS_ALONE, MergePlan
from vecall.channels.settings import ChannelName
from vecall.config import Config
from vecall.data.ragged import EvalCases, RaggedArray
from vecall.evaluation.channel_metrics import select_targets
from vecall.evaluation.metrics import Ranks, limit_depth, recall_per_user
from vecall.pipeline.channel_recall import ChannelRecaller
from vecall.pipeline.rank_table import RankTable

_OBJECTIVE_DEPTHS = 40


def limit_depths(config: Config, n_items: int) -> tuple[int, int]:
    """Return the smallest and the largest of `[index] ks`, as far as N items allow."""
    return limit_depth(n_items, min(config.index.ks)), limit_depth(n_items, max(config.index.ks))


class RankedUsers:
    """What any plan gives n users, computed once per plan.

    Args:
        rankings: By channel [n, K] rows.
        targets: n lists of targets, none of them empty.
        ks: Wanted depths.
        exclude_seen: Whether the items of the histories are excluded.
    """

    def __init__(
        self,
        rankings: Mapping[ChannelName, Rows],
        targets: RaggedArray,
        ks: tuple[int, int],
        *,
        exclude_seen: bool = True,
    ) -> None:
        self.ks, self.count, self.exclude_seen = ks, len(targets), exclude_seen
        self._table = RankTable(rankings)
        self._targets, self._locations = targets, self._table.locate(targets)
        depths = np.geomspace(1, max(ks), _OBJECTIVE_DEPTHS)
        self._gains = (np.arange(max(ks) + 1)[:, None] < depths).mean(axis=1)  # by rank
        self._ranks: dict[tuple[object, ...], Ranks] = {}

    def _rank(self, plan: MergePlan) -> Ranks:
        key = plan.method if len(plan.weights) > 1 else "", *plan.weights.items()
        if key not in self._ranks:
            self._ranks[key] = self._table.rank_targets(plan, self._locations)
        return self._ranks[key]

    def compute_objective(self, plan: MergePlan) -> NDArray[np.float64]:
        """Return [n] the mean of recall@k over k from 1 to the largest of `ks`, evenly spaced in log k."""
        gains = self._gains[np.minimum(self._rank(plan), len(self._gains) - 1)]
        means: NDArray[np.float64] = np.add.reduceat(gains, self._targets.offsets[:-1]) / self._targets.lengths
        return means

    def compute_recalls(self, plan: MergePlan, k: int) -> NDArray[np.float64]:
        """Return [n] recall@k."""
        return recall_per_user(self._rank(plan), self._targets.offsets, k)


def rank_users(
    recaller: ChannelRecaller,
    cases: EvalCases,
    ks: tuple[int, int],
    *,
    exclude_seen: bool,
    channels: Sequence[ChannelName] | None = None,
) -> RankedUsers:
    """Ask channels for the users who have a target that can be recalled.

    Args:
        recaller: Asks them.
        cases: The users.
        ks: Smallest and largest depth of interest.
        exclude_seen: Whether the items of the histories are excluded.
        channels: Those that are asked; None for all.
    """
    targets = select_targets(cases, recaller.snapshot.release.vectors.size, exclude_seen=exclude_seen)
    indices = np.flatnonzero(targets.lengths)
    rankings = recaller.rank(cases.take(indices), max(ks), exclude_seen=exclude_seen, channels=channels)
    rows = rankings.select_rows_to_merge(VECTORS_ALONE)
    return RankedUsers(rows, targets.take(indices), ks, exclude_seen=exclude_seen)
