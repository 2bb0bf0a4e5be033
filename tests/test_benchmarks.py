"""The benchmarks run, at a size at which their figures mean nothing: in `make examples`, the longest in `make slow`."""

import json
import os
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from vecall.data.dataset import read_dataset

BENCHMARKS_DIR = Path(__file__).parents[1] / "benchmarks"
TINY_POOL = ["--pools", "2_000", "--labels", "balanced", "--known", "64", "--users", "16", "--rounds", "1"]
HAS_HNSWLIB = find_spec("hnswlib") is not None


def run_benchmark(name: str, *options: object) -> str:
    """Run a command of benchmarks/ and return its standard output."""
    command = [sys.executable, str(BENCHMARKS_DIR / name), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def benchmarks_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the package `harness` importable."""
    monkeypatch.syspath_prepend(BENCHMARKS_DIR)


@pytest.mark.slow
def test_dssm_baseline_measures_each_claim(tmp_path: Path) -> None:
    output = run_benchmark("dssm_baseline.py", "--quick", "--no-movielens", *TINY_POOL, "--out", tmp_path)
    result = json.loads((tmp_path / "dssm.json").read_text())["balanced"]["2000"]
    assert {"machine", "versions", "commit", "date", "command", "load_average"} <= result["facts"].keys()
    assert {"training", "build", "planted", "ann", "recall", "size", "identical", "claims"} <= result.keys()
    assert [claim["claim"].split(" ")[0] for claim in result["claims"]] == ["ANN", "one", "save"]
    assert result["identical"] == {"users": 16, "identical": 16}
    assert result["ann"]["searched_ef"] == result["ann"]["ladder"][0]["ef"] == 100
    assert result["ann"]["ladder"][-1]["ann_recall"] >= 0.98
    assert not result["recall"]["torch_loaded"]
    assert result["recall"]["paths"] == ["scan"]  # faster than the graph for 2,000 items
    assert "measuring 2,000 items" in output
    assert "claim of the DSSM baseline" in output


@pytest.mark.examples
def test_ann_compares_installed_libraries_and_keeps_the_result(tmp_path: Path) -> None:
    out, vectors = tmp_path / "ann.json", tmp_path / "real.npz"
    rng = np.random.default_rng(0)
    np.savez(vectors, items=rng.standard_normal((3000, 16), np.float32), queries=rng.standard_normal((60, 16)))
    names = ["ours", *(["hnswlib"] if HAS_HNSWLIB else [])]
    options = ["--vectors", vectors, "--k", 10, 50, "--rounds", 1, "--libraries", *names, "--out", out]
    output = run_benchmark("ann.py", *options)
    results = json.loads(out.read_text())["real 3000 x 16"]
    assert list(results["libraries"]) == list(results["latency"]["libraries"]) == names
    for name, library in results["libraries"].items():
        assert {"seconds", "threads", "peak_gib"} <= library["build"].keys()
        assert library["weigh"]["bytes_an_item"] > 0
        for k in ("10", "50"):
            assert library["tune"][k]["reached"]
            assert results["latency"]["libraries"][name][k]["recall"] > 0.9
    assert "bytes per item" in output
    assert "round 1" not in run_benchmark("ann.py", *options)  # everything is in the results file


@pytest.mark.examples
def test_filters_measure_each_cell_and_keep_the_result(tmp_path: Path) -> None:
    out = tmp_path / "filters.json"
    kinds = ["random", "opposed", *(["competitors"] if HAS_HNSWLIB else [])]
    options = ["--items", 3000, "--dims", 16, "--queries", 10, "--out", out, "--kinds", *kinds]
    output = run_benchmark("filters.py", *options)
    results = json.loads(out.read_text())["3000 x 16"]
    cells = results["random"]["cells"]
    assert len(cells) == len(results["opposed"]["cells"]) == 8 * 3 * 2
    assert all(cell["wrong_number"] == cell["unfit"] == 0 and cell["recall"] > 0.9 for cell in cells)
    near_pass_rate = {cell["rate"]: cell["near_pass"] for cell in results["opposed"]["cells"]}
    assert near_pass_rate[1.0] == 1.0
    assert near_pass_rate[0.1] < 0.1
    assert "exactly min(k, matches) rows, all valid: reached in all 96 cells" in output
    if HAS_HNSWLIB:
        methods = {cell["way"] for cell in results["competitors"]["cells"]}
        assert methods >= {"ours", "over-fetching", "hnswlib, callback"}
    assert "3000 x 16: random\n" not in run_benchmark("filters.py", *options)


@pytest.mark.usefixtures("benchmarks_path")
@pytest.mark.examples
def test_short_or_invalid_answer_is_counted() -> None:
    from harness.filters.grid import FilterCase, evaluate_answers
    from vecall.index.bitmap import Bitmap
    from vecall.index.filter_profile import FilterProfile
    from vecall.recall.filters import FilterMask

    mask = FilterMask(FilterProfile(Bitmap.from_mask(np.arange(10) != 9)), np.empty(0, np.bool_))
    case = FilterCase(np.zeros((1, 2), np.float32), mask, np.arange(9))  # the best two, 0 and 1, are excluded
    answers = {"right": [2, 3, 4], "short": [2, 3], "excluded": [0, 2, 3], "not passing": [2, 3, 9], "twice": [2, 2, 3]}
    results = {name: evaluate_answers([np.array(rows)], [case], n_excluded=2, k=3) for name, rows in answers.items()}
    wrong_number = {name: result["wrong_number"] for name, result in results.items()}
    assert wrong_number == dict.fromkeys(answers, 0) | {"short": 1}
    assert [name for name, result in results.items() if result["unfit"]] == ["excluded", "not passing", "twice"]
    assert [result["recall"] for result in results.values()] == [1.0, *[0.6667] * 4]


@pytest.mark.usefixtures("benchmarks_path")
@pytest.mark.examples
def test_profile_of_a_step_has_its_parts() -> None:
    from harness.training.step_profile import profile_steps
    from harness.training.synthetic_data import make_training_data
    from vecall.config import PRESETS
    from vecall.towers.settings import ModelSettings
    from vecall.towers.two_tower import TwoTower
    from vecall.training.module import TwoTowerModule
    from vecall.training.settings import TrainingSettings

    data = make_training_data(300, 6000)
    preset: dict[str, Any] = dict(PRESETS["sequence"])
    towers = TwoTower(ModelSettings(**preset["model"] | {"dim": 16}), data.item_specs, data.user_specs, data.n_items)
    settings = TrainingSettings(**preset["training"] | {"batch": 64, "loss": "softmax"})
    profile = profile_steps(TwoTowerModule(towers, data, settings), warmup_steps=1, steps=2)
    shares = profile["share"]
    assert list(shares) == [
        "backward of the towers",
        "batch",
        "item tower",
        "optimiser",
        "softmax, both ways",
        "user tower",
    ]
    assert all(share > 0 for share in shares.values())
    assert sum(shares.values()) == pytest.approx(1, abs=0.01)


@pytest.mark.slow
def test_huge_pages_are_compared_and_the_result_is_kept(tmp_path: Path) -> None:
    out, case = tmp_path / "huge-pages.json", "pooled, 10,000 items, softmax"
    output = run_benchmark("huge_pages.py", "--rounds", 1, "--cases", case, "--out", out)
    result = json.loads(out.read_text())["step"][case]
    assert result["ratio"] == pytest.approx(result["2 MiB"] / result["4 KiB"], abs=1e-3)
    assert case in output


@pytest.mark.usefixtures("benchmarks_path")
@pytest.mark.examples
def test_interrupted_write_of_clustered_vectors_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness import clustered_vectors
    from harness.clustered_vectors import ClusteredVectors

    monkeypatch.setattr(clustered_vectors, "BLOCK_ITEMS", 1000)
    pool, path = ClusteredVectors(2500, 8), tmp_path / "items.npy"
    make_block, block_indices = ClusteredVectors.make_block, []

    def interrupt_second_call(self: ClusteredVectors, block_index: int) -> Any:
        block_indices.append(block_index)
        if block_indices == [0, 1]:
            raise KeyboardInterrupt
        return make_block(self, block_index)

    monkeypatch.setattr(ClusteredVectors, "make_block", interrupt_second_call)
    with pytest.raises(KeyboardInterrupt):
        pool.write_npy(path)
    assert not path.exists()
    pool.write_npy(path)
    assert block_indices == [0, 1, 1, 2]
    assert (np.load(path) == np.concatenate([make_block(pool, index) for index in range(3)])).all()
    assert (pool.make_queries(5) == pool.make_queries(9)[:5]).all()


@pytest.mark.slow
def test_service_measures_http_beside_its_lower_bound(tmp_path: Path) -> None:
    options = ["--items", 3000, "--dim", 16, "--seconds", 0.3, "--rounds", 1, "--encoders", "causal"]
    output = run_benchmark("service.py", *options, "--work", tmp_path, "--out", tmp_path / "service.json")
    result = json.loads((tmp_path / "service.json").read_text())["causal"]
    assert result["ann_recall"] > 0.97
    assert set(result["by_processes"]) == {"1", str(os.cpu_count())}
    for measured in result["by_processes"].values():
        assert set(measured["http"]) == {"1", "2", "4", "8"}
        for load in [*measured["http"].values(), measured["open_at_60_percent"]]:
            assert load["failed"] < load["requests"]  # a machine that runs other tests misses deadlines
        assert measured["http"]["1"]["x_bare_p50"] > 1
        assert measured["bare_at_60_percent"]["requests"] > 0
    assert "1 worker, 8 connections" in output


@pytest.mark.slow
def test_service_measures_fixed_rates_memory_and_switches(tmp_path: Path) -> None:
    options = ["--rates", 3000, "--switches", "--switch-seconds", 3, "--dim", 16, "--seconds", 0.3, "--rounds", 1]
    output = run_benchmark("service.py", *options, "--work", tmp_path, "--rates-out", tmp_path / "rates.json")
    result = json.loads((tmp_path / "rates.json").read_text())["3000 items"]
    assert set(result["by_processes"]) == {"1", str(os.cpu_count())}
    for measured in result["by_processes"].values():
        assert measured["open_at_fixed_rate"]["requests"] > 0
        assert 0 < max(measured["memory"]["private_gib"]) <= measured["memory"]["total_gib"] + 0.001
    switches = result["switches"]
    assert (switches["switches"], switches["failed_or_mixed"]) == (2, 0)
    assert min(switches["answers_by_release"].values()) > 0
    assert "2 switches under" in output


@pytest.mark.slow
def test_service_measures_channels_beside_vectors_and_final_lists(tmp_path: Path) -> None:
    pytest.importorskip("lightgbm")
    options = ["--channels", "--items", 3000, "--dim", 16, "--seconds", 0.3, "--rounds", 1]
    output = run_benchmark("service.py", *options, "--work", tmp_path, "--out", tmp_path / "service.json")
    result = json.loads((tmp_path / "service.json").read_text())["channels"]
    assert set(result["asked"]) == {"vector", "similar", "popular", "fresh", "repeat"}
    for name in ("vectors", "channels", "lists", "lists_limit", "lists_open"):
        assert result[name]["failed"] < result[name]["requests"]
    assert result["channels_x_vectors_p50"] > 0
    assert "final list of 500 candidates" in output


@pytest.mark.examples
def test_soak_checker_detects_wrong_answers() -> None:
    # In a process of its own: soak.py is a command, not a module of the package `harness`.
    script = """
import json
import numpy as np, soak
one, two = (soak.SoakRelease(sign * np.eye(4, dtype=np.float32), n) for n, sign in ((1, 1), (2, -1)))
checker = soak.SoakChecker({"one": one, "two": two})
request = {"vector": [1.0, 0, 0, 0], "k": 2, "where": [{"field": "kind", "op": "eq", "value": 1}]}
def check(release, ids, scores, start_time=0.0, **overrides):
    body = json.dumps({"release": release, "ids": ids, "scores": scores}).encode()
    checker.check_answer(request | overrides, start_time, 200, body)
    return dict(checker.counts)
live_id = soak.FIRST_LIVE_ID
counts = check("two", [1, live_id], [0.0, float(soak.make_live_vector(live_id, 4)[0])])
assert counts == {"recalls": 1}, counts
assert check("two", [0, 1], [1.0, 0.0], where=[])["mixed"] == 1  # scores of the other release
assert check("one", [1], [0.0])["mixed"] == 2  # too few
assert check("one", [], [])["mixed"] == 3  # none at all
assert check("one", [0, 1], [1.0, 0.0])["mixed"] == 4  # 0 does not pass
checker.deleted_at[1] = 5.0
assert "resurrected" not in check("one", [0, 1], [1.0, 0.0], start_time=4.0, where=[])
assert check("one", [0, 1], [1.0, 0.0], start_time=6.0, where=[])["resurrected"] == 1
checker.check_answer(request, 0.0, 503, b"busy")
assert checker.counts["failed"] == 1
big = {name: soak.SoakRelease(np.zeros((100, 4), np.float32), n) for n, name in ((1, "one"), (2, "two"))}
def check_list(release, ids, scores, channels, start_time=0.0, **overrides):
    answer = {"release": release, "ids": ids, "scores": scores, "channels": channels, "ranker": "rank_by_marker",
              "degraded": [], **overrides}
    checker.check_recommendation({"history": [10], "k": 2}, start_time, 200, json.dumps(answer).encode())
    return {name: count for name, count in checker.counts.items() if name != "recommendations"}
checker = soak.SoakChecker(big)
near, far = ["vector", "similar"], ["vector"]
assert check_list("one", [13, 60], [1.481, 1.22], [near, far]) == {}
assert check_list("two", [12, 60], [2.444, 2.22], [near, far]) == {}
assert check_list("two", [12, 60], [2.444, 2.22], [far, far]) == {}  # many live items were nearer
assert check_list("two", [13, 60], [1.481, 1.22], [far, far])["mixed"] == 1  # attributes of the other release
assert check_list("two", [13, 60], [2.481, 2.22], [near, far])["mixed"] == 2  # neighbours of the other release
assert check_list("one", [60, 13], [1.22, 1.481], [far, near])["mixed"] == 3  # order
assert check_list("one", [13], [1.481], [near])["mixed"] == 4  # too few
assert check_list("one", [13, 60], [1.481, 1.22], [near, far], degraded=["ranker"])["failed"] == 1
checker.deleted_at[60] = 5.0
assert check_list("one", [13, 60], [1.481, 1.22], [near, far], start_time=6.0)["resurrected"] == 1
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(BENCHMARKS_DIR), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", script]
    completed = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert completed.returncode == 0, completed.stderr


@pytest.mark.usefixtures("benchmarks_path")
@pytest.mark.examples
def test_scale_data_is_the_same_for_a_seed_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness import scale_data

    monkeypatch.setattr(scale_data, "CHUNK_ROWS", 400)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        path = tmp_path / name / scale_data.INTERACTIONS_FILE
        scale_data.write_interactions(path, n_users=50, n_items=1200, n_rows=1000, id_type="string", seed=seed)
        scale_data.write_items(tmp_path / name / scale_data.ITEMS_FILE, n_items=1200, id_type="string", seed=seed)
        scale_data.write_interactions(path, n_users=1, n_items=1, n_rows=1, id_type="string", seed=seed)  # kept
    logs = {name: pl.read_parquet(tmp_path / name / scale_data.INTERACTIONS_FILE) for name in "abc"}
    assert logs["a"].equals(logs["b"])
    assert not logs["a"].equals(logs["c"])
    config = scale_data.scale_config(tmp_path / "a", with_features=True, preset="pooled", epochs=2)
    dataset = read_dataset(config.data, config.schema_)
    assert (len(dataset.interactions.users), len(dataset.catalogue.items), config.training.epochs) == (1000, 1200, 2)
    assert set(dataset.catalogue.item_features.columns) == {"category", "tags", "title", "price"}


@pytest.mark.usefixtures("benchmarks_path")
@pytest.mark.examples
def test_training_scale_measures_parts_and_keeps_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, parts = tmp_path / "scale.json", ["read", "encode", "step", "epoch", "validation"]
    arguments = ["--smoke", "--items", "300", "--rows", "3000", "--part", *parts]
    monkeypatch.setattr(sys, "argv", ["training_scale.py", *arguments, "--data", str(tmp_path), "--out", str(out)])

    def run() -> str:
        runpy.run_path(str(BENCHMARKS_DIR / "training_scale.py"), run_name="__main__")
        return capsys.readouterr().out

    output = run()
    results = json.loads(out.read_text())
    assert [name.split(", 300 items")[0] for name in results] == [
        "read, integer ids",
        "read, string ids",
        "encode",
        "step, pooled",
        "step, sequence",
        "epoch, pooled",
        "epoch, four features",
        "validation",
    ]
    for result in results.values():
        assert {"machine", "versions", "commit", "command"} <= result["facts"].keys()
    assert results["epoch, pooled, 300 items, 3000 rows"]["extrapolated"]
    assert output.count("300 items") == len(results)
    output = run()
    assert output.count("300 items") == 0  # everything is in the results file
    assert "ratio" in output


@pytest.mark.usefixtures("benchmarks_path")
@pytest.mark.examples
def test_gpu_benchmark_runs_on_a_cpu_and_says_where_there_is_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out, script = tmp_path / "gpu.json", str(BENCHMARKS_DIR / "gpu.py")
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(out)])
    runpy.run_path(script, run_name="__main__")
    assert capsys.readouterr().out.startswith("no GPU: ")
    assert not out.exists()
    options = ["--device", "cpu", "--items", "300", "--rows", "3000", "--batches", "64", "--steps", "2"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *options, "--out", str(out)])
    runpy.run_path(script, run_name="__main__")
    assert "share of the peak" in capsys.readouterr().out
    for result in json.loads(out.read_text()).values():
        assert result["batch"] == 64
        assert 0 < result["share_of_peak"] < 1
        assert result["samples_per_second"] > 0
