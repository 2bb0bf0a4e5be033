import os
from pathlib import Path
import pytest
from support.snippets import PageSession, executables_on_path
DOCS = Path(__file__).parents[1] / "docs"

@pytest.mark.parametrize("name", ["getting-started.md"])
def test_snippets_run(name, tmp_path, monkeypatch):
    (tmp_path / "w").mkdir()
    monkeypatch.chdir(tmp_path / "w")
    with executables_on_path(tmp_path / "bin", os.environ):
        PageSession(tmp_path / "w").run_page(DOCS / name)
