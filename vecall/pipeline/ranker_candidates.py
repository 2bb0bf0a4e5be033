"""Lists of candidates with labels: what recall returns for held-out cases, as the ranker gets it in a request."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vecall.arrays import Mask
from vecall.channels.merge_plan import MergePlan
from vecall.data.ragged import RaggedArray
from vecall.live.snapshot import Snapshot
from vecall.ranking.candidate_columns import CandidateColumns
from vecall.recall.candidate_columns import RecalledColumns
from vecall.recall.candidate_set import build_candidate_set
from vecall.recall.channel_search import search_channels
from vecall.recall.channels.base import ChannelQuery
from vecall.recall.resolve import ResolvedQuery


@dataclass(frozen=True)
class LabelledCandidates:
    """What recall returned to a user, and which of it the user took.

    Attributes:
        columns: Columns of C rows; those of lists without a target need not be made.
        is_target: [C] Whether each is a held-out item.
        target_count: Number of held-out items, those that recall did not return included; at least 1.
    """

    columns: CandidateColumns
    is_target: Mask
    target_count: int


class CandidateLists(Protocol):
    """The lists of n users; each is made when it is read."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> LabelledCandidates: ...


@dataclass(frozen=True)
class RecalledLists:
    """Lists that the code of requests recalls from a release of the training part.

    Attributes:
        snapshot: The release: model and channels know nothing of the targets.
        queries: Those of n cases.
        targets: Held-out rows of each case.
        plan: Channels, and how they are merged.
        depth: Number of candidates.
    """

    snapshot: Snapshot
    queries: Sequence[ResolvedQuery]
    targets: RaggedArray
    plan: MergePlan
    depth: int

    def __len__(self) -> int:
        return len(self.queries)

    def __getitem__(self, index: int) -> LabelledCandidates:
        """Recall the candidates of a case."""
        query, targets = self.queries[index], self.targets[index]
        candidates = build_candidate_set(self.snapshot, query.excluded_rows, None)
        result = search_channels(ChannelQuery(self.snapshot, query, candidates), self.plan, self.depth)
        columns = RecalledColumns(self.snapshot, query, result)
        return LabelledCandidates(columns, np.isin(result.rows, targets), len(targets))
