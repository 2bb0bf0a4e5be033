"""Whether one more ranking would end in time."""

from vecall.ranking.ranker import NamedRanker
from vecall.recall.ranking_timer import RankingTimer

RANKER, OTHER = NamedRanker("a", len), NamedRanker("b", len)


def test_unknown_ranker_is_tried():
    assert RankingTimer().fits(RANKER, 0.0)


def test_median_of_the_latest_rankings_decides():
    timer = RankingTimer()
    for seconds in (9.0, 1.0, 1.0):  # the first one loads what it needs
        timer.record(RANKER, seconds)
    assert timer.fits(RANKER, 1.0)
    assert not timer.fits(RANKER, 0.9)


def test_ranker_is_tried_again_after_it_was_skipped():
    timer = RankingTimer()
    for _ in range(20):
        timer.record(RANKER, 1.0)
    assert [timer.fits(RANKER, 0.5) for _ in range(17)] == [False] * 16 + [True]


def test_times_of_another_ranker_are_forgotten():
    timer = RankingTimer()
    timer.record(RANKER, 5.0)
    assert timer.fits(OTHER, 1.0)
    timer.record(OTHER, 0.5)
    assert timer.fits(OTHER, 1.0)
    assert timer.fits(RANKER, 1.0)
