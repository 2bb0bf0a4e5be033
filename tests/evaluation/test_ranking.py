"""Ranking by blocks of items against the dense formula, on scores with many ties."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.dense_evaluation import evaluate_densely, rank_targets, select_top_rows, to_blocks

from vecall.data.ragged import EvalCases, RaggedArray
from vecall.errors import DataError, TrainingError
from vecall.evaluation.evaluator import evaluate_scorer
from vecall.evaluation.ranking import rank_batch
from vecall.evaluation.scorer import VectorScorer

SCORES = np.array([[0.9, 0.8, 0.7, 0.6, 0.5], [0.1, 0.5, 0.5, 0.5, 0.2]], dtype=np.float32)
NO_PAIRS = RaggedArray.from_lists([[], []])


def rank(scores, targets, seen, *, depth=100, block_items=2):
    """Ranks of targets among unseen and among all items, and the best unseen rows."""
    pairs = targets.segment_ids, targets.values
    ranking = rank_batch(
        lambda start, stop: scores[:, start:stop],
        seen,
        pairs,
        n_items=scores.shape[1],
        depth=depth,
        block_items=block_items,
    )
    return *ranking.rank_targets(targets, ranking.pair_scores), ranking


@st.composite
def ranking_cases(draw):
    users, items = draw(st.integers(1, 4)), draw(st.integers(2, 9))
    few = st.sampled_from([-math.inf, -1.0, -0.0, 0.0, 0.5, 2.0, math.inf])  # few values make many ties
    scores = np.array(draw(st.lists(st.lists(few, min_size=items, max_size=items), min_size=users, max_size=users)))
    row = st.integers(0, items - 1)
    targets = [draw(st.lists(row, unique=True, min_size=1, max_size=3)) for _ in range(users)]
    seen = [draw(st.lists(row, max_size=6)) for _ in targets]  # with repeats, and with targets
    cases = EvalCases(np.arange(users), RaggedArray.from_lists(seen), RaggedArray.from_lists(targets))
    return scores.astype(np.float32), cases


@given(ranking_cases(), st.integers(1, 11), st.integers(1, 5), st.sampled_from([(1,), (2, 3), (1, 4, 9)]))
def test_evaluation_equals_that_of_all_scores_in_memory(case, block_items, batch_size, ks):
    scores, cases = case
    n_items = scores.shape[1]
    before = scores.copy()

    def score(batch):
        return scores[batch.users]

    result = evaluate_scorer(to_blocks(score), cases, n_items, ks, batch_size=batch_size, block_items=block_items)
    excluded, included, sample = evaluate_densely(score, cases, n_items, ks)
    np.testing.assert_equal(result.seen_excluded, excluded)
    np.testing.assert_equal(result.seen_included, included)
    np.testing.assert_array_equal(result.sample.case_indices, sample[0])
    np.testing.assert_array_equal(result.sample.top_rows, sample[1])
    np.testing.assert_array_equal(result.sample.target_scores, sample[2])
    np.testing.assert_array_equal(result.sample.negative_scores, sample[3])
    np.testing.assert_array_equal(scores, before)


@given(ranking_cases(), st.integers(1, 11), st.integers(1, 12))
def test_ranks_are_exact_below_the_depth_and_lower_bounds_beyond(case, block_items, depth):
    scores, cases = case
    seen, targets = cases.histories, cases.targets
    excluded, included, ranking = rank(scores, targets, seen, depth=depth, block_items=block_items)
    np.testing.assert_array_equal(ranking.top_rows, select_top_rows(scores, seen, min(depth, scores.shape[1])))
    expected = rank_targets(scores, targets, None)
    is_exact = expected < depth - 1
    np.testing.assert_array_equal(included[is_exact], expected[is_exact])
    assert (included[~is_exact] >= depth - 1).all() or depth > scores.shape[1]
    assert (included <= expected).all()
    for user, rows in enumerate(targets[user] for user in range(len(targets))):
        new_rows = rows[~np.isin(rows, seen[user])]
        expected = rank_targets(scores[[user]], RaggedArray.from_lists([new_rows]), seen.take(np.array([user])))
        ranks = excluded[targets.offsets[user] : targets.offsets[user + 1]][~np.isin(rows, seen[user])]
        np.testing.assert_array_equal(np.minimum(ranks, depth - 1), np.minimum(expected, depth - 1))


def test_random_evaluation_equals_the_dense_one_over_many_blocks():
    """More items than are kept per user, so that the best rows are selected again and again."""
    rng = np.random.default_rng(0)
    n_users, n_items = 40, 3_000
    for scores in (
        rng.random((n_users, n_items)),
        rng.integers(0, 40, (n_users, n_items)),
        np.ones((n_users, n_items)),
    ):
        scores = scores.astype(np.float32)
        histories = [rng.integers(0, n_items, rng.integers(0, 300)) for _ in range(n_users)]
        targets = [np.unique(rng.integers(0, n_items, 5)) for _ in range(n_users)]
        targets = [np.union1d(own, history[:1]) for own, history in zip(targets, histories, strict=True)]
        cases = EvalCases(np.arange(n_users), RaggedArray.from_lists(histories), RaggedArray.from_lists(targets))
        blocks = to_blocks(lambda batch, scores=scores: scores[batch.users])
        result = evaluate_scorer(blocks, cases, n_items, (5, 100), batch_size=16, block_items=128)
        excluded, included, sample = evaluate_densely(lambda _, scores=scores: scores, cases, n_items, (5, 100))
        assert result.seen_excluded == excluded
        assert result.seen_included == included
        np.testing.assert_array_equal(result.sample.top_rows, sample[1])


@pytest.mark.parametrize("n_items", [50, 64, 1001])
def test_equal_vectors_tie_in_all_blocks_so_a_constant_model_scores_zero(n_items):
    rng = np.random.default_rng(0)
    users = rng.standard_normal((30, 48)).astype(np.float32)
    items = np.tile(rng.standard_normal(48).astype(np.float32), (n_items, 1))
    cases = EvalCases(
        np.arange(30), RaggedArray.from_lists([[]] * 30), RaggedArray.from_lists(n_items - 1 - np.arange(30)[:, None])
    )
    scorer = VectorScorer(lambda batch: users[batch.users], items)
    metrics = evaluate_scorer(scorer, cases, n_items, (10, n_items - 1), block_items=64).seen_included
    assert metrics["recall@10"] == metrics[f"recall@{n_items - 1}"] == metrics["ndcg@10"] == 0.0


def test_no_array_of_users_by_items_is_allocated():
    n_users, n_items = 256, 60_000  # 61 MB of scores
    rng = np.random.default_rng(0)
    users, items = (rng.standard_normal((count, 4)).astype(np.float32) for count in (n_users, n_items))
    rows = RaggedArray.from_lists(rng.integers(0, n_items, (n_users, 1)))
    cases = EvalCases(np.arange(n_users), rows, rows)
    tracemalloc.start()
    evaluate_scorer(VectorScorer(lambda batch: users[batch.users], items), cases, n_items, (100,), block_items=1024)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6


def test_ranks_computed_by_hand():
    targets = RaggedArray.from_lists([[3, 1], [2]])
    assert rank(SCORES, targets, NO_PAIRS)[0].tolist() == [3, 1, 2]  # rows 1 and 3 tie with row 2 and rank above it
    seen = RaggedArray.from_lists([[0, 0, 2], [1]])
    assert rank(SCORES, targets, seen)[0].tolist() == [1, 0, 1]
    assert rank(SCORES, targets, seen)[1].tolist() == [3, 1, 2]


@pytest.mark.parametrize("column", range(5))
def test_scores_that_are_nan_are_refused_wherever_they_are(column):
    scores = SCORES.copy()
    scores[1, column] = np.nan
    for seen in ([[], []], [[], [column]]):
        with pytest.raises(TrainingError, match=r"1 of \d+ scores are NaN"):
            rank(scores, RaggedArray.from_lists([[0], []]), RaggedArray.from_lists(seen), depth=1)


def test_rows_beyond_the_items_are_refused():
    score = to_blocks(lambda batch: SCORES[: len(batch)])
    for histories, targets in (([[], []], [[0], [5]]), ([[], [-1]], [[0], [1]])):
        cases = EvalCases(np.arange(2), RaggedArray.from_lists(histories), RaggedArray.from_lists(targets))
        with pytest.raises(DataError, match="of the 5 scored items"):
            evaluate_scorer(score, cases, 5, (1,))
