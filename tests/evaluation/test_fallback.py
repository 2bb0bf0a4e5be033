import numpy as np
import pytest

from vecall.data.ragged import EvalCases, RaggedArray
from vecall.evaluation.evaluator import evaluate_scorer
from vecall.evaluation.fallback import FallbackScorer

POPULARITY = np.array([3.0, 1.0, 9.0, 0.0], dtype=np.float32)


def cases(*histories, users=None):
    targets = RaggedArray.from_lists([[3]] * len(histories))
    return EvalCases(
        np.arange(len(histories)) if users is None else np.array(users), RaggedArray.from_lists(histories), targets
    )


def scorer(part):
    return np.tile(np.array([0.1, 0.9, -0.5, 0.3], dtype=np.float32), (len(part), 1))


@pytest.mark.parametrize(
    ("reads_history", "has_features", "unknown"),
    [
        (True, None, [False, True, True]),
        (True, np.array([False, True, False]), [False, False, True]),
        (False, np.array([False, True, False]), [True, False, True]),
        (False, None, [True, True, True]),
    ],
)
def test_who_is_served_what_is_popular(reads_history, has_features, unknown):
    served = FallbackScorer(scorer, POPULARITY, reads_history=reads_history, has_features=has_features)
    part = cases([0], [], [])
    assert served.is_unknown(part).tolist() == unknown
    orders = [np.argsort(-row).tolist() for row in served(part)]
    assert orders == [[2, 0, 1, 3] if popular else [1, 3, 0, 2] for popular in unknown]


def test_popular_items_are_ordered_by_their_counts_and_ties_stay_ties():
    counts = np.array([0, 1, 1, 2**22, 2**22 - 1], dtype=np.float32)
    row = FallbackScorer(lambda part: np.zeros((len(part), 5), np.float32), counts)(cases([]))[0]
    assert row[1] == row[2]
    assert np.argsort(-row, kind="stable").tolist() == [3, 4, 1, 2, 0]
    assert np.abs(row).max() <= 1  # beside cosines in a plot


def test_both_are_told_with_and_without_those_who_have_no_history():
    """Item 3 is last by popularity, and second by the scorer: by hand."""
    part = cases([0], [0], [])
    groups = {"with_history": part.histories.lengths > 0}
    judged = evaluate_scorer(FallbackScorer(scorer, POPULARITY), part, 4, (2, 3), group_masks=groups)
    assert judged.seen_excluded["recall@2"] == pytest.approx(2 / 3)
    assert judged.group_metrics["with_history"][0]["recall@2"] == 1.0
    assert judged.as_json("with_history")["seen_included"]["recall@2"] == 1.0
    assert judged.as_json()["seen_included"]["recall@3"] == pytest.approx(2 / 3)
    nobody = evaluate_scorer(scorer, part, 4, (2,), group_masks={"nobody": np.zeros(3, dtype=bool)})
    assert nobody.as_json("nobody")["seen_excluded"]["recall@2"] is None
