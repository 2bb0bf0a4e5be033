"""A model is above, equal to or below the baselines: differences paired over users, by hand."""

import numpy as np
import pytest
from support.dense_evaluation import to_blocks

from vecall.data.ragged import EvalCases, RaggedArray
from vecall.evaluation.baseline_comparison import compare_with_baselines
from vecall.evaluation.evaluator import evaluate_scorer

ITEMS = 40


def evaluate_hits(hits):
    """Evaluate a scorer that finds the target of user u at rank 0 if `hits[u]`, else at the last rank."""
    users = len(hits)
    scores = np.random.default_rng(0).random((users, ITEMS)).astype(np.float32)
    scores[:, 0] = np.where(hits, 2.0, -1.0)
    cases = EvalCases(np.arange(users), RaggedArray.from_lists([[]] * users), RaggedArray.from_lists([[0]] * users))
    return evaluate_scorer(to_blocks(lambda batch: scores[batch.users]), cases, ITEMS, (2, 4, 8, 30))


def repeat(hits, misses):
    return np.repeat([True, False], [hits, misses])


def test_model_below_a_baseline_is_told_with_both_recalls_and_what_to_try():
    model, ease = repeat(10, 90), repeat(40, 60)
    comparison = compare_with_baselines(
        evaluate_hits(model), {"ease": evaluate_hits(ease), "popularity": evaluate_hits(repeat(5, 95))}
    )
    # 30 users whom EASE serves and the model does not, 70 with equal recalls.
    half_width = 1.96 * np.std([-1] * 30 + [0] * 70, ddof=1) / 10
    assert (comparison.level, comparison.metric, comparison.baseline) == ("below", "recall@4", "ease")
    assert (comparison.model, comparison.difference) == (pytest.approx(0.1), pytest.approx(-0.3))
    assert comparison.ci95 == pytest.approx(half_width)
    assert comparison.message == (
        f"The model's recall@4, 0.100, is below that of ease, 0.400 (−0.300 ± {half_width:.3f})."
    )
    for setting in ("model.preset", "training.epochs", "training.lr", "training.temperature", "vecall doctor"):
        assert setting in comparison.advice


def test_model_above_all_baselines_names_the_best_of_them_and_gives_no_advice():
    comparison = compare_with_baselines(
        evaluate_hits(repeat(60, 40)),
        {"ease": evaluate_hits(repeat(30, 70)), "cooccurrence": evaluate_hits(repeat(40, 60))},
    )
    assert (comparison.level, comparison.baseline, comparison.advice) == ("above", "cooccurrence", "")
    assert comparison.message.startswith(
        "The model's recall@4, 0.600, is above all baselines; the best is cooccurrence"
    )
    assert "0.400 (+0.200 ± 0.0" in comparison.message


def test_difference_of_few_users_is_noise():
    model = repeat(50, 50)
    ease = model.copy()
    ease[[0, 60, 61, 62]] = ~ease[[0, 60, 61, 62]]  # one user lost, three won
    comparison = compare_with_baselines(
        evaluate_hits(model), {"ease": evaluate_hits(ease), "popularity": evaluate_hits(repeat(9, 91))}
    )
    assert comparison.level == "equal"
    assert comparison.message.startswith(
        "The model's recall@4, 0.500, equals within noise that of ease, 0.520 (−0.020 ±"
    )
    assert comparison.advice


def test_pairing_over_users_sees_a_difference_that_is_less_than_the_noise_of_either():
    model = repeat(500, 500)
    ease = repeat(510, 490)
    results = evaluate_hits(model), evaluate_hits(ease)
    assert results[0].standard_errors["recall@4"] > 0.01
    assert compare_with_baselines(results[0], {"ease": results[1]}).level == "below"


def test_several_baselines_above_the_model_are_listed_best_first():
    comparison = compare_with_baselines(
        evaluate_hits(repeat(5, 95)),
        {"popularity": evaluate_hits(repeat(50, 50)), "ease": evaluate_hits(repeat(80, 20))},
    )
    assert "ease, 0.800 (−0.750" in comparison.message
    assert comparison.message.index("ease") < comparison.message.index(" and popularity, 0.500 (−0.450")


def test_difference_and_interval_are_those_of_a_baseline_that_the_sentence_names():
    """EASE finds most, but for other users, so that its difference is noise; co-occurrence is above for certain."""
    model = repeat(30, 70)
    others = np.roll(repeat(33, 67), 50)
    comparison = compare_with_baselines(
        evaluate_hits(np.tile(model, 4)),
        {"ease": evaluate_hits(np.tile(others, 4)), "cooccurrence": evaluate_hits(np.tile(repeat(32, 68), 4))},
    )
    assert (comparison.level, comparison.baseline) == ("below", "cooccurrence")
    assert "is below that of cooccurrence" in comparison.message
    assert comparison.difference == pytest.approx(-0.02)
    assert comparison.ci95 < 0.02


@pytest.mark.parametrize(("hit", "text"), [(True, "0.000 of a single user"), (False, "−1.000 of a single user")])
def test_single_user_decides_nothing(hit, text):
    comparison = compare_with_baselines(evaluate_hits(np.array([hit])), {"ease": evaluate_hits(np.array([True]))})
    assert (comparison.level, comparison.ci95) == ("equal", None)
    assert text in comparison.message


def test_equal_recalls_of_all_users_are_equal_and_without_baselines_nothing_is_compared():
    result = evaluate_hits(repeat(3, 4))
    assert compare_with_baselines(result, {"ease": result}).level == "equal"
    assert compare_with_baselines(result, {}) is None


@pytest.mark.parametrize(("items", "ks", "key"), [(2000, (10, 100, 500), "recall@100"), (40, (5, 10), "recall@5")])
def test_models_are_compared_at_a_depth_that_is_not_most_of_the_catalogue(items, ks, key):
    cases = EvalCases(np.arange(2), RaggedArray.from_lists([[1], [2]]), RaggedArray.from_lists([[3], [4]]))
    scorer = to_blocks(lambda batch: np.tile(np.arange(items, 0, -1, dtype=np.float32), (len(batch), 1)))
    result = evaluate_scorer(scorer, cases, items, ks)
    assert result.comparison_key == key
    assert result.recall_by_user.mean() == result.seen_excluded[key]


def test_recalls_by_user_include_seen_targets_only_if_all_are_seen():
    scorer = to_blocks(lambda batch: np.tile(np.arange(ITEMS, 0, -1, dtype=np.float32), (len(batch), 1)))

    def evaluate(histories, targets):
        lists = RaggedArray.from_lists(histories), RaggedArray.from_lists(targets)
        return evaluate_scorer(scorer, EvalCases(np.arange(len(histories)), *lists), ITEMS, (1,)).recall_by_user

    assert evaluate([[0], [0]], [[0], [1, 2]]).tolist() == [0.5]
    assert evaluate([[0], [1]], [[0], [1]]).tolist() == [1.0, 0.0]
