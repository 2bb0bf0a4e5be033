"""Online ANN recall and drift, against values computed by hand."""

import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecall.pipeline.publish_vectors import publish_vectors
from vecall.recall import search
from vecall.recall.query import Query
from vecall.recall.recaller import Recaller, open_recaller
from vecall.service.metrics import online_recall
from vecall.service.metrics.drift import DriftMonitor, compute_golden_scores, compute_psi
from vecall.service.metrics.online_recall import OnlineRecallMonitor, estimate_recall


@pytest.fixture
def recaller(tmp_path):
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((2000, 8)).astype(np.float32)
    queries = rng.standard_normal((300, 8)).astype(np.float32)
    publish_vectors(tmp_path / "store", list(range(2000)), vectors, queries=queries)
    with open_recaller(tmp_path / "store", writable=True, auto_compact=False) as opened:
        yield opened


def run_recall(recaller: Recaller, seed=0, **arguments):
    vector = np.random.default_rng(seed).standard_normal(8)
    return recaller.recall_with_trace(Query(vector=vector, k=10, **arguments))


def make_query(seed, **arguments):
    return Query(vector=np.random.default_rng(seed).standard_normal(8), k=50, exclude=[1, 2, 3], **arguments)


def test_exact_results_have_recall_1(recaller):
    monitor = OnlineRecallMonitor(1.0)
    recaller.upsert([{"id": 5000, "vector": [1.0] * 8}])
    recaller.delete([7, 8])
    for seed in range(5):
        monitor._evaluate_sample("scan", run_recall(recaller, seed, exclude=[1, 2, 3]))
    assert monitor.estimate_by_path()["scan"].mean == 1.0
    assert monitor.estimate_by_path()["scan"].sample_count == 5


def test_exact_search_does_not_depend_on_the_chunk_size(recaller, monkeypatch):
    recaller.upsert([{"id": 5000, "vector": [1.0] * 8}])
    recaller.delete([7, 8])
    trace = run_recall(recaller, 3, exclude=[1, 2, 3])
    throttle_calls = []
    for chunk_rows in (8, 104, 4096):
        monkeypatch.setattr(search, "_GROUND_TRUTH_CHUNK_ROWS", chunk_rows)
        exact = search.compute_ground_truth_rows(
            trace.snapshot,
            trace.resolved_query.query_matrix,
            trace.resolved_query.excluded_rows,
            None,
            50,
            throttle=lambda: throttle_calls.append(1),
        )
        assert exact.tolist() == trace.snapshot.to_rows(recaller.recall(make_query(3)).ids).tolist()
    assert len(throttle_calls) == 250 + 20 + 1


def test_throttle_limits_the_share_of_a_core():
    start, throttle = time.perf_counter(), online_recall._CpuThrottle(threading.Event())
    cpu_start = time.thread_time()
    for _ in range(3):
        np.linalg.svd(np.random.default_rng(0).standard_normal((60, 60)))
        throttle()
    assert time.thread_time() - cpu_start < 2 * online_recall._MAX_CPU_SHARE * (time.perf_counter() - start)


def test_missing_items_reduce_the_recall(recaller):
    trace = run_recall(recaller)
    rows = trace.search_result.vector_result.rows.copy()
    rows[:3] = [1998, 1999, 1997]
    incomplete = SimpleNamespace(
        snapshot=trace.snapshot,
        resolved_query=trace.resolved_query,
        filter_mask=None,
        search_result=SimpleNamespace(vector_result=SimpleNamespace(rows=rows, route="index")),
        answer=None,
    )
    monitor = OnlineRecallMonitor(1.0)
    monitor._evaluate_sample("index", incomplete)
    assert monitor.estimate_by_path()["index"].mean == 0.7


def test_estimates_are_of_the_release_that_answered_last(recaller, tmp_path):
    old_trace, monitor = run_recall(recaller), OnlineRecallMonitor(1.0)
    monitor._evaluate_sample("index", old_trace)
    monitor._evaluate_sample("scan", old_trace)
    vectors = np.random.default_rng(1).standard_normal((2000, 8)).astype(np.float32)
    recaller.activate(publish_vectors(tmp_path / "store", list(range(2000)), vectors, activate=False))
    new_trace = run_recall(recaller)
    assert new_trace.snapshot.release is not old_trace.snapshot.release
    monitor._evaluate_sample("index", new_trace)
    assert {path: estimate.sample_count for path, estimate in monitor.estimate_by_path().items()} == {"index": 1}


def test_sampling_follows_the_rate_and_never_blocks(recaller):
    trace, monitor = run_recall(recaller), OnlineRecallMonitor(0.25, seed=1)
    for _ in range(40):
        monitor.maybe_sample("index", trace)
    assert 3 <= monitor._queue.qsize() <= online_recall._QUEUE_SIZE
    never, always = OnlineRecallMonitor(0.0), OnlineRecallMonitor(1.0)
    for _ in range(100):
        never.maybe_sample("index", trace)
        always.maybe_sample("index", trace)
    assert never._queue.qsize() == 0
    assert always._queue.qsize() == online_recall._QUEUE_SIZE


def test_interval_of_96_hits_in_100():
    estimate = estimate_recall([1.0] * 96 + [0.0] * 4)
    assert (estimate.sample_count, estimate.mean) == (100, 0.96)
    assert (round(estimate.lower, 4), round(estimate.upper, 4)) == (0.9016, 0.9843)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_interval_contains_the_mean(recalls):
    estimate = estimate_recall(recalls)
    assert 0 <= estimate.lower <= estimate.mean + 1e-9
    assert estimate.mean - 1e-9 <= estimate.upper <= 1


def test_golden_scores_have_no_drift_against_themselves(recaller):
    reference = compute_golden_scores(recaller.live_index.snapshot.release)
    assert reference is not None
    assert compute_psi(reference, reference) == pytest.approx(0.0, abs=0.02)
    assert compute_psi(reference, reference + 3) > 1


def test_psi_of_two_changed_bins():
    reference, current = np.repeat(np.arange(10.0), 10), np.repeat(np.arange(10.0), np.r_[[10] * 8, 15, 5])
    # Two of ten bins differ: (0.1 - 0.15) ln(0.1 / 0.15) + (0.1 - 0.05) ln(0.1 / 0.05).
    expected = -0.05 * np.log(0.1 / 0.15) + 0.05 * np.log(2)
    assert compute_psi(reference, current) == pytest.approx(expected, abs=1e-9)


def test_drift_window_is_cleared_by_a_new_release(recaller):
    monitor, release = DriftMonitor(), recaller.live_index.snapshot.release
    for seed in range(150):
        query = make_query(seed, history=[1, 9999])
        monitor.observe(recaller.recall_with_trace(query), query, current_release=release)
    metrics = {metric.name: metric for metric in monitor.collect()}
    assert metrics["vecall_drift_score_psi"].samples[0].value < 0.25
    ratios = {sample.labels["kind"]: sample.value for sample in metrics["vecall_unknown_input_ratio"].samples}
    assert ratios == {"history": 0.5}  # the queries had no user id
    other = replace(release, manifest=release.manifest.model_copy(update={"name": "other"}))
    monitor.observe(run_recall(recaller), make_query(0), current_release=other)  # the old release answered
    assert [metric.samples for metric in monitor.collect()] == [[], []]
