"""The examples run as they stand."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_example(*command, directory):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_own_towers_are_trained_published_and_recalled(tmp_path):
    output = run_example(ROOT / "examples" / "own_towers.py", "--epochs", "1", directory=tmp_path)
    assert "epoch 1: loss" in output
    assert "for user 1:" in output
    assert len(list((tmp_path / "own_towers" / "store" / "releases").iterdir())) == 1
