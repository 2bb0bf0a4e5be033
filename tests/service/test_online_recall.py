"""ANN recall of real requests, by hand."""

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


def answered(recaller: Recaller, seed=0, **more):
    vector = np.random.default_rng(seed).standard_normal(8)
    return recaller.recall_with_trace(Query(vector=vector, k=10, **more))


def everything(seed, **more):
    return Query(vector=np.random.default_rng(seed).standard_normal(8), k=50, exclude=[1, 2, 3], **more)


def test_exact_answers_have_recall_1(recaller):
    judge = OnlineRecallMonitor(1.0)
    recaller.upsert([{"id": 5000, "vector": [1.0] * 8}])
    recaller.delete([7, 8])
    for seed in range(5):
        judge._evaluate_sample("scan", answered(recaller, seed, exclude=[1, 2, 3]))
    assert judge.estimate_by_path()["scan"].mean == 1.0
    assert judge.estimate_by_path()["scan"].sample_count == 5


def test_it_is_exact_whatever_is_scanned_at_once(recaller, monkeypatch):
    recaller.upsert([{"id": 5000, "vector": [1.0] * 8}])
    recaller.delete([7, 8])
    made = answered(recaller, 3, exclude=[1, 2, 3])
    rests = []
    for at_once in (8, 104, 4096):
        monkeypatch.setattr(search, "_GROUND_TRUTH_CHUNK_ROWS", at_once)
        exact = search.compute_ground_truth_rows(
            made.snapshot,
            made.resolved_query.query_matrix,
            made.resolved_query.excluded_rows,
            None,
            50,
            throttle=lambda: rests.append(1),
        )
        assert exact.tolist() == made.snapshot.to_rows(recaller.recall(everything(3)).ids).tolist()
    assert len(rests) == 250 + 20 + 1


def test_judging_takes_a_small_share_of_a_core():
    began, rest = time.perf_counter(), online_recall._CpuThrottle(threading.Event())
    cpu = time.thread_time()
    for _ in range(3):
        np.linalg.svd(np.random.default_rng(0).standard_normal((60, 60)))
        rest()
    assert time.thread_time() - cpu < 2 * online_recall._MAX_CPU_SHARE * (time.perf_counter() - began)


def test_what_an_answer_lacks_is_counted(recaller):
    made = answered(recaller)
    rows = made.search_result.rows.copy()
    rows[:3] = [1998, 1999, 1997]
    lacking = SimpleNamespace(
        snapshot=made.snapshot,
        resolved_query=made.resolved_query,
        filter_mask=None,
        search_result=SimpleNamespace(rows=rows, route="index"),
        answer=None,
    )
    judge = OnlineRecallMonitor(1.0)
    judge._evaluate_sample("index", lacking)
    assert judge.estimate_by_path()["index"].mean == 0.7


def test_it_samples_and_never_waits(recaller):
    made, judge = answered(recaller), OnlineRecallMonitor(0.25, seed=1)
    for _ in range(40):
        judge.maybe_sample("index", made)
    assert 3 <= judge._queue.qsize() <= online_recall._QUEUE_SIZE
    none, all_of_them = OnlineRecallMonitor(0.0), OnlineRecallMonitor(1.0)
    for _ in range(100):
        none.maybe_sample("index", made)
        all_of_them.maybe_sample("index", made)
    assert none._queue.qsize() == 0
    assert all_of_them._queue.qsize() == online_recall._QUEUE_SIZE


def test_the_interval_by_hand():
    known = estimate_recall([1.0] * 96 + [0.0] * 4)  # Wilson's for 96 of 100
    assert (known.sample_count, known.mean) == (100, 0.96)
    assert (round(known.lower, 4), round(known.upper, 4)) == (0.9016, 0.9843)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_the_interval_holds_the_mean(shares):
    known = estimate_recall(shares)
    assert 0 <= known.lower <= known.mean + 1e-9
    assert known.mean - 1e-9 <= known.upper <= 1


def test_no_drift_of_the_golden_queries_themselves(recaller):
    usual = compute_golden_scores(recaller.live_index.snapshot.release)
    assert usual is not None
    assert compute_psi(usual, usual) == pytest.approx(0.0, abs=0.02)
    assert compute_psi(usual, usual + 3) > 1


def test_stability_index_by_hand():
    usual, now = np.repeat(np.arange(10.0), 10), np.repeat(np.arange(10.0), np.r_[[10] * 8, 15, 5])
    # Two of ten bins differ: (.1 - .15) ln(.1/.15) + (.1 - .05) ln(.1/.05).
    expected = -0.05 * np.log(0.1 / 0.15) + 0.05 * np.log(2)
    assert compute_psi(usual, now) == pytest.approx(expected, abs=1e-9)


def test_drift_begins_anew_with_a_release(recaller):
    drift, release = DriftMonitor(), recaller.live_index.snapshot.release
    for seed in range(150):
        query = everything(seed, history=[1, 9999])
        drift.observe(recaller.recall_with_trace(query), query, current_release=release)
    told = {metric.name: metric for metric in drift.collect()}
    assert told["vecall_drift_score_psi"].samples[0].value < 0.25
    shares = {sample.labels["what"]: sample.value for sample in told["vecall_unknown_share"].samples}
    assert shares == {"history": 0.5}  # no user was named
    other = replace(release, manifest=release.manifest.model_copy(update={"name": "other"}))
    drift.observe(answered(recaller), everything(0), current_release=other)  # of the release before
    assert [metric.samples for metric in drift.collect()] == [[], []]
