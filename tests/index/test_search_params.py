import dataclasses
import math

import pytest

from vecall.index.base import SearchParams
from vecall.index.search_params import FilteredSearchTable, RecallTarget, SearchParamCurve, TuningPoint, WidthsAtRank

CURVE = SearchParamCurve([(10, SearchParams(40, 20)), (20, SearchParams(80, 30)), (50, SearchParams(144, 90))])


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (1, (40, 20)),  # the first point's
        (10, (40, 20)),
        (12, (48, 22)),
        (15, (60, 25)),  # halfway
        (20, (80, 30)),
        (25, (91, 40)),  # 80 + 5/30 · 64 = 90.67, rounded up
        (50, (144, 90)),
        (100, (288, 180)),  # proportional beyond the last point
    ],
)
def test_curve_by_hand(k, expected):
    assert CURVE.look_up(k) == CURVE.look_up(k, expected_rank=k) == SearchParams(*expected)


@pytest.mark.parametrize(
    ("k", "rank", "expected"), [(10, 20, (80, 20)), (12, 50, (144, 22)), (50, 5000, (14_400, 90)), (100, 15, (60, 180))]
)
def test_rank_determines_the_width_and_k_the_depth(k, rank, expected):
    assert CURVE.look_up(k, expected_rank=rank) == SearchParams(*expected)


def test_curve_of_one_point():
    curve = SearchParamCurve([(10, SearchParams(25))])
    assert [curve.look_up(k).width for k in (3, 10, 40, 11)] == [25, 25, 100, 28]
    assert curve.look_up(40) == SearchParams(100)
    assert curve.points == ((10, SearchParams(25)),)


def test_labels_and_parameters_of_a_point():
    assert (SearchParams(48).to_label(), SearchParams(48, 150).to_label()) == ("48", "48 × 150")
    assert TuningPoint(10, 48, 150, 0.99, 0.001, 0.3, 0.9, 0.95).search_params == SearchParams(48, 150, 0.95)
    assert SearchParams(48, 150, 0.95).to_dict() == {"width": 48, "rerank_depth": 150}


def test_point_reaches_the_target_with_its_lower_confidence_bound():
    point = TuningPoint(10, 48, 150, recall=0.75, recall_ci95=0.25, p50_ms=0.3, worst_recall=0.4)
    assert point.reaches_with_confidence(RecallTarget(0.5, 0.4))
    assert not point.reaches_with_confidence(RecallTarget(0.51, 0.4))
    assert not point.reaches_with_confidence(RecallTarget(0.5, 0.41))
    uncertain = dataclasses.replace(point, worst_ci95=0.25)
    assert uncertain.reaches_with_confidence(RecallTarget(0.5, 0.15))
    assert not uncertain.reaches_with_confidence(RecallTarget(0.5, 0.16))
    below_zero = dataclasses.replace(point, worst_ci95=0.5)
    assert below_zero.reaches_with_confidence(RecallTarget(0.5, 0))


def test_spread_is_interpolated_without_a_filter_and_constant_under_one():
    points = [(10, SearchParams(5, 20, 0.9)), (20, SearchParams(9, 30, 0.96))]
    curve = SearchParamCurve(points, FilteredSearchTable(depth_factor=1.5, spread=0.99))
    assert [curve.look_up(k).spread for k in (1, 10, 15, 20, 400)] == pytest.approx([0.9, 0.9, 0.93, 0.96, 0.96])
    assert curve.look_up(15, expected_rank=4000) == SearchParams(1800, 38, 0.99)
    # Without a filter, it is the nearer to that for filters the more of the rows that are fetched are dropped.
    spreads = [curve.look_up(10, expected_rank=10, excluded_count=n).spread for n in (0, 1, 5, 10)]
    assert spreads == pytest.approx([0.9, 0.9 * 1.1 ** math.sqrt(0.1), 0.9 * 1.1 ** math.sqrt(0.5), 0.99])
    assert curve.look_up(10, expected_rank=11, excluded_count=1).spread == 0.99


def make_filtered_params(*widths):
    return FilteredSearchTable(tuple(WidthsAtRank(rank, width, width) for rank, width in widths))


def test_curve_under_filters_by_hand():
    curve = SearchParamCurve(
        [(100, SearchParams(10, 150)), (500, SearchParams(12, 600))], make_filtered_params((1000, 40), (10_000, 30))
    )
    assert curve.look_up(100) == SearchParams(10, 150)
    assert curve.look_up(1000) == SearchParams(24, 1200)  # without a filter the filtered widths do not apply
    assert curve.look_up(100, expected_rank=500) == SearchParams(12, 150)
    assert curve.look_up(100, expected_rank=750) == SearchParams(26, 150)
    assert curve.look_up(100, expected_rank=1000) == SearchParams(40, 150)
    assert curve.look_up(300, expected_rank=10_000) == SearchParams(40, 375)  # widths never fall with the rank


def test_width_beyond_the_last_rank_grows_by_the_last_power():
    points = [(100, SearchParams(10, 150))]
    flat = SearchParamCurve(points, make_filtered_params((1000, 40), (10_000, 30)))
    assert flat.look_up(100, expected_rank=20_000) == SearchParams(40, 150)
    square_root = SearchParamCurve(points, make_filtered_params((1000, 40), (4000, 80)))
    assert square_root.look_up(100, expected_rank=16_000) == SearchParams(160, 150)
    one_rank = SearchParamCurve(points, make_filtered_params((1000, 40)))
    assert one_rank.look_up(100, expected_rank=4000) == SearchParams(160, 150)


def test_depth_factor_applies_only_with_a_rank():
    curve = SearchParamCurve(
        [(100, SearchParams(10, 150))], FilteredSearchTable((WidthsAtRank(1000, 40, 40),), depth_factor=1.5)
    )
    assert curve.look_up(100) == SearchParams(10, 150)
    assert curve.look_up(100, expected_rank=1000) == SearchParams(40, 225)


def test_width_moves_to_the_tails_with_the_share_of_excluded_rows():
    curve = SearchParamCurve([(100, SearchParams(10))], FilteredSearchTable((WidthsAtRank(1000, 40, 90),)))
    assert curve.look_up(100, expected_rank=1000).width == 40
    # Geometric mean: sqrt(25 / 100) is half.
    assert curve.look_up(100, expected_rank=1000, excluded_count=25).width == 60
    assert curve.look_up(200, expected_rank=1000, excluded_count=200).width == 90
