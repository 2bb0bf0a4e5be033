"""The benchmarks run: here at a size at which their figures mean nothing."""

import json
import subprocess
import sys
from pathlib import Path

FOUNDING = Path(__file__).parents[1] / "benchmarks/founding.py"
TINY = ["--pools", "2_000", "--labels", "balanced", "--known", "64", "--users", "16", "--rounds", "1"]


def test_founding_measures_each_claim(tmp_path: Path) -> None:
    command = [sys.executable, str(FOUNDING), "--quick", "--no-movielens", *TINY, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    pool = json.loads((tmp_path / "founding.json").read_text())["balanced"]["2000"]
    assert {"machine", "versions", "commit", "date", "command", "load_average"} <= pool["facts"].keys()
    assert {"training", "build", "planted", "ann", "recall", "size", "identical", "claims"} <= pool.keys()
    assert [claim["claim"].split(" ")[0] for claim in pool["claims"]] == ["ANN", "one", "save"]
    assert pool["identical"] == {"users": 16, "identical": 16}
    assert pool["ann"]["searched_ef"] == pool["ann"]["ladder"][0]["ef"] == 100
    assert pool["ann"]["ladder"][-1]["ann_recall"] >= 0.98
    assert not pool["recall"]["torch_loaded"]
    assert pool["recall"]["paths"] == ["index"]
    assert "measuring 2,000 items" in done.stdout
    assert "the founding design claims" in done.stdout
