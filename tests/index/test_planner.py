import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecall.index.base import Effort
from vecall.index.planner import Costs, Decision, decide
from vecall.index.search_params import EffortCurve

CURVE = EffortCurve([(10, Effort(20, 30)), (100, Effort(110, 120))])
CHEAP = Costs(fixed=0.0, per_width=0.0, per_depth=0.0, per_row=1.0)  # the index always is
COSTS = Costs(fixed=0.5, per_width=0.01, per_depth=0.002, per_row=0.001)


def test_costs_by_hand():
    assert COSTS.of_index(Effort(100, 50)) == pytest.approx(0.5 + 1.0 + 0.1)
    assert COSTS.of_scan(3000) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("k", "allowed", "excluded", "decision"),
    [
        # All of them: no more than k are left.
        (10, 0, 0, Decision("all", 0, None)),
        (10, 10, 0, Decision("all", 0, None)),
        (10, 15, 5, Decision("all", 0, None)),
        (1, 5, 5, Decision("all", 0, None)),
        # Nothing in the way: the rank is k.
        (10, 1000, 0, Decision("index", 10, Effort(20, 30))),
        (55, 1000, 0, Decision("index", 55, Effort(65, 75))),
        # Half pass: the tenth of them is expected at rank 20; still about 10 are scored.
        (10, 500, 0, Decision("index", 10, Effort(30, 30))),
        # The two nearest are excluded.
        (10, 1000, 2, Decision("index", 12, Effort(22, 32))),
        # Both: (10 + 5) · 1000 / 300 = 50.
        (10, 300, 5, Decision("index", 15, Effort(60, 35))),
        # 7 · 1000 / 300 = 23.3, so rank 24.
        (7, 300, 0, Decision("index", 7, Effort(34, 30))),
        # Beyond the curve: rank 250 is 2.5 times its end.
        (10, 40, 0, Decision("index", 10, Effort(275, 30))),
    ],
)
def test_by_hand_where_the_index_costs_nothing(k, allowed, excluded, decision):
    assert decide(k, size=1000, allowed=allowed, excluded=excluded, curve=CURVE, costs=CHEAP) == decision


def test_the_cheaper_way_is_taken():
    """Rank 200 of 100,000 is width 220: .5 + 2.2 + .06 ms. That many rows are scanned in 2,760 · .001 ms."""
    asked = {"size": 100_000, "curve": CURVE}
    costs = Costs(0.5, 0.01, 0.002, 0.001)
    for allowed, path in ((2_000, "scan"), (5_000, "index")):
        rank = math.ceil(10 * 100_000 / allowed)
        effort = CURVE.at(10, rank=rank)
        decision = decide(10, allowed=allowed, excluded=0, costs=costs, **asked)
        assert decision.path == path
        assert (costs.of_index(effort) <= costs.of_scan(allowed)) == (path == "index")
    even = Costs(5.0, 0.0, 0.0, 0.001)  # equal at 5,000
    assert decide(10, allowed=5_000, excluded=0, costs=even, **asked).path == "index"
    assert decide(10, allowed=4_999, excluded=0, costs=even, **asked).path == "scan"
    assert decide(10, allowed=5_000, excluded=1, costs=even, **asked).path == "scan"  # the excluded one is not scored


def test_the_rank_is_rounded_up_and_within_the_pool():
    # Two are wanted of 3 of 1,001 rows, one of them excluded: all. One: 2 · 1001 / 3 = 667.3, so rank 668.
    assert decide(2, size=1001, allowed=3, excluded=1, curve=CURVE, costs=CHEAP).path == "all"
    assert decide(1, size=1001, allowed=3, excluded=1, curve=CURVE, costs=CHEAP).effort == CURVE.at(2, rank=668)
    assert decide(999, size=1000, allowed=1000, excluded=0, curve=CURVE, costs=CHEAP).effort == CURVE.at(999)


def test_an_exact_index_has_nothing_to_choose():
    assert decide(10, size=1000, allowed=300, excluded=5, curve=None, costs=CHEAP) == Decision("scan", 0, None)
    assert decide(10, size=1000, allowed=15, excluded=5, curve=None, costs=CHEAP) == Decision("all", 0, None)


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
    costs = Costs(*weights)
    decision = decide(k, size=size, allowed=allowed, excluded=excluded, curve=CURVE, costs=costs)
    assert (decision.path == "all") == (allowed - excluded <= k)
    assert (decision.effort is None) == (decision.path != "index")
    if decision.path == "index":
        assert decision.fetch == k + excluded <= allowed
        assert decision.effort.width >= CURVE.at(decision.fetch).width  # less passes, never less effort
        assert decision.effort.depth == CURVE.at(decision.fetch).depth
        assert costs.of_index(decision.effort) <= costs.of_scan(allowed - excluded)
    else:
        assert decision.fetch == 0
