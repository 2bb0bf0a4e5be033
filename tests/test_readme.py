"""The README's examples run unchanged, and both languages have the same code and numbers."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from support.movielens import MOVIELENS_DIR, read_subset

from vecall.config import parse_config

ROOT = Path(__file__).parents[1]
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]


def extract_python_blocks(readme: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", readme.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_both_languages_have_the_same_code_and_numbers() -> None:
    english, chinese = (readme.read_text(encoding="utf-8") for readme in READMES)
    assert extract_python_blocks(READMES[0]) == extract_python_blocks(READMES[1])
    numbers = [sorted(re.findall(r"\| [^|\n]*?((?:\.|\d+\.)\d{2,4})\b", text)) for text in (english, chinese)]
    assert numbers[0] == numbers[1]
    assert "@@" not in english + chinese


@pytest.fixture
def checkout_dir(tmp_path: Path) -> Path:
    """A directory with the example's files as in the repository, with fewer users."""
    directory = tmp_path / "examples" / "movielens"
    directory.mkdir(parents=True)
    ratings, _ = read_subset(max_user_id=40)
    ratings.write_csv(directory / "ratings.csv")
    for name in ("movies.csv", "vecall.toml"):
        (directory / name).write_bytes((MOVIELENS_DIR / name).read_bytes())
    return tmp_path


@pytest.mark.parametrize("index", range(2))
def test_python_example_runs(checkout_dir: Path, index: int) -> None:
    code = extract_python_blocks(READMES[0])[index]
    assert code.count("\n") <= 20
    completed = subprocess.run(
        [sys.executable, "-c", code], cwd=checkout_dir, env=os.environ, capture_output=True, text=True, check=False
    )
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout


@pytest.mark.parametrize("readme", READMES, ids=lambda readme: readme.name)
def test_toml_examples_are_valid_settings(readme: Path) -> None:
    texts = re.findall(r"```toml\n(.*?)```", readme.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert texts
    other_schemas = {
        "interactions": {"user": "user_id", "item": "sku"},
        "users": {"id": "user_id", "id_type": "string"},
    }
    for text in texts:
        settings = tomllib.loads(text)
        parse_config(settings | {"schema": other_schemas | settings["schema"]}, source=readme.name)


def test_links_to_files_exist() -> None:
    for readme in READMES:
        for target in re.findall(r"\]\(([^)#]+)\)", readme.read_text(encoding="utf-8")):
            assert (ROOT / target).exists(), target
