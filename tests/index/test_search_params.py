import pytest

from vecall.index.base import SearchParams
from vecall.index.search_params import FilteredSearchParams, SearchParamCurve, TuningPoint, WidthAtRank

CURVE = SearchParamCurve([(10, SearchParams(40, 20)), (20, SearchParams(80, 30)), (50, SearchParams(144, 90))])


@pytest.mark.parametrize(
    ("k", "effort"),
    [
        (1, (40, 20)),  # the first point's
        (10, (40, 20)),
        (12, (48, 22)),
        (15, (60, 25)),  # half way
        (20, (80, 30)),
        (25, (91, 40)),  # 80 + 5/30 · 64 = 90.67, rounded up
        (50, (144, 90)),
        (100, (288, 180)),  # in proportion beyond
    ],
)
def test_the_curve_by_hand(k, effort):
    assert CURVE.look_up(k) == CURVE.look_up(k, rank=k) == SearchParams(*effort)


@pytest.mark.parametrize(
    ("k", "rank", "effort"), [(10, 20, (80, 20)), (12, 50, (144, 22)), (50, 5000, (14_400, 90)), (100, 15, (60, 180))]
)
def test_the_rank_says_how_far_to_look_and_k_how_many_to_score(k, rank, effort):
    assert CURVE.look_up(k, rank=rank) == SearchParams(*effort)


def test_one_point_is_a_curve():
    curve = SearchParamCurve([(10, SearchParams(25))])
    assert (curve.look_up(3), curve.look_up(10), curve.look_up(40), curve.look_up(11)) == (
        SearchParams(25),
        SearchParams(25),
        SearchParams(100),
        SearchParams(28),
    )
    assert curve.points == ((10, SearchParams(25)),)


def test_an_effort_says_itself():
    assert (SearchParams(48).to_label(), SearchParams(48, 150).to_label()) == ("48", "48 × 150")
    assert TuningPoint(10, 48, 150, 0.99, 0.001, 0.3).search_params == SearchParams(48, 150)


def line(*widths):
    return FilteredSearchParams(tuple(WidthAtRank(rank, width, width) for rank, width in widths))


def test_filters_say_how_far_to_look_and_k_how_many_to_score():
    curve = SearchParamCurve(
        [(100, SearchParams(10, 150)), (500, SearchParams(12, 600))], line((1000, 40), (10_000, 30))
    )
    assert curve.look_up(100) == SearchParams(10, 150)
    assert curve.look_up(1000) == SearchParams(24, 1200)  # the nearest are found more easily than those at their end
    assert curve.look_up(100, rank=500) == SearchParams(12, 150)
    assert curve.look_up(100, rank=750) == SearchParams(26, 150)
    assert curve.look_up(100, rank=1000) == SearchParams(40, 150)
    assert curve.look_up(300, rank=10_000) == SearchParams(40, 375)  # further is never nearer


def test_beyond_the_last_rank_widths_grow_as_they_did_before():
    points = [(100, SearchParams(10, 150))]
    assert SearchParamCurve(points, line((1000, 40), (10_000, 30))).look_up(100, rank=20_000) == SearchParams(40, 150)
    twice_at_four_times = SearchParamCurve(points, line((1000, 40), (4000, 80)))
    assert twice_at_four_times.look_up(100, rank=16_000) == SearchParams(160, 150)
    assert SearchParamCurve(points, line((1000, 40))).look_up(100, rank=4000) == SearchParams(160, 150)


def test_others_than_the_nearest_may_need_more_depth():
    curve = SearchParamCurve(
        [(100, SearchParams(10, 150))], FilteredSearchParams((WidthAtRank(1000, 40, 40),), depth_factor=1.5)
    )
    assert curve.look_up(100) == SearchParams(10, 150)
    assert curve.look_up(100, rank=1000) == SearchParams(40, 225)


def test_the_more_of_the_nearest_are_dropped_the_more_the_last_rows_count():
    curve = SearchParamCurve([(100, SearchParams(10))], FilteredSearchParams((WidthAtRank(1000, 40, 90),)))
    assert curve.look_up(100, rank=1000).width == 40
    assert curve.look_up(100, rank=1000, excluded_count=25).width == 60  # half of the way, by their ratio
    assert curve.look_up(200, rank=1000, excluded_count=200).width == 90
