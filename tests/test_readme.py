"""Both READMEs: their examples run unchanged, they have the same code and numbers, and their links resolve."""

import os
import re
from pathlib import Path

import pytest
from support.movielens import MOVIELENS_DIR, read_subset
from support.snippets import PageSession, list_anchors, read_snippets, shell_environment

ROOT = Path(__file__).parents[1]
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]


@pytest.fixture
def checkout_dir(tmp_path: Path) -> Path:
    """A directory with the example's files as in the repository, with fewer users."""
    directory = tmp_path / "checkout" / "examples" / "movielens"
    directory.mkdir(parents=True)
    ratings, movies = read_subset(max_user_id=40)
    ratings.write_csv(directory / "ratings.csv")
    movies.write_csv(directory / "movies.csv")
    (directory / "vecall.toml").write_bytes((MOVIELENS_DIR / "vecall.toml").read_bytes())
    return tmp_path / "checkout"


@pytest.mark.examples
def test_examples_run(checkout_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkout_dir)
    with shell_environment(tmp_path / "bin", os.environ):
        assert PageSession(checkout_dir).run_page(READMES[0]) == 4


def test_python_examples_are_short() -> None:
    snippets = [snippet for snippet in read_snippets(READMES[0]) if snippet.language == "python"]
    assert snippets
    assert all(snippet.code.count("\n") <= 20 for snippet in snippets)


def test_both_languages_have_the_same_code_and_numbers() -> None:
    english, chinese = ([snippet.code_without_comments for snippet in read_snippets(readme)] for readme in READMES)
    assert english == chinese
    number_lists = []
    for readme in READMES:
        text = readme.read_text(encoding="utf-8")
        rows = [line for line in text.splitlines() if line.startswith("|")]
        number_lists.append([sorted(re.findall(r"\d+(?:[.,]\d+)*", row.partition("(docs/")[0] + row)) for row in rows])
    # Units follow the language, so "4.5 minutes" and "4.5 分钟" are compared as 4.5.
    assert [numbers for numbers in number_lists[0] if numbers] == [numbers for numbers in number_lists[1] if numbers]


@pytest.mark.parametrize("readme", READMES, ids=lambda readme: readme.name)
def test_length_is_limited(readme: Path) -> None:
    assert readme.read_text(encoding="utf-8").count("\n") <= 200


@pytest.mark.parametrize("page", [*READMES, *(ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md"))])
def test_links_resolve(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#([^)]+))?\)", page.read_text(encoding="utf-8"))
    for target, anchor in links:
        if "://" in target:
            continue
        assert (ROOT / target).exists(), target
        if anchor:
            assert anchor in list_anchors(ROOT / target), f"{target}#{anchor}"
