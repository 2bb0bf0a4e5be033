import os
import subprocess
import sys

import pytest

from vecall.runtime import openmp

VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


@pytest.fixture
def environment(monkeypatch):
    """Environment without the variables of OpenMP; restored after the test."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # recorded, so that a variable that the test sets is removed
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize(
    ("loadavg", "expected"),
    [
        ("0.10 0.5 0.5 1/80 99", {"GOMP_SPINCOUNT": "5000"}),
        ("0.10 0.5 0.5 4/80 99", {"OMP_WAIT_POLICY": "PASSIVE"}),  # three other processes run now
        ("3.00 0.5 0.5 1/80 99", {"OMP_WAIT_POLICY": "PASSIVE"}),  # three processes ran over the last minute
        ("damaged", {"GOMP_SPINCOUNT": "5000"}),
        (None, {"GOMP_SPINCOUNT": "5000"}),
    ],
)
def test_spinning_is_limited_and_off_on_a_busy_machine(environment, tmp_path, loadavg, expected):
    environment.setattr(os, "cpu_count", lambda: 4)
    environment.setattr(openmp, "_LOADAVG_PATH", tmp_path / "loadavg")
    if loadavg is not None:
        (tmp_path / "loadavg").write_text(loadavg)
    before = dict(os.environ)
    openmp.limit_spinning()
    assert dict(os.environ) == before | expected


@pytest.mark.parametrize("name", VARIABLES)
def test_wait_policy_of_the_environment_is_respected(environment, name):
    environment.setenv(name, "7")
    before = dict(os.environ)
    openmp.limit_spinning()
    assert dict(os.environ) == before


@pytest.mark.parametrize(("code", "count"), [("import vecall", 0), ("import vecall; vecall.Query", 1)])
def test_spinning_is_limited_on_first_use_and_not_on_import(code, count):
    result = subprocess.run(
        [sys.executable, "-c", f"{code}; import os; print(sum(name in os.environ for name in {VARIABLES}))"],
        env={name: value for name, value in os.environ.items() if name not in VARIABLES},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(result.stdout) == count
