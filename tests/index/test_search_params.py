import pytest

from vecall.index.base import Effort
from vecall.index.search_params import EffortCurve, EffortPoint, Filtered, Width

CURVE = EffortCurve([(10, Effort(40, 20)), (20, Effort(80, 30)), (50, Effort(144, 90))])


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
    assert CURVE.at(k) == CURVE.at(k, rank=k) == Effort(*effort)


@pytest.mark.parametrize(
    ("k", "rank", "effort"), [(10, 20, (80, 20)), (12, 50, (144, 22)), (50, 5000, (14_400, 90)), (100, 15, (60, 180))]
)
def test_the_rank_says_how_far_to_look_and_k_how_many_to_score(k, rank, effort):
    assert CURVE.at(k, rank=rank) == Effort(*effort)


def test_one_point_is_a_curve():
    curve = EffortCurve([(10, Effort(25))])
    assert (curve.at(3), curve.at(10), curve.at(40), curve.at(11)) == (Effort(25), Effort(25), Effort(100), Effort(28))
    assert curve.points == ((10, Effort(25)),)


def test_an_effort_says_itself():
    assert (Effort(48).label(), Effort(48, 150).label()) == ("48", "48 × 150")
    assert EffortPoint(10, 48, 150, 0.99, 0.001, 0.3).effort == Effort(48, 150)


def line(*widths):
    return Filtered(tuple(Width(rank, width, width) for rank, width in widths))


def test_filters_say_how_far_to_look_and_k_how_many_to_score():
    curve = EffortCurve([(100, Effort(10, 150)), (500, Effort(12, 600))], line((1000, 40), (10_000, 30)))
    assert curve.at(100) == Effort(10, 150)
    assert curve.at(1000) == Effort(24, 1200)  # the nearest are found more easily than those at their end
    assert curve.at(100, rank=500) == Effort(12, 150)
    assert curve.at(100, rank=750) == Effort(26, 150)
    assert curve.at(100, rank=1000) == Effort(40, 150)
    assert curve.at(300, rank=10_000) == Effort(40, 375)  # further is never nearer


def test_beyond_the_last_rank_widths_grow_as_they_did_before():
    points = [(100, Effort(10, 150))]
    assert EffortCurve(points, line((1000, 40), (10_000, 30))).at(100, rank=20_000) == Effort(40, 150)
    twice_at_four_times = EffortCurve(points, line((1000, 40), (4000, 80)))
    assert twice_at_four_times.at(100, rank=16_000) == Effort(160, 150)
    assert EffortCurve(points, line((1000, 40))).at(100, rank=4000) == Effort(160, 150)


def test_others_than_the_nearest_may_need_more_depth():
    curve = EffortCurve([(100, Effort(10, 150))], Filtered((Width(1000, 40, 40),), deeper=1.5))
    assert curve.at(100) == Effort(10, 150)
    assert curve.at(100, rank=1000) == Effort(40, 225)


def test_the_more_of_the_nearest_are_dropped_the_more_the_last_rows_count():
    curve = EffortCurve([(100, Effort(10))], Filtered((Width(1000, 40, 90),)))
    assert curve.at(100, rank=1000).width == 40
    assert curve.at(100, rank=1000, dropped=25).width == 60  # half of the way, by their ratio
    assert curve.at(200, rank=1000, dropped=200).width == 90
