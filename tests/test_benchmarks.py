"""The benchmarks run: here at a size at which their figures mean nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TINY = ["--pools", "2_000", "--labels", "balanced", "--known", "64", "--users", "16", "--rounds", "1"]


def test_founding_measures_each_claim_and_keeps_what_it_measured(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks/founding.py"), "--quick", "--no-movielens", *TINY]
    quiet = os.environ | {"PYTHONWARNINGS": "ignore"}
    first = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True, check=True, env=quiet)
    written = (tmp_path / "founding.json").read_text()
    pool = json.loads(written)["balanced"]["2000"]
    assert {"machine", "versions", "commit", "date", "command", "load_average"} <= pool["facts"].keys()
    assert {"training", "build", "planted", "ann", "recall", "size", "identical", "claims"} <= pool.keys()
    assert [claim["claim"].split(" ")[0] for claim in pool["claims"]] == ["ANN", "one", "save"]
    assert pool["identical"] == {"users": 16, "identical": 16}
    assert pool["ann"]["searched_ef"] == 100
    assert pool["ann"]["ladder"][0]["ef"] == 100
    assert pool["ann"]["ladder"][-1]["ann_recall"] >= 0.98
    assert not pool["recall"]["torch_loaded"]
    assert pool["recall"]["paths"] == ["index"]
    assert "the founding design claims" in first.stdout
    assert not (tmp_path / "founding").exists()


def test_a_founding_cell_that_is_there_is_shown_and_not_run_again(tmp_path: Path) -> None:
    kept = json.loads((ROOT / "benchmarks/results/founding.json").read_text())
    path = tmp_path / "founding.json"
    path.write_text(json.dumps(kept))
    before = path.stat().st_mtime_ns
    command = [sys.executable, str(ROOT / "benchmarks/founding.py"), "--no-movielens", "--out", str(tmp_path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert path.stat().st_mtime_ns == before
    assert "1,000,000 items, balanced labels" in shown.stdout
    assert "measuring" not in shown.stdout
