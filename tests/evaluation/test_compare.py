"""Evaluation of a model, its index and the baselines on random histories, and its JSON and report."""

import dataclasses
import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
from support.dense_evaluation import to_blocks, to_dense

from vecall.data.ragged import EvalCases, RaggedArray
from vecall.evaluation import baseline_memory, baselines, compare, sampling
from vecall.evaluation.compare import WITH_HISTORY, IndexScorer, ServedModel, evaluate_all
from vecall.evaluation.report_builder import write_evaluation_report
from vecall.index.exact import ExactIndex
from vecall.index.planner import CostModel

ITEMS, USERS, DIM = 40, 12, 4
WITHOUT_HISTORY = 3  # the last users

rng = np.random.default_rng(0)
VECTORS = rng.standard_normal((ITEMS, DIM)).astype(np.float16).astype(np.float32)
ORDERS = [rng.permutation(ITEMS) for _ in range(USERS)]
HISTORIES = [order[: 4 + user % 3] if user < USERS - WITHOUT_HISTORY else [] for user, order in enumerate(ORDERS)]
CASES = EvalCases(
    np.arange(USERS), RaggedArray.from_lists(HISTORIES), RaggedArray.from_lists([order[10:12] for order in ORDERS])
)


def encode_users(cases):
    sums = [VECTORS[cases.histories[case]].sum(axis=0) for case in range(len(cases))]
    return np.array(sums, dtype=np.float32)


def score(cases):
    return encode_users(cases) @ VECTORS.T


@pytest.fixture
def served_model():
    return ServedModel(
        encode_users=encode_users,
        index=ExactIndex.build(VECTORS),
        search_param_curve=None,
        engine="exact",
        cost_model=CostModel(0.0, 0.0, 0.0, 1.0),
        has_features_by_user=np.zeros(USERS, dtype=bool),
        reads_history=True,
    )


@pytest.fixture
def evaluate(served_model):
    dataset = SimpleNamespace(catalogue=SimpleNamespace(items=range(ITEMS)), dropped_counts={"bad rows": 2})
    train = RaggedArray.from_lists([order[:8] for order in ORDERS])
    split = SimpleNamespace(
        train=train,
        counted_train=train,
        valid=CASES,
        test=CASES,
        protocol="each user's last two items are the test",
        user_counts_by_reason={},
    )
    return lambda **options: evaluate_all(
        dataset, split, to_blocks(score), served_model, (5, 10), (10, 1000), **options
    )


def test_exact_index_has_the_metrics_of_the_model(evaluate):
    report = evaluate()
    assert list(report.results) == ["model", "index", "ease", "cooccurrence", "popularity"]
    assert report.results["index"].as_json()["seen_excluded"] == report.results["model"].as_json()["seen_excluded"]
    assert [(result.k, result.recall) for result in report.ann_results] == [(10, 1.0)]


def test_users_without_history_are_served_popular_items(evaluate):
    report = evaluate()
    assert report.first_k_route_counts == {
        "index": 0,
        "scan": USERS - WITHOUT_HISTORY,
        "all": 0,
        "popular": WITHOUT_HISTORY,
    }
    assert report.route_summary == (
        "recall answers the evaluated users at k = 10: 9 by a scan of all items (exact; no index search would be "
        "faster), 3 with popular items"
    )
    assert any(sentence.startswith("3 of these users have no history") for sentence in report.protocol)


def test_ann_ks_beyond_the_item_count_are_skipped_or_replaced_by_it(served_model):
    assert compare._limit_ks_to_index_size(served_model, (10, ITEMS, 1000)) == [10, ITEMS]
    assert compare._limit_ks_to_index_size(served_model, (1000, 2000)) == [ITEMS]


def test_json_has_the_public_keys(evaluate):
    payload = json.loads(json.dumps(evaluate().as_json()))
    models = {"model", "popularity", "ease", "cooccurrence", "index"}
    others = {"protocol", "dropped", "comparison", "merged", "channels", "with_history", "segments", "ann"}
    assert payload.keys() == others | models
    assert payload["comparison"].keys() == {
        *("level", "metric", "model", "baseline", "difference", "ci95", "message"),
    }
    assert payload["segments"] == {}
    assert payload[WITH_HISTORY].keys() == models
    assert payload["dropped"] == {"bad rows": 2}
    assert payload["ann"]["paths"]["popular"] == WITHOUT_HISTORY
    assert payload["ann"]["others"] == []


def test_baseline_that_is_too_large_is_skipped(evaluate, monkeypatch, caplog):
    monkeypatch.setattr(baselines, "MAX_EASE_DIM", 5)
    with caplog.at_level(logging.WARNING):
        report = evaluate()
    assert "skipped baseline ease: EASE inverts a matrix" in caplog.text
    assert "ease" not in report.results
    assert report.as_json()["ease"] is None
    assert report.protocol[-1].startswith("ease was skipped: EASE inverts a matrix")


def test_baselines_that_do_not_fit_into_memory_are_skipped_with_the_reason(evaluate, monkeypatch, caplog):
    monkeypatch.setattr(baseline_memory, "available_memory_bytes", lambda: 100)
    with caplog.at_level(logging.WARNING):
        report = evaluate()
    payload = report.as_json()
    assert list(report.results) == ["model", "index", "popularity"]
    assert payload["ease"] is payload["cooccurrence"] is payload["with_history"]["ease"] is None
    for name, title in (("ease", "EASE"), ("cooccurrence", "co-occurrence")):
        reason = f"{title} would need about 0.0 GiB of memory, and 0.0 GiB are free"
        assert f"skipped baseline {name}: {reason}" in caplog.text
        assert f"{name} was skipped: {reason}" in payload["protocol"]


def test_large_evaluation_ranks_a_sample_of_users_and_says_so(evaluate, monkeypatch):
    full = evaluate()
    assert full.protocol[1].startswith("12 users evaluated over 40 items (standard error of the model's recall@10: 0.")
    monkeypatch.setattr(sampling, "MAX_FULL_PAIRS", USERS * ITEMS - 1)
    monkeypatch.setattr(sampling, "SAMPLE_SIZE", 7)
    report = evaluate()
    assert {result.evaluated_user_count for result in report.results.values()} == {7}
    error = report.results["model"].standard_errors["recall@10"]
    assert report.protocol[1].startswith(
        "7 of 12 users, a fixed random sample, evaluated over 40 items (standard error of the model's recall@10: "
        f"{error:.4f}; --all-users evaluates all of them)"
    )
    assert sum(report.first_k_route_counts.values()) == 7
    assert evaluate().as_json()["model"] == report.as_json()["model"]
    assert evaluate(all_users=True).as_json()["model"] == full.as_json()["model"]


def test_index_scorer_finds_k_rows_beyond_the_history(served_model):
    scores = to_dense(IndexScorer(served_model, 6), CASES, ITEMS)
    found = np.isfinite(scores)
    assert found.sum(axis=1).tolist() == [6 + len(history) for history in HISTORIES]
    np.testing.assert_allclose(scores[found], score(CASES)[found], rtol=1e-5, atol=1e-5)


def test_report_is_written_with_the_headline(evaluate, tmp_path):
    report = evaluate()
    write_evaluation_report(tmp_path / "report.html", report, title="shop")
    page = (tmp_path / "report.html").read_text("utf-8")
    recall = report.results["model"].seen_excluded["recall@10"]
    assert (
        f"The model&#39;s top 10 items contain {recall:.1%} of the held-out items; recall@10 of the baselines" in page
    )
    assert "<h2>Plots</h2>" in page
    assert page.index(report.comparison.message.split(",")[0].replace("'", "&#39;")) < page.index("The model&#39;s top")
    assert "Metrics by segment" not in page


def test_model_and_baselines_have_metrics_by_segment(evaluate, tmp_path):
    report = evaluate(segments=("history_length", "item_popularity"))
    segments = json.loads(json.dumps(report.as_json()))["segments"]
    assert list(segments) == ["history_length", "item_popularity"]
    buckets = segments["history_length"]
    assert {bucket: (values["users"], values["targets"]) for bucket, values in buckets.items()} == {
        "0": (3, 6),
        "1-4": (3, 6),
        "5-9": (6, 12),
    }
    assert set(buckets["0"]["baselines"]) == {"ease", "cooccurrence", "popularity"}
    assert buckets["0"]["recall@10"] == buckets["0"]["baselines"]["popularity"]["recall@10"]  # the fallback
    known = report.results["model"].group_metrics[WITH_HISTORY][0]
    for metric in ("recall@5", "recall@10", "ndcg@10"):
        values = [buckets[bucket][metric] * buckets[bucket]["users"] for bucket in ("1-4", "5-9")]
        assert sum(values) / 9 == pytest.approx(known[metric])
    write_evaluation_report(tmp_path / "report.html", report, title="shop")
    page = (tmp_path / "report.html").read_text("utf-8")
    assert page.index("Metrics by segment") < page.index(">1-4<") < page.index("Excluded from evaluation")


def test_report_says_first_that_the_model_is_below_a_baseline(evaluate, tmp_path):
    report = evaluate()
    worse = dataclasses.replace(
        report.results["model"], recall_by_user=np.zeros_like(report.results["model"].recall_by_user)
    )
    better = dataclasses.replace(worse, recall_by_user=np.ones_like(worse.recall_by_user))
    report = dataclasses.replace(report, results=report.results | {"model": worse, "ease": better})
    write_evaluation_report(tmp_path / "report.html", report, title="shop")
    page = (tmp_path / "report.html").read_text("utf-8")
    first_line = page[page.index("<h1>") : page.index('<p class="lead">')]
    assert 'class="comparison below"' in first_line
    assert "The model&#39;s recall@5, 0.000, is below that of ease, 1.000 (−1.000 ± 0.000)" in first_line
    assert "model.preset" in first_line
