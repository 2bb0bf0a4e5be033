"""The README's code runs as it stands, and both languages show the same code and numbers."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import polars as pl
import pytest

from vecall.config import parse_config

ROOT = Path(__file__).parents[1]
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]


def blocks(readme: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", readme.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_both_languages_show_the_same() -> None:
    english, chinese = (readme.read_text(encoding="utf-8") for readme in READMES)
    assert blocks(READMES[0]) == blocks(READMES[1])
    numbers = [sorted(re.findall(r"\| [^|\n]*?((?:\.|\d+\.)\d{2,4})\b", text)) for text in (english, chinese)]
    assert numbers[0] == numbers[1]
    assert "@@" not in english + chinese


@pytest.fixture
def a_checkout(tmp_path: Path) -> Path:
    """A folder that looks like the repository, with fewer users of MovieLens."""
    source, folder = ROOT / "examples" / "movielens", tmp_path / "examples" / "movielens"
    folder.mkdir(parents=True)
    ratings = pl.read_csv(source / "ratings.csv").filter(pl.col("user_id") <= 40)
    ratings.write_csv(folder / "ratings.csv")
    (folder / "movies.csv").write_bytes((source / "movies.csv").read_bytes())
    (folder / "vecall.toml").write_bytes((source / "vecall.toml").read_bytes())
    return tmp_path


@pytest.mark.parametrize("place", range(2))
def test_python_examples_run(a_checkout: Path, place: int) -> None:
    code = blocks(READMES[0])[place]
    assert code.count("\n") <= 20
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=a_checkout, env=os.environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("readme", READMES, ids=lambda readme: readme.name)
def test_settings_are_as_they_may_be_written(readme: Path) -> None:
    texts = re.findall(r"```toml\n(.*?)```", readme.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert texts
    rest = {"interactions": {"user": "user_id", "item": "sku"}, "users": {"id": "user_id", "id_type": "string"}}
    for text in texts:
        given = tomllib.loads(text)
        parse_config(given | {"schema": rest | given["schema"]}, source=readme.name)


def test_links_lead_somewhere() -> None:
    for readme in READMES:
        for target in re.findall(r"\]\(([^)#]+)\)", readme.read_text(encoding="utf-8")):
            assert (ROOT / target).exists(), target
