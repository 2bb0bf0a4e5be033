import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support.dense_evaluation import rank_targets, to_blocks

from vecall import progress
from vecall.data.ragged import EvalCases, RaggedArray
from vecall.errors import DataError
from vecall.evaluation.evaluator import evaluate_scorer
from vecall.evaluation.metrics import recall_at_k

ITEMS = 30


def make_cases(histories, targets):
    return EvalCases(np.arange(len(histories)), RaggedArray.from_lists(histories), RaggedArray.from_lists(targets))


def make_random_cases(users=37, seed=0):
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(ITEMS) for _ in range(users)]
    return make_cases(
        [row[: 1 + user % 9] for user, row in enumerate(drawn)], [row[10 : 11 + u % 3] for u, row in enumerate(drawn)]
    )


def score_randomly(cases):
    return np.random.default_rng(5).random((100, ITEMS)).astype(np.float32).round(1)[cases.users]


random_scorer = to_blocks(score_randomly)


def test_seen_target_counts_only_with_seen_items_included():
    cases = make_cases([[0, 1, 1], [2], [4]], [[1, 3], [2], [5]])
    descending = np.tile(np.arange(6, 0, -1, dtype=np.float32), (3, 1))
    result = evaluate_scorer(to_blocks(lambda batch: descending[: len(batch)]), cases, 6, (1, 2, 3))
    assert (result.evaluated_user_count, result.target_count) == (3, 4)
    assert (result.repeat_target_count, result.all_repeat_user_count) == (2, 1)
    # Unseen of user 0: 2, 3, 4, 5; of user 2: 0, 1, 2, 3, 5. Targets left: 3 at rank 1, 5 at rank 4.
    assert result.seen_excluded["recall@1"] == 0.0
    assert result.seen_excluded["recall@2"] == pytest.approx(1 / 2)
    assert result.seen_included["recall@2"] == pytest.approx((1 / 2 + 0 + 0) / 3)
    assert result.seen_included["recall@3"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert result.seen_excluded["coverage@10"] == 1.0


class ThreadGroup:
    """Threads in place of processes."""

    def __init__(self, rank, shared, barrier):
        self.rank, self.size, self._shared, self._barrier = rank, len(shared), shared, barrier

    def gather_objects(self, value):
        self._shared[self.rank] = value
        self._barrier.wait(10)
        return list(self._shared)


@pytest.mark.parametrize(("size", "users"), [(3, 37), (2, 1)])
def test_processes_that_rank_a_part_each_return_the_result_of_a_single_one(size, users):
    cases, shared, barrier = make_random_cases(users), [None] * size, threading.Barrier(size)

    def evaluate(group):
        return evaluate_scorer(random_scorer, cases, ITEMS, (3, 10), batch_size=5, processes=group)

    with ThreadPoolExecutor(size) as pool:
        results = list(pool.map(evaluate, [ThreadGroup(rank, shared, barrier) for rank in range(size)]))
    alone = evaluate(None)
    for result in results:
        assert result.as_json() == alone.as_json()
        assert result.standard_errors == pytest.approx(alone.standard_errors, nan_ok=True)
        np.testing.assert_array_equal(result.sample.top_rows, alone.sample.top_rows)


def test_json_has_the_public_keys():
    payload = evaluate_scorer(random_scorer, make_random_cases(), ITEMS, (10, 20)).as_json()
    assert list(payload) == ["seen_excluded", "seen_included"]
    for metrics in payload.values():
        assert list(metrics) == ["recall@10", "recall@20", "ndcg@10", "coverage@10"]
        assert all(type(value) is float and 0.0 <= value <= 1.0 for value in metrics.values())


def test_result_does_not_depend_on_the_batch_size():
    cases = make_random_cases()
    whole, batched = (evaluate_scorer(random_scorer, cases, ITEMS, (3, 10), batch_size=size) for size in (100, 7))
    assert whole.as_json() == batched.as_json()
    np.testing.assert_array_equal(whole.sample.top_rows, batched.sample.top_rows)
    ranks = rank_targets(score_randomly(cases), cases.targets, cases.histories)
    assert whole.seen_excluded["recall@3"] == recall_at_k(ranks, cases.targets.offsets, 3)


def test_constant_scorer_has_zero_recall_and_perfect_scorer_full_recall():
    cases = make_random_cases()
    constant = evaluate_scorer(to_blocks(lambda batch: np.ones((len(batch), ITEMS), np.float32)), cases, ITEMS, (10,))

    def score_perfectly(batch):
        scores = np.random.default_rng(0).random((len(batch), ITEMS)).astype(np.float32)
        scores[batch.targets.segment_ids, batch.targets.values] += 1.0
        scores[batch.histories.segment_ids, batch.histories.values] -= 1.0
        return scores

    for metrics in constant.as_json().values():
        assert metrics["recall@10"] == metrics["ndcg@10"] == 0.0
    perfect = evaluate_scorer(to_blocks(score_perfectly), cases, ITEMS, (10,))
    assert perfect.seen_excluded["recall@10"] == perfect.seen_included["recall@10"] == 1.0
    assert perfect.seen_excluded["ndcg@10"] == pytest.approx(1.0)
    assert perfect.sample.target_scores.min() >= 1.0 > perfect.sample.negative_scores.max()
    assert perfect.sample.negative_scores.min() >= 0.0


def test_sample_holds_unseen_rows_of_its_users():
    cases = make_random_cases()
    sample = evaluate_scorer(random_scorer, cases, ITEMS, (10,), max_sample_users=9, batch_size=8, seed=3).sample
    assert len(sample.case_indices) == 9
    assert (np.diff(sample.case_indices) > 0).all()
    for case_index, rows in zip(sample.case_indices, sample.top_rows, strict=True):
        assert len(rows) == 100
        assert set(rows[rows >= 0]) == set(range(ITEMS)) - set(cases.histories[case_index])
    assert len(sample.target_scores) == cases.targets.lengths[sample.case_indices].sum()
    assert 0 < len(sample.negative_scores) <= 20 * 9


def test_wrong_shapes_and_empty_splits_are_refused():
    with pytest.raises(DataError, match=r"returned scores of shape \(37, 3\); expected .* = \(37, 30\)"):
        evaluate_scorer(lambda _: lambda *_: np.ones((37, 3), np.float32), make_random_cases(), ITEMS, (10,))
    with pytest.raises(DataError, match="no user to evaluate"):
        evaluate_scorer(random_scorer, make_cases([], []), ITEMS, (10,))


def test_standard_errors_are_those_of_the_recalls_over_users():
    cases = make_cases([[0], [2], [4]], [[1], [3], [5]])
    scorer = to_blocks(lambda batch: np.tile(np.arange(6, 0, -1, dtype=np.float32), (len(batch), 1)))
    result = evaluate_scorer(scorer, cases, 6, (1, 3))
    # Recalls at 1: 1, 0, 0.
    assert result.seen_excluded["recall@1"] == pytest.approx(1 / 3)
    assert result.standard_errors["recall@1"] == pytest.approx(np.std([1, 0, 0], ddof=1) / np.sqrt(3))
    assert result.headline_key == "recall@3"
    repeats = evaluate_scorer(scorer, make_cases([[0]], [[0]]), 6, (1, 100))
    assert np.isnan(repeats.standard_errors["recall@1"])
    assert repeats.headline_key == "recall@100"


def test_progress_counts_users():
    events = []

    class Listener:
        def start_task(self, task, total):
            events.append((task, total))
            return lambda steps=1, note="": events.append(steps)

        def stop_task(self):
            events.append("end")

    with progress.report_to(Listener()):
        evaluate_scorer(random_scorer, make_random_cases(), ITEMS, (3,), batch_size=16)
    assert events == [("ranking all items", 37), 16, 16, 5, "end"]
