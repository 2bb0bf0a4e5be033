import os
import subprocess
import sys

import pytest

from vecall.runtime import huge_pages

VARIABLE = "THP_MEM_ALLOC_ENABLE"


@pytest.fixture
def environment(monkeypatch):
    """Environment without the variable; restored after the test."""
    monkeypatch.setenv(VARIABLE, "")  # recorded, so that a variable that the test sets is removed
    monkeypatch.delenv(VARIABLE)
    return monkeypatch


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        ("always [madvise] never", "1"),
        ("[always] madvise never", "1"),
        ("always madvise [never]", None),
        (None, None),  # torch would warn that the system does not know the advice
    ],
)
def test_torch_asks_for_huge_pages_where_the_system_allows_it(environment, tmp_path, system, expected):
    environment.setattr(huge_pages, "_SYSTEM_SETTING_PATH", tmp_path / "enabled")
    if system is not None:
        (tmp_path / "enabled").write_text(system)
    huge_pages.use_huge_pages()
    assert os.environ.get(VARIABLE) == expected


def test_setting_of_the_environment_prevails(environment, tmp_path):
    environment.setattr(huge_pages, "_SYSTEM_SETTING_PATH", tmp_path / "enabled")
    (tmp_path / "enabled").write_text("[always] madvise never")
    environment.setenv(VARIABLE, "0")
    huge_pages.use_huge_pages()
    assert os.environ[VARIABLE] == "0"


@pytest.mark.skipif(not huge_pages._is_allowed(), reason="the system gives no huge pages")
def test_tensors_are_in_huge_pages_on_first_use_and_not_on_import():
    code = (
        f"import vecall, os; assert {VARIABLE!r} not in os.environ; vecall.Query; import torch; t = torch.ones(2**26); "
        "lines = open('/proc/self/smaps_rollup').read().splitlines(); "
        "print(next(line.split()[1] for line in lines if line.startswith('AnonHugePages:')))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={name: value for name, value in os.environ.items() if name != VARIABLE},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(result.stdout) > 100_000  # KiB, of 262,144
