"""Which way one query is answered: through the index, or by an exact scan of what may be an answer.

Whatever a filter lets pass and however much is excluded, the answer must be the k best. A search that ignores most of
what it meets must look further: with n of N rows allowed and E of them excluded, the k-th answer is expected at rank
(k + E) N / n of the whole pool, and the effort is that of this rank. Where that costs more than scoring the n rows one
by one, they are scored.
"""

import math
from dataclasses import dataclass
from typing import Literal

from vecall.index.base import Effort
from vecall.index.search_params import EffortCurve

Path = Literal["index", "scan", "all"]


@dataclass(frozen=True)
class Costs:
    """Milliseconds of one query on one thread, as measured when the index was tuned.

    Attributes:
        fixed: of any search of the index.
        per_width: of each place kept in sight, or cell.
        per_depth: of each row that cells score exactly.
        per_row: of each row of an exact scan.
    """

    fixed: float
    per_width: float
    per_depth: float
    per_row: float

    def of_index(self, effort: Effort) -> float:
        """Of a search with this effort."""
        return self.fixed + self.per_width * effort.width + self.per_depth * effort.depth

    def of_scan(self, rows: int) -> float:
        """Of scoring so many rows."""
        return self.per_row * rows


# Of a release that says none: a graph, on the machine where DESIGN's figures were measured.
USUAL_COSTS = Costs(fixed=0.05, per_width=0.0025, per_depth=0.0, per_row=5e-5)


@dataclass(frozen=True)
class Decision:
    """How to answer.

    Attributes:
        path: "index"; "scan", exactly, the allowed rows that are not excluded; "all" of these, which are at most k.
        fetch: rows to ask the index for, so that k remain when the excluded ones are dropped.
        effort: of the index; None where it is not asked.
    """

    path: Path
    fetch: int
    effort: Effort | None


def decide(k: int, *, size: int, allowed: int, excluded: int, curve: EffortCurve | None, costs: Costs) -> Decision:
    """Choose the cheapest way that is good enough.

    Args:
        k: answers that are wanted, at least 1.
        size: N, rows of the index.
        allowed: n of them that may be answers, before exclusions.
        excluded: of the n rows, those that are excluded.
        curve: effort by rank; None where the index itself scans all rows.
        costs: of both ways.
    """
    if allowed - excluded <= k:
        return Decision("all", 0, None)
    if curve is None:
        return Decision("scan", 0, None)
    fetch = k + excluded
    nearest = allowed == size and not excluded
    rank = None if nearest else math.ceil(fetch * size / allowed)
    effort = curve.at(fetch, rank=rank, dropped=excluded)
    if costs.of_index(effort) > costs.of_scan(allowed - excluded):
        return Decision("scan", 0, None)
    return Decision("index", fetch, effort)
