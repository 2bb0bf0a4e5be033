"""Choice between the index and an exact scan of the allowed rows, for one query.

However selective the filter and however many rows are excluded, the result must be the k best. A search that discards
most of the rows it visits must look further: with n of N rows allowed and E of them excluded, the k-th result is
expected at rank (k + E) N / n of all rows, so the search parameters are those of this rank. If they cost more than
scoring the n - E rows one by one, the rows are scanned.
"""

import math
from dataclasses import dataclass
from typing import Literal

from vecall.arrays import Rows, Vectors
from vecall.index.base import AdaptedSearch, Index, SearchParams, SearchRequest
from vecall.index.filter_profile import FilterProfile
from vecall.index.search_params import SearchParamCurve

Route = Literal["index", "scan", "all"]


@dataclass(frozen=True)
class CostModel:
    """Cost of one query on one thread, as measured when the index was tuned.

    Attributes:
        fixed_ms: milliseconds of any search of the index.
        ms_per_width: milliseconds per unit of `SearchParams.width`.
        ms_per_reranked_row: milliseconds per row of `SearchParams.rerank_depth`.
        ms_per_scanned_row: milliseconds per row of an exact scan.
    """

    fixed_ms: float
    ms_per_width: float
    ms_per_reranked_row: float
    ms_per_scanned_row: float

    def estimate_index_ms(self, search_params: SearchParams) -> float:
        """Estimate the milliseconds of a search of the index."""
        return (
            self.fixed_ms
            + self.ms_per_width * search_params.width
            + self.ms_per_reranked_row * search_params.rerank_depth
        )

    def estimate_scan_ms(self, row_count: int) -> float:
        """Estimate the milliseconds of an exact scan of `row_count` rows."""
        return self.ms_per_scanned_row * row_count

    def count_equivalent_rows(self, search_params: SearchParams) -> int:
        """Return how many rows a scan scores in the time that a search of the index is estimated to take."""
        return int(self.estimate_index_ms(search_params) / self.ms_per_scanned_row) if self.ms_per_scanned_row else 0


# For a release that records no costs; measured for an HNSW index on one machine.
DEFAULT_COSTS = CostModel(fixed_ms=0.05, ms_per_width=0.0025, ms_per_reranked_row=0.0, ms_per_scanned_row=5e-5)


@dataclass(frozen=True)
class SearchPlan:
    """How to answer one query.

    Attributes:
        route: "index" searches the index; "scan" scores the rows that are allowed and not excluded; "all" searches
            nothing, because these rows are at most k: all of them are the result.
        fetch_k: number of rows to fetch from the index, so that k remain without the excluded ones; 0 off the index.
        search_params: parameters of the index search; None off the index.
        lists: inverted lists to scan; None leaves the choice to the index.
    """

    route: Route
    fetch_k: int
    search_params: SearchParams | None
    lists: Rows | None = None


@dataclass(frozen=True)
class PlannedQuery:
    """The query that a search is planned for.

    Attributes:
        index: the index to be searched.
        vector: [D] the query.
        profile: where the rows lie that a filter allows; None without a filter.
    """

    index: Index
    vector: Vectors
    profile: FilterProfile | None = None


def plan_search(
    k: int,
    *,
    size: int,
    allowed_count: int,
    excluded_count: int,
    curve: SearchParamCurve | None,
    costs: CostModel,
    query: PlannedQuery | None = None,
) -> SearchPlan:
    """Choose the cheapest route that returns the k best rows.

    Args:
        k: number of rows wanted, at least 1.
        size: N, the number of rows of the index.
        allowed_count: n, the number of rows that may be returned, excluded ones included.
        excluded_count: E, how many of the n rows are excluded.
        curve: search parameters by rank; None for an exact index, which scans all rows.
        costs: measured cost of both routes.
        query: adapts the search to the rows near it; None plans for the mean query.
    """
    if allowed_count - excluded_count <= k:
        return SearchPlan("all", 0, None)
    if curve is None:
        return SearchPlan("scan", 0, None)
    fetch_k, scan_ms = k + excluded_count, costs.estimate_scan_ms(allowed_count - excluded_count)
    is_restricted = allowed_count < size or excluded_count > 0
    expected_rank = min(size, math.ceil(fetch_k * size / allowed_count)) if is_restricted else None
    search_params = curve.look_up(fetch_k, expected_rank=expected_rank, excluded_count=excluded_count)
    # With a spread, the width depends on the query.
    narrowest = search_params._replace(width=1) if search_params.spread else search_params
    if costs.estimate_index_ms(narrowest) > scan_ms:
        return SearchPlan("scan", 0, None)
    adapted: AdaptedSearch | None = AdaptedSearch(search_params)
    if query is not None:
        request = SearchRequest(query.vector, fetch_k, excluded_count, allowed_count, query.profile)
        adapted = query.index.adapt(request, search_params)
    if adapted is None or costs.estimate_index_ms(adapted.search_params) > scan_ms:
        return SearchPlan("scan", 0, None)
    return SearchPlan("index", fetch_k, adapted.search_params, adapted.lists)
