import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecall.index.base import AdaptedSearch, SearchParams, SearchRequest
from vecall.index.planner import CostModel, PlannedQuery, SearchPlan, plan_search
from vecall.index.search_params import FilteredSearchTable, SearchParamCurve

CURVE = SearchParamCurve([(10, SearchParams(20, 30)), (100, SearchParams(110, 120))])
LISTS = np.array([3, 5])
FREE_INDEX = CostModel(fixed_ms=0.0, ms_per_width=0.0, ms_per_reranked_row=0.0, ms_per_scanned_row=1.0)
COSTS = CostModel(fixed_ms=0.5, ms_per_width=0.01, ms_per_reranked_row=0.002, ms_per_scanned_row=0.001)


def make_plan(k, *, size=1000, allowed, excluded=0, curve=CURVE, costs=FREE_INDEX):
    return plan_search(k, size=size, allowed_count=allowed, excluded_count=excluded, curve=curve, costs=costs)


def test_costs_by_hand():
    assert COSTS.estimate_index_ms(SearchParams(100, 50)) == pytest.approx(0.5 + 1.0 + 0.1)
    assert COSTS.estimate_scan_ms(3000) == pytest.approx(3.0)
    assert COSTS.count_equivalent_rows(SearchParams(100, 50)) in (1599, 1600)  # of 0.001 ms


@pytest.mark.parametrize(
    ("k", "allowed", "excluded", "expected"),
    [
        # No more than k rows are left: all of them are returned.
        (10, 0, 0, SearchPlan("all", 0, None)),
        (10, 10, 0, SearchPlan("all", 0, None)),
        (10, 15, 5, SearchPlan("all", 0, None)),
        (1, 5, 5, SearchPlan("all", 0, None)),
        # No filter and no exclusion: the rank is k.
        (10, 1000, 0, SearchPlan("index", 10, SearchParams(20, 30))),
        (55, 1000, 0, SearchPlan("index", 55, SearchParams(65, 75))),
        # Half of the rows are allowed: the tenth is expected at rank 20; the rerank depth stays that of k = 10.
        (10, 500, 0, SearchPlan("index", 10, SearchParams(30, 30))),
        # The two nearest rows are excluded.
        (10, 1000, 2, SearchPlan("index", 12, SearchParams(22, 32))),
        # Filter and exclusions: (10 + 5) · 1000 / 300 = 50.
        (10, 300, 5, SearchPlan("index", 15, SearchParams(60, 35))),
        # 7 · 1000 / 300 = 23.3, so rank 24.
        (7, 300, 0, SearchPlan("index", 7, SearchParams(34, 30))),
        # Rank 250 is 2.5 times the end of the curve.
        (10, 40, 0, SearchPlan("index", 10, SearchParams(275, 30))),
    ],
)
def test_plan_by_hand_if_the_index_is_free(k, allowed, excluded, expected):
    assert make_plan(k, allowed=allowed, excluded=excluded) == expected


def test_cheaper_route_is_chosen():
    """2,000 of 100,000 rows are scanned in 2 ms: the index takes 6.06 ms at rank 500, width 550.

    5,000 rows are scanned in 5 ms: the index takes 0.5 + 2.2 + 0.06 ms at rank 200, width 220.
    """
    for allowed, route in ((2_000, "scan"), (5_000, "index")):
        search_params = CURVE.look_up(10, expected_rank=math.ceil(10 * 100_000 / allowed))
        assert make_plan(10, size=100_000, allowed=allowed, costs=COSTS).route == route
        assert (COSTS.estimate_index_ms(search_params) <= COSTS.estimate_scan_ms(allowed)) == (route == "index")


def test_index_is_chosen_at_equal_cost_and_excluded_rows_are_not_scanned():
    costs = CostModel(5.0, 0.0, 0.0, 0.001)  # equal at 5,000 rows
    assert make_plan(10, size=100_000, allowed=5_000, costs=costs).route == "index"
    assert make_plan(10, size=100_000, allowed=4_999, costs=costs).route == "scan"
    assert make_plan(10, size=100_000, allowed=5_000, excluded=1, costs=costs).route == "scan"


def test_rank_is_rounded_up_and_stays_within_the_index():
    # Of 3 allowed rows of 1,001 one is excluded. k = 2 is all of them; k = 1 has rank 2 · 1001 / 3 = 667.3, so 668.
    assert make_plan(2, size=1001, allowed=3, excluded=1).route == "all"
    assert make_plan(1, size=1001, allowed=3, excluded=1).search_params == CURVE.look_up(2, expected_rank=668)
    assert make_plan(999, allowed=1000).search_params == CURVE.look_up(999)


def test_exact_index_never_searches_an_index():
    assert make_plan(10, allowed=300, excluded=5, curve=None) == SearchPlan("scan", 0, None)
    assert make_plan(10, allowed=15, excluded=5, curve=None) == SearchPlan("all", 0, None)


class AdaptingIndex:
    """Index that adapts every search to what it was created with, and records the requests."""

    def __init__(self, adapted):
        self.adapted, self.requests = adapted, []

    def adapt(self, request, search_params):
        self.requests.append((request, search_params))
        return self.adapted


COVERING_CURVE = SearchParamCurve([(10, SearchParams(20, 30, 0.9))], FilteredSearchTable(spread=0.99))


@pytest.mark.parametrize(
    ("adapted", "expected"),
    [
        (AdaptedSearch(SearchParams(7, 30), LISTS), SearchPlan("index", 12, SearchParams(7, 30), LISTS)),
        (AdaptedSearch(SearchParams(900, 30), LISTS), SearchPlan("scan", 0, None)),  # 9.56 ms, the scan 0.498
        (None, SearchPlan("scan", 0, None)),
    ],
)
def test_search_is_adapted_to_the_query(adapted, expected):
    index, vector, profile = AdaptingIndex(adapted), np.ones(3, np.float32), object()
    options = {"size": 10_000, "allowed_count": 5000, "excluded_count": 2, "curve": COVERING_CURVE}
    costs = CostModel(fixed_ms=0.0, ms_per_width=0.01, ms_per_reranked_row=0.0, ms_per_scanned_row=0.0001)
    assert plan_search(10, **options, costs=costs, query=PlannedQuery(index, vector, profile)) == expected
    ((request, search_params),) = index.requests
    assert request == SearchRequest(vector, 12, 2, 5000, profile)
    assert search_params == COVERING_CURVE.look_up(12, expected_rank=24, excluded_count=2)


def test_no_search_is_adapted_if_a_scan_is_cheaper_than_the_narrowest():
    index = AdaptingIndex(None)
    costs = CostModel(fixed_ms=1.0, ms_per_width=0.0, ms_per_reranked_row=0.0, ms_per_scanned_row=0.0001)
    options = {"size": 10_000, "allowed_count": 5000, "excluded_count": 2, "curve": COVERING_CURVE, "costs": costs}
    assert plan_search(10, **options, query=PlannedQuery(index, np.ones(3, np.float32))).route == "scan"
    assert index.requests == []


@given(
    k=st.integers(1, 2000),
    size=st.integers(1, 10**7),
    allowed_share=st.floats(0, 1),
    excluded_share=st.floats(0, 1),
    costs=st.builds(CostModel, *[st.floats(0, 10)] * 4),
)
def test_any_plan_fetches_enough_rows_at_the_lower_cost(k, size, allowed_share, excluded_share, costs):
    allowed = round(allowed_share * size)
    excluded = round(excluded_share * min(allowed, 3000))
    plan = make_plan(k, size=size, allowed=allowed, excluded=excluded, costs=costs)
    assert (plan.route == "all") == (allowed - excluded <= k)
    assert (plan.search_params is None) == (plan.route != "index")
    if plan.route == "index":
        assert plan.fetch_k == k + excluded <= allowed
        unfiltered = CURVE.look_up(plan.fetch_k)
        assert plan.search_params.width >= unfiltered.width  # a filter never narrows the search
        assert plan.search_params.rerank_depth == unfiltered.rerank_depth
        assert costs.estimate_index_ms(plan.search_params) <= costs.estimate_scan_ms(allowed - excluded)
    else:
        assert plan.fetch_k == 0
