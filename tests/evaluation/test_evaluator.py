import numpy as np
import pytest

from vecall.data.ragged import EvalCases, RaggedArray
from vecall.errors import DataError
from vecall.evaluation.evaluator import evaluate_scorer
from vecall.evaluation.metrics import rank_targets, recall_at_k

ITEMS = 30


def cases_of(histories, targets):
    return EvalCases(np.arange(len(histories)), RaggedArray.from_lists(histories), RaggedArray.from_lists(targets))


def random_cases(users=37, seed=0):
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(ITEMS) for _ in range(users)]
    return cases_of(
        [row[: 1 + user % 9] for user, row in enumerate(drawn)], [row[10 : 11 + u % 3] for u, row in enumerate(drawn)]
    )


def scores_of(cases):
    return np.random.default_rng(5).random((100, ITEMS)).astype(np.float32).round(1)[cases.users]


def test_a_target_seen_before_is_judged_only_where_seen_items_are_ranked():
    cases = cases_of([[0, 1, 1], [2], [4]], [[1, 3], [2], [5]])
    descending = np.tile(np.arange(6, 0, -1, dtype=np.float32), (3, 1))
    judgement = evaluate_scorer(lambda part: descending[: len(part)], cases, 6, (1, 2, 3))
    assert (judgement.user_count, judgement.target_count) == (3, 4)
    assert (judgement.repeat_target_count, judgement.dropped_user_count) == (2, 1)
    # Unseen of user 0: 2, 3, 4, 5; of user 2: 0, 1, 2, 3, 5. Targets left: 3 at rank 1, 5 at rank 4.
    assert judgement.seen_excluded["recall@1"] == 0.0
    assert judgement.seen_excluded["recall@2"] == pytest.approx(1 / 2)
    assert judgement.seen_included["recall@2"] == pytest.approx((1 / 2 + 0 + 0) / 3)
    assert judgement.seen_included["recall@3"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert judgement.seen_excluded["coverage@10"] == 1.0


def test_json_has_the_public_keys():
    got = evaluate_scorer(scores_of, random_cases(), ITEMS, (10, 20)).as_json()
    assert list(got) == ["seen_excluded", "seen_included"]
    for metrics in got.values():
        assert list(metrics) == ["recall@10", "recall@20", "ndcg@10", "coverage@10"]
        assert all(type(value) is float and 0.0 <= value <= 1.0 for value in metrics.values())


def test_batches_change_nothing():
    cases = random_cases()
    whole, pieces = (evaluate_scorer(scores_of, cases, ITEMS, (3, 10), batch_size=batch) for batch in (100, 7))
    assert whole.as_json() == pieces.as_json()
    np.testing.assert_array_equal(whole.sample.top_rows, pieces.sample.top_rows)
    ranks = rank_targets(scores_of(cases), cases.targets, cases.histories)
    assert whole.seen_excluded["recall@3"] == recall_at_k(ranks, cases.targets.offsets, 3)


def test_a_constant_model_scores_nothing_and_a_prophet_everything():
    cases = random_cases()
    constant = evaluate_scorer(lambda part: np.ones((len(part), ITEMS), np.float32), cases, ITEMS, (10,))

    def prophet(part):
        scores = np.random.default_rng(0).random((len(part), ITEMS)).astype(np.float32)
        scores[part.targets.owners, part.targets.rows] += 1.0
        scores[part.histories.owners, part.histories.rows] -= 1.0
        return scores

    for metrics in constant.as_json().values():
        assert metrics["recall@10"] == metrics["ndcg@10"] == 0.0
    perfect = evaluate_scorer(prophet, cases, ITEMS, (10,))
    assert perfect.seen_excluded["recall@10"] == perfect.seen_included["recall@10"] == 1.0
    assert perfect.seen_excluded["ndcg@10"] == pytest.approx(1.0)
    assert perfect.sample.target_scores.min() >= 1.0 > perfect.sample.negative_scores.max()
    assert perfect.sample.negative_scores.min() >= 0.0


def test_the_sample_holds_unseen_rows_of_its_users():
    cases = random_cases()
    sample = evaluate_scorer(scores_of, cases, ITEMS, (10,), max_sample_users=9, batch_size=8, seed=3).sample
    assert len(sample.case_indices) == 9
    assert (np.diff(sample.case_indices) > 0).all()
    for position, top in zip(sample.case_indices, sample.top_rows, strict=True):
        assert len(top) == 100
        assert set(top[top >= 0]) == set(range(ITEMS)) - set(cases.histories[position])
    assert len(sample.target_scores) == cases.targets.lengths[sample.case_indices].sum()
    assert 0 < len(sample.negative_scores) <= 20 * 9


def test_wrong_shapes_and_empty_splits_are_refused():
    with pytest.raises(DataError, match="every item"):
        evaluate_scorer(lambda part: np.ones((len(part), 3), np.float32), random_cases(), ITEMS, (10,))
    with pytest.raises(DataError, match="no user"):
        evaluate_scorer(scores_of, cases_of([], []), ITEMS, (10,))
