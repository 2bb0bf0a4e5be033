"""The documentation: every snippet runs, generated pages are up to date, and what the pages name exists."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from support.snippets import PageSession, read_snippets, shell_environment

import vecall
from vecall.cli.app import app
from vecall.config import parse_config
from vecall.config_reference import list_config_keys, list_model_keys
from vecall.service.settings import ServeSettings

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])
TRANSLATED_PAGES = sorted(path.name for path in (DOCS / "zh").glob("*.md"))
# Pages whose snippets continue with the shop of getting-started.md.
SHOP_PAGES = ["serving.md", "reading-the-report.md", "own-model.md", "daily-loop.md"]
MAX_SKIPPED_SNIPPETS = 12
OWN_DIRECTORIES = ("shop", "runs", "stores", "model", "refit", "channels")  # of a run, a release, or the example shop


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture
def work_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory, with `vecall` and `python` on the path."""
    directory = tmp_path / "work"
    directory.mkdir()
    monkeypatch.chdir(directory)
    with shell_environment(tmp_path / "bin", os.environ):
        yield directory


@pytest.mark.examples
def test_snippets_of_the_shop_run(work_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert PageSession(work_dir).run_page(DOCS / "getting-started.md") >= 10
    for name in SHOP_PAGES:
        directory = tmp_path / name
        shutil.copytree(work_dir, directory)
        monkeypatch.chdir(directory)
        assert PageSession(directory).run_page(DOCS / name), name


@pytest.mark.examples
def test_snippets_of_filters_run(work_dir: Path) -> None:
    assert PageSession(work_dir).run_page(DOCS / "filters.md") >= 7


def test_every_page_with_snippets_is_run() -> None:
    run_pages = {"getting-started.md", "filters.md", *SHOP_PAGES}
    for page in DOCS.glob("*.md"):
        languages = {snippet.language for snippet in read_snippets(page) if not snippet.is_skipped}
        if page.name not in run_pages and page.name != "operations.md":  # its commands have placeholders
            assert not languages & {"python", "sh"}, page.name


def test_skipped_snippets_are_few_and_have_a_reason() -> None:
    skipped = [snippet for page in PAGES for snippet in read_snippets(page) if snippet.is_skipped]
    english = [snippet for snippet in skipped if "zh" not in str(snippet.page)]
    assert all(re.fullmatch(r"skip, \w.+", snippet.directive) for snippet in skipped)
    assert len(english) <= MAX_SKIPPED_SNIPPETS


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_data_snippets_are_valid(page: Path) -> None:
    schema = {
        "interactions": {"user": "user_id", "item": "sku"},
        "items": {"id": "sku", "id_type": "string"},
        "users": {"id": "user_id", "id_type": "string"},
    }
    for snippet in read_snippets(page):
        if snippet.language == "json":
            json.loads(snippet.code)
        elif snippet.language == "toml" and snippet.title is None:
            settings = tomllib.loads(snippet.code)
            data = {"interactions": "clicks.csv"} | settings.get("data", {})
            parse_config(
                settings | {"data": data, "schema": schema | settings.get("schema", {})}, source=snippet.location
            )


@pytest.mark.parametrize("name", TRANSLATED_PAGES)
def test_translated_page_has_the_same_code(name: str) -> None:
    english, chinese = (read_snippets(page) for page in (DOCS / name, DOCS / "zh" / name))
    for original, translation in zip(english, chinese, strict=True):
        if original.language != "text":  # output, and drawings with words
            assert translation.code_without_comments == original.code_without_comments, translation.location
        assert (translation.language, translation.title, translation.directive) == (
            original.language,
            original.title,
            original.directive,
        )


@pytest.mark.parametrize("page", ["configuration", "command-line"])
def test_generated_page_is_up_to_date(page: str) -> None:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    rendered = generate.render_configuration() if page == "configuration" else generate.render_command_line()
    assert (DOCS / f"{page}.md").read_text(encoding="utf-8") == rendered, "run: python docs/generate.py"


def test_every_setting_has_a_description() -> None:
    keys = [*list_config_keys(), *list_model_keys(ServeSettings)]
    assert [key.path for key in keys if not key.description] == []


def test_api_page_has_every_public_name() -> None:
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^::: (vecall[\w.]+)$", page, re.MULTILINE))
    for name in vecall.__all__:
        target = getattr(vecall, name)
        paths = {f"{target.__module__}.{target.__qualname__}", target.__module__}
        assert paths & documented, name


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_named_files_exist(page: Path) -> None:
    names = re.findall(r"`((?:\w+/)+\w+\.(?:py|md|toml|json|html))`", page.read_text(encoding="utf-8"))
    commands = re.findall(r"python ((?:\w+/)+\w+\.py)", page.read_text(encoding="utf-8"))
    roots = (ROOT, ROOT / "vecall", ROOT / "benchmarks")
    missing = [name for name in (*names, *commands) if not any((root / name).exists() for root in roots)]
    assert [name for name in missing if name.split("/")[0] not in OWN_DIRECTORIES] == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_named_commands_and_options_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    lines = re.findall(r"(?<!`)`(vecall [^`\n]+)`", text)
    lines += [line for snippet in read_snippets(page) if snippet.language == "sh" for line in snippet.code.splitlines()]
    root = typer.main.get_command(app)
    for line in lines:
        for call in re.findall(r"(?:^|[(;] *)vecall ([a-z]+[^|;)#]*)", line):
            check_call(root, call.split(), line)


def check_call(root, words: list[str], command_line: str) -> None:
    """Check that the command exists and has the options."""
    command = root
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    assert command is not root, command_line
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    used = {option for word in words for option in re.findall(r"^[\[(]*(--?[a-z][a-z-]*)", word)}
    assert used <= {*options, "--help"}, command_line


def test_named_metrics_are_those_of_the_operations_page() -> None:
    documented = set(re.findall(r"\bvecall_[a-z_]+", (DOCS / "operations.md").read_text(encoding="utf-8")))
    for page in PAGES:
        named = set(re.findall(r"\bvecall_[a-z_]+", page.read_text(encoding="utf-8")))
        assert named <= documented, page.name


def test_every_decision_record_is_in_the_index() -> None:
    index = (DOCS / "decisions" / "index.md").read_text(encoding="utf-8")
    for path in (DOCS / "decisions").glob("[0-9]*.md"):
        assert f"({path.name})" in index, path.name


def test_numbers_keep_their_leading_zero() -> None:
    for page in PAGES:
        text = re.sub(r"`[^`]*`|\]\([^)]*\)", "", page.read_text(encoding="utf-8"))
        assert re.findall(r"(?<![\d.\w/])\.\d+\b", text) == [], page.name


@pytest.mark.examples
def test_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs the extra `docs`")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    completed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 30
    external = re.compile(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>")
    for page in pages:
        assert external.findall(page.read_text(encoding="utf-8")) == [], page
    for style in tmp_path.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import )[\"']?(?:https?:)?//", style.read_text(encoding="utf-8")), style


def test_translated_operations_page_names_the_same_settings_and_metrics() -> None:
    english, chinese = (
        set(re.findall(r"`((?:vecall|limits|max|process)[._][a-z_.]+)`", page.read_text(encoding="utf-8")))
        for page in (DOCS / "operations.md", DOCS / "zh" / "operations.md")
    )
    assert chinese == english
