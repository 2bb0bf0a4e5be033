import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecall.index.base import SearchParams
from vecall.index.planner import CostModel, SearchPlan, plan_search
from vecall.index.search_params import SearchParamCurve

CURVE = SearchParamCurve([(10, SearchParams(20, 30)), (100, SearchParams(110, 120))])
CHEAP = CostModel(
    fixed_ms=0.0, ms_per_width=0.0, ms_per_reranked_row=0.0, ms_per_scanned_row=1.0
)  # the index always is
COSTS = CostModel(fixed_ms=0.5, ms_per_width=0.01, ms_per_reranked_row=0.002, ms_per_scanned_row=0.001)


def test_costs_by_hand():
    assert COSTS.estimate_index_ms(SearchParams(100, 50)) == pytest.approx(0.5 + 1.0 + 0.1)
    assert COSTS.estimate_scan_ms(3000) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("k", "allowed", "excluded", "decision"),
    [
        # All of them: no more than k are left.
        (10, 0, 0, SearchPlan("all", 0, None)),
        (10, 10, 0, SearchPlan("all", 0, None)),
        (10, 15, 5, SearchPlan("all", 0, None)),
        (1, 5, 5, SearchPlan("all", 0, None)),
        # Nothing in the way: the rank is k.
        (10, 1000, 0, SearchPlan("index", 10, SearchParams(20, 30))),
        (55, 1000, 0, SearchPlan("index", 55, SearchParams(65, 75))),
        # Half pass: the tenth of them is expected at rank 20; still about 10 are scored.
        (10, 500, 0, SearchPlan("index", 10, SearchParams(30, 30))),
        # The two nearest are excluded.
        (10, 1000, 2, SearchPlan("index", 12, SearchParams(22, 32))),
        # Both: (10 + 5) · 1000 / 300 = 50.
        (10, 300, 5, SearchPlan("index", 15, SearchParams(60, 35))),
        # 7 · 1000 / 300 = 23.3, so rank 24.
        (7, 300, 0, SearchPlan("index", 7, SearchParams(34, 30))),
        # Beyond the curve: rank 250 is 2.5 times its end.
        (10, 40, 0, SearchPlan("index", 10, SearchParams(275, 30))),
    ],
)
def test_by_hand_where_the_index_costs_nothing(k, allowed, excluded, decision):
    assert (
        plan_search(k, size=1000, allowed_count=allowed, excluded_count=excluded, curve=CURVE, costs=CHEAP) == decision
    )


def test_the_cheaper_way_is_taken():
    """Rank 200 of 100,000 is width 220: .5 + 2.2 + .06 ms. That many rows are scanned in 2,760 · .001 ms."""
    asked = {"size": 100_000, "curve": CURVE}
    costs = CostModel(0.5, 0.01, 0.002, 0.001)
    for allowed, path in ((2_000, "scan"), (5_000, "index")):
        rank = math.ceil(10 * 100_000 / allowed)
        effort = CURVE.look_up(10, rank=rank)
        decision = plan_search(10, allowed_count=allowed, excluded_count=0, costs=costs, **asked)
        assert decision.route == path
        assert (costs.estimate_index_ms(effort) <= costs.estimate_scan_ms(allowed)) == (path == "index")
    even = CostModel(5.0, 0.0, 0.0, 0.001)  # equal at 5,000
    assert plan_search(10, allowed_count=5_000, excluded_count=0, costs=even, **asked).route == "index"
    assert plan_search(10, allowed_count=4_999, excluded_count=0, costs=even, **asked).route == "scan"
    assert (
        plan_search(10, allowed_count=5_000, excluded_count=1, costs=even, **asked).route == "scan"
    )  # the excluded one is not scored


def test_the_rank_is_rounded_up_and_within_the_pool():
    # Two are wanted of 3 of 1,001 rows, one of them excluded: all. One: 2 · 1001 / 3 = 667.3, so rank 668.
    assert plan_search(2, size=1001, allowed_count=3, excluded_count=1, curve=CURVE, costs=CHEAP).route == "all"
    assert plan_search(
        1, size=1001, allowed_count=3, excluded_count=1, curve=CURVE, costs=CHEAP
    ).search_params == CURVE.look_up(2, rank=668)
    assert plan_search(
        999, size=1000, allowed_count=1000, excluded_count=0, curve=CURVE, costs=CHEAP
    ).search_params == CURVE.look_up(999)


def test_an_exact_index_has_nothing_to_choose():
    assert plan_search(10, size=1000, allowed_count=300, excluded_count=5, curve=None, costs=CHEAP) == SearchPlan(
        "scan", 0, None
    )
    assert plan_search(10, size=1000, allowed_count=15, excluded_count=5, curve=None, costs=CHEAP) == SearchPlan(
        "all", 0, None
    )


@given(
    k=st.integers(1, 2000),
    size=st.integers(1, 10**7),
    part=st.floats(0, 1),
    seen=st.floats(0, 1),
    weights=st.lists(st.floats(0, 10), min_size=4, max_size=4),
)
def test_whatever_is_asked_enough_is_fetched(k, size, part, seen, weights):
    allowed = round(part * size)
    excluded = round(seen * min(allowed, 3000))
    costs = CostModel(*weights)
    decision = plan_search(k, size=size, allowed_count=allowed, excluded_count=excluded, curve=CURVE, costs=costs)
    assert (decision.route == "all") == (allowed - excluded <= k)
    assert (decision.search_params is None) == (decision.route != "index")
    if decision.route == "index":
        assert decision.fetch_k == k + excluded <= allowed
        assert decision.search_params.width >= CURVE.look_up(decision.fetch_k).width  # less passes, never less effort
        assert decision.search_params.rerank_depth == CURVE.look_up(decision.fetch_k).rerank_depth
        assert costs.estimate_index_ms(decision.search_params) <= costs.estimate_scan_ms(allowed - excluded)
    else:
        assert decision.fetch_k == 0
