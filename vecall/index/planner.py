"""Which way one query is answered: through the index, or by an exact scan of what may be an answer.

Whatever a filter lets pass and however much is excluded, the answer must be the k best. A search that ignores most of
what it meets must look further: with n of N rows allowed and E of them excluded, the k-th answer is expected at rank
(k + E) N / n of the whole pool, and the effort is that of this rank. Where that costs more than scoring the n rows one
by one, they are scored.
"""

import math
from dataclasses import dataclass
from typing import Literal

from vecall.index.base import SearchParams
from vecall.index.search_params import SearchParamCurve

Route = Literal["index", "scan", "all"]


@dataclass(frozen=True)
class CostModel:
    """Milliseconds of one query on one thread, as measured when the index was tuned.

    Attributes:
        fixed_ms: of any search of the index.
        ms_per_width: of each place kept in sight, or cell.
        ms_per_reranked_row: of each row that cells score exactly.
        ms_per_scanned_row: of each row of an exact scan.
    """

    fixed_ms: float
    ms_per_width: float
    ms_per_reranked_row: float
    ms_per_scanned_row: float

    def estimate_index_ms(self, search_params: SearchParams) -> float:
        """Of a search with this effort."""
        return (
            self.fixed_ms
            + self.ms_per_width * search_params.width
            + self.ms_per_reranked_row * search_params.rerank_depth
        )

    def estimate_scan_ms(self, row_count: int) -> float:
        """Of scoring so many rows."""
        return self.ms_per_scanned_row * row_count


# Of a release that says none: a graph, on the machine where DESIGN's figures were measured.
DEFAULT_COSTS = CostModel(fixed_ms=0.05, ms_per_width=0.0025, ms_per_reranked_row=0.0, ms_per_scanned_row=5e-5)


@dataclass(frozen=True)
class SearchPlan:
    """How to answer.

    Attributes:
        route: "index"; "scan", exactly, the allowed rows that are not excluded; "all" of these, which are at most k.
        fetch_k: rows to ask the index for, so that k remain when the excluded ones are dropped.
        search_params: of the index; None where it is not asked.
    """

    route: Route
    fetch_k: int
    search_params: SearchParams | None


def plan_search(
    k: int, *, size: int, allowed_count: int, excluded_count: int, curve: SearchParamCurve | None, costs: CostModel
) -> SearchPlan:
    """Choose the cheapest way that is good enough.

    Args:
        k: answers that are wanted, at least 1.
        size: N, rows of the index.
        allowed_count: n of them that may be answers, before exclusions.
        excluded_count: of the n rows, those that are excluded.
        curve: effort by rank; None where the index itself scans all rows.
        costs: of both ways.
    """
    if allowed_count - excluded_count <= k:
        return SearchPlan("all", 0, None)
    if curve is None:
        return SearchPlan("scan", 0, None)
    fetch = k + excluded_count
    nearest = allowed_count == size and not excluded_count
    rank = None if nearest else math.ceil(fetch * size / allowed_count)
    effort = curve.look_up(fetch, rank=rank, excluded_count=excluded_count)
    if costs.estimate_index_ms(effort) > costs.estimate_scan_ms(allowed_count - excluded_count):
        return SearchPlan("scan", 0, None)
    return SearchPlan("index", fetch, effort)
