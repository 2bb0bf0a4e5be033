"""Hooks of mkdocs: pages of the repository's root join the site, and links between both work on GitHub and here."""

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
_LINK = re.compile(r"(?<=\]\()([^)#\s]+)(?=[)#])")


def on_files(files: Files, config: Any) -> Files:  # noqa: ANN401 - mkdocs' own signature
    """Add the pages of the root to the site."""
    for site_path, root_path in ROOT_PAGES.items():
        text = (ROOT / root_path).read_text(encoding="utf-8")
        files.append(File.generated(config, site_path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:  # noqa: ANN401 - mkdocs' own signature
    """Make links relative to the page's place in the site, whichever place in the repository it comes from."""
    site_path = page.file.src_uri
    source = Path(ROOT_PAGES.get(site_path, f"docs/{site_path}")).parent
    return _LINK.sub(lambda link: _translate(link[1], source, Path(site_path).parent), markdown)


def _translate(link: str, source: Path, target: Path) -> str:
    """A link from a directory of the repository, as a link from a directory of the site.

    Links to other sites, and to files that are no pages, stay as they are.
    """
    if "://" in link:
        return link
    path = (ROOT / source / link).resolve().relative_to(ROOT).as_posix()
    site_path = {root: site for site, root in ROOT_PAGES.items()}.get(path, path.removeprefix("docs/"))
    if path == "README.md":
        site_path = "index.md"
    if site_path == path:  # outside of docs/
        return link
    return (Path(*[".."] * len(target.parts)) / site_path).as_posix()
