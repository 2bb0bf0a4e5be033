"""Hooks of mkdocs: pages of the repository's root join the site, and links between both work on GitHub and here."""

import ast
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
ROOT_PAGES = {  # in the site: in the repository
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "zh/index.md": "README.zh-CN.md",
}
_LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<path>[^)#\s]+)(?P<anchor>#[^)]*)?\)")
_MODULE_TABLES = re.compile(r"<!-- module tables.*?-->", re.DOTALL)


def on_files(files: Files, config: Any) -> Files:  # noqa: ANN401 - mkdocs' own signature
    """Add the pages of the root to the site."""
    for site_path, root_path in ROOT_PAGES.items():
        text = (ROOT / root_path).read_text(encoding="utf-8")
        files.append(File.generated(config, site_path, content=text))
    return files


def on_config(config: Any) -> Any:  # noqa: ANN401 - mkdocs' own signature
    """Add the decision records to the navigation."""
    project = next(section["Project"] for section in config.nav if "Project" in section)
    decisions = next(section["Decisions"] for section in project if "Decisions" in section)
    decisions += sorted(f"decisions/{path.name}" for path in (ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    return config


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:  # noqa: ANN401 - mkdocs' own signature
    """Make links relative to the page's place in the site, whichever place in the repository it comes from."""
    site_path = page.file.src_uri
    source = Path(ROOT_PAGES.get(site_path, f"docs/{site_path}")).parent
    markdown = _LINK.sub(lambda link: _translate(link, source, Path(site_path).parent), markdown)
    return _MODULE_TABLES.sub(lambda _: _render_module_tables(), markdown)


def _translate(link: re.Match[str], source: Path, target: Path) -> str:
    """A link from a directory of the repository, as a link from a directory of the site.

    Links to files that are not in the site become text; links to other sites stay as they are.
    """
    if "://" in link["path"]:
        return link[0]
    path = (ROOT / source / link["path"]).resolve().relative_to(ROOT).as_posix()
    if path == "README.md":
        path = "docs/index.md"
    site_path = {root: site for site, root in ROOT_PAGES.items()}.get(path)
    if site_path is None and not path.startswith("docs/"):
        return link["text"]
    site_path = site_path or path.removeprefix("docs/")
    prefix = "../" * len(target.parts)
    return f"[{link['text']}]({prefix}{site_path}{link['anchor'] or ''})"


def _render_module_tables() -> str:
    """Tables of all modules by part, with the first line of each docstring."""
    modules: dict[str, list[str]] = {}
    for path in sorted((ROOT / "vecall").rglob("*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        if docstring is None:
            continue
        name = path.relative_to(ROOT / "vecall").as_posix()
        summary = docstring.partition("\n")[0].replace("|", "\\|")
        modules.setdefault(name.rpartition("/")[0], []).append(f"| `{name}` | {summary} |")
    head = ["| module | purpose |", "| --- | --- |"]
    return "\n\n".join("\n".join([*head, *rows]) for _, rows in sorted(modules.items()))
