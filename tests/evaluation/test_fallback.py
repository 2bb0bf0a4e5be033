from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from support.dense_evaluation import to_blocks, to_dense

from vecall.data.ragged import EvalCases, RaggedArray
from vecall.evaluation.baseline_evaluation import build_baseline_factories
from vecall.evaluation.baselines import Popularity
from vecall.evaluation.evaluator import evaluate_scorer
from vecall.evaluation.fallback import FallbackScorer

POPULARITY = np.array([3.0, 1.0, 9.0, 0.0], dtype=np.float32)


def make_cases(*histories, users=None):
    targets = RaggedArray.from_lists([[3]] * len(histories))
    return EvalCases(
        np.arange(len(histories)) if users is None else np.array(users), RaggedArray.from_lists(histories), targets
    )


def score(batch):
    return np.tile(np.array([0.1, 0.9, -0.5, 0.3], dtype=np.float32), (len(batch), 1))


@pytest.mark.parametrize(
    ("reads_history", "has_features", "is_unknown"),
    [
        (True, None, [False, True, True]),
        (True, np.array([False, True, False]), [False, False, True]),
        (False, np.array([False, True, False]), [True, False, True]),
        (False, None, [True, True, True]),
    ],
)
def test_unknown_users_get_popular_items(reads_history, has_features, is_unknown):
    scorer = FallbackScorer(
        to_blocks(score), POPULARITY, reads_history=reads_history, has_features_by_user=has_features
    )
    cases = make_cases([0], [], [])
    assert scorer.get_unknown_user_mask(cases).tolist() == is_unknown
    rankings = [np.argsort(-row).tolist() for row in to_dense(scorer, cases, 4)]
    assert rankings == [[2, 0, 1, 3] if popular else [1, 3, 0, 2] for popular in is_unknown]


def test_popular_items_are_ordered_by_their_counts_and_ties_stay_ties():
    counts = np.array([0, 1, 1, 2**22, 2**22 - 1], dtype=np.float32)
    scorer = FallbackScorer(to_blocks(lambda batch: np.zeros((len(batch), 5), np.float32)), counts)
    scores = to_dense(scorer, make_cases([]), 5)[0]
    assert scores[1] == scores[2]
    assert np.argsort(-scores, kind="stable").tolist() == [3, 4, 1, 2, 0]
    assert np.abs(scores).max() <= 1  # plots show them beside cosines


def test_metrics_are_reported_for_all_users_and_for_groups():
    """Item 3 is the last by popularity, and the second by the scorer."""
    cases = make_cases([0], [0], [])
    groups = {"with_history": cases.histories.lengths > 0}
    result = evaluate_scorer(FallbackScorer(to_blocks(score), POPULARITY), cases, 4, (2, 3), group_masks=groups)
    assert result.seen_excluded["recall@2"] == pytest.approx(2 / 3)
    assert result.group_metrics["with_history"][0]["recall@2"] == 1.0
    assert result.as_json("with_history")["seen_included"]["recall@2"] == 1.0
    assert result.as_json()["seen_included"]["recall@3"] == pytest.approx(2 / 3)
    empty_group = evaluate_scorer(to_blocks(score), cases, 4, (2,), group_masks={"nobody": np.zeros(3, dtype=bool)})
    assert empty_group.as_json("nobody")["seen_excluded"]["recall@2"] is None


def test_context_does_not_make_a_user_known_to_a_scorer_that_does_not_read_it():
    context = pl.DataFrame({"device": ["phone", None]})
    cases = replace(make_cases([], []), context=context)
    reading, other = (FallbackScorer(to_blocks(score), POPULARITY, reads_context=reads) for reads in (True, False))
    assert reading.get_unknown_user_mask(cases).tolist() == [False, True]
    assert other.get_unknown_user_mask(cases).tolist() == [True, True]


def test_baselines_rank_users_without_a_history_by_popularity_whatever_their_context():
    train = RaggedArray.from_lists([[0, 2], [2, 1], [2, 0]])
    split = SimpleNamespace(counted_train=train, valid=make_cases([0]))
    cases = replace(make_cases([]), context=pl.DataFrame({"device": ["phone"]}))
    popularity = Popularity(train, 4)
    factories = build_baseline_factories(split, 4, popularity)
    scores = to_dense(factories["cooccurrence"]()[0], cases, 4)[0]
    assert np.argsort(-scores, kind="stable").tolist()[:3] == [2, 0, 1]
