"""The benchmarks run: here at a size at which their figures mean nothing. The longest ones: in `make slow`."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TINY = ["--pools", "2_000", "--labels", "balanced", "--known", "64", "--users", "16", "--rounds", "1"]
BESIDE = ["hnswlib"] if find_spec("hnswlib") else []


def run(name: str, *options: object) -> str:
    command = [sys.executable, str(BENCHMARKS / name), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_founding_measures_each_claim(tmp_path: Path) -> None:
    said = run("founding.py", "--quick", "--no-movielens", *TINY, "--out", tmp_path)
    pool = json.loads((tmp_path / "founding.json").read_text())["balanced"]["2000"]
    assert {"machine", "versions", "commit", "date", "command", "load_average"} <= pool["facts"].keys()
    assert {"training", "build", "planted", "ann", "recall", "size", "identical", "claims"} <= pool.keys()
    assert [claim["claim"].split(" ")[0] for claim in pool["claims"]] == ["ANN", "one", "save"]
    assert pool["identical"] == {"users": 16, "identical": 16}
    assert pool["ann"]["searched_ef"] == pool["ann"]["ladder"][0]["ef"] == 100
    assert pool["ann"]["ladder"][-1]["ann_recall"] >= 0.98
    assert not pool["recall"]["torch_loaded"]
    assert pool["recall"]["paths"] == ["scan"]  # of 2,000 items that is quicker than the graph
    assert "measuring 2,000 items" in said
    assert "the founding design claims" in said


def test_ann_measures_ours_beside_others_once(tmp_path: Path) -> None:
    out, vectors = tmp_path / "ann.json", tmp_path / "real.npz"
    rng = np.random.default_rng(0)
    np.savez(vectors, items=rng.standard_normal((3000, 16), np.float32), queries=rng.standard_normal((60, 16)))
    options = ["--vectors", vectors, "--k", 10, 50, "--rounds", 1, "--libraries", "ours", *BESIDE, "--out", out]
    said = run("ann.py", *options)
    kept = json.loads(out.read_text())["real 3000 x 16"]
    assert list(kept["libraries"]) == list(kept["latency"]["libraries"]) == ["ours", *BESIDE]
    for name, cell in kept["libraries"].items():
        assert {"seconds", "threads", "peak_gib"} <= cell["build"].keys()
        assert cell["weigh"]["bytes_an_item"] > 0
        for k in ("10", "50"):
            assert cell["tune"][k]["reached"]
            assert kept["latency"]["libraries"][name][k]["recall"] > 0.9
    assert "bytes an item" in said
    assert "round 1" not in run("ann.py", *options)  # all of it lies there


def test_filters_judge_each_cell_once(tmp_path: Path) -> None:
    out = tmp_path / "filters.json"
    kinds = ["random", "opposed", *(["beside"] if BESIDE else [])]
    options = ["--items", 3000, "--dims", 16, "--queries", 10, "--out", out, "--kinds", *kinds]
    said = run("filters.py", *options)
    pool = json.loads(out.read_text())["3000 x 16"]
    cells = pool["random"]["cells"]
    assert len(cells) == len(pool["opposed"]["cells"]) == 8 * 3 * 2
    assert all(one["wrong_number"] == one["unfit"] == 0 and one["recall"] > 0.9 for one in cells)
    near = {one["rate"]: one["near_pass"] for one in pool["opposed"]["cells"]}
    assert near[1.0] == 1.0
    assert near[0.1] < 0.1
    assert "exactly min(k, matches), all of them fit: reached in all 48 cells" in said
    if BESIDE:
        assert {one["way"] for one in pool["beside"]["cells"]} >= {"ours", "over-fetching", "hnswlib, callback"}
    assert "3000 x 16: random\n" not in run("filters.py", *options)


def test_an_answer_that_is_short_or_unfit_shows(benchmarks: Any) -> None:
    from filtered_cells import Case, judged

    from vecall.index.bitmap import Bitmap
    from vecall.recall.filters import FilterMask

    passing = FilterMask(Bitmap.from_mask(np.arange(10) != 9), np.empty(0, np.bool_))
    case = Case(np.zeros((1, 2), np.float32), passing, np.arange(9))  # the nearest two, 0 and 1, are excluded
    answers = {"right": [2, 3, 4], "short": [2, 3], "excluded": [0, 2, 3], "not passing": [2, 3, 9], "twice": [2, 2, 3]}
    found = {name: judged([np.array(rows)], [case], excluded=2, k=3) for name, rows in answers.items()}
    assert {name: one["wrong_number"] for name, one in found.items()} == dict.fromkeys(answers, 0) | {"short": 1}
    assert [name for name, one in found.items() if one["unfit"]] == ["excluded", "not passing", "twice"]
    assert [one["recall"] for one in found.values()] == [1.0, *[0.6667] * 4]


def test_clustered_vectors_go_on_where_they_were_cut_off(
    benchmarks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import clustered

    monkeypatch.setattr(clustered, "BLOCK", 1000)
    pool, file = clustered.Clusters(2500, 8), tmp_path / "items.npy"
    make, made = clustered.Clusters.block, []

    def block(self: Any, number: int) -> Any:
        made.append(number)
        if made == [0, 1]:
            raise KeyboardInterrupt
        return make(self, number)

    monkeypatch.setattr(clustered.Clusters, "block", block)
    with pytest.raises(KeyboardInterrupt):
        pool.fill(file)
    assert not file.exists()
    pool.fill(file)
    assert made == [0, 1, 1, 2]
    assert (np.load(file) == np.concatenate([make(pool, number) for number in range(3)])).all()
    assert (pool.queries(5) == pool.queries(9)[:5]).all()


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.mark.slow
def test_service_measures_http_beside_its_bare_calls(tmp_path: Path) -> None:
    options = ["--items", 3000, "--dim", 16, "--seconds", 0.3, "--rounds", 1, "--encoders", "causal"]
    said = run("service.py", *options, "--work", tmp_path, "--out", tmp_path / "service.json")
    measured = json.loads((tmp_path / "service.json").read_text())["causal"]
    assert measured["ann_recall"] > 0.97
    assert set(measured["by_processes"]) == {"1", str(os.cpu_count())}
    for served in measured["by_processes"].values():
        assert set(served["http"]) == {"1", "2", "4", "8"}
        for one in [*served["http"].values(), served["open_at_60_percent"]]:
            assert one["failed"] < one["requests"]  # a machine full of tests misses deadlines
        assert served["http"]["1"]["x_bare_p50"] > 1
        assert served["bare_at_60_percent"]["requests"] > 0
    assert "1 process, 8 at a time" in said


def test_the_soak_sees_what_is_wrong() -> None:
    check = """
import json
import numpy as np, soak
one, two = np.eye(4, dtype=np.float32), -np.eye(4, dtype=np.float32)
truth = soak.Truth({"one": one, "two": two})
asked = {"vector": [1.0, 0, 0, 0], "k": 2, "where": [{"field": "kind", "op": "eq", "value": 1}]}
def answer(release, ids, scores, began=0.0, **more):
    body = json.dumps({"release": release, "ids": ids, "scores": scores}).encode()
    truth.check(asked | more, began, 200, body)
    return dict(truth.counts)
fine = answer("two", [1, soak.LIVE], [0.0, float(soak.live_vector(soak.LIVE, 4)[0])])
assert fine == {"recalls": 1}, fine
assert answer("two", [0, 1], [1.0, 0.0], where=[])["mixed"] == 1  # scores of the other release
assert answer("one", [1], [0.0])["mixed"] == 2  # too few
assert answer("one", [0, 1], [1.0, 0.0])["mixed"] == 3  # 0 does not pass
truth.deleted[1] = 5.0
assert "resurrected" not in answer("one", [0, 1], [1.0, 0.0], began=4.0, where=[])
assert answer("one", [0, 1], [1.0, 0.0], began=6.0, where=[])["resurrected"] == 1
truth.check(asked, 0.0, 503, b"busy")
assert truth.counts["failed"] == 1
"""
    environment = os.environ | {"PYTHONPATH": str(BENCHMARKS)}
    command = [sys.executable, "-c", check]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
