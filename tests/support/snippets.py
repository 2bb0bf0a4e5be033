"""Code blocks of Markdown pages, and a session that runs those of a page in their order, as a reader would.

A block is run by its language: `python` in one namespace per page, `sh` as commands, `toml` and others with a
`title="FILE"` are written to that file. A comment on the line before a block changes this:

    <!-- test: fails -->           the block's last command must fail
    <!-- test: server -->          the block starts a server that runs until the end of the page
    <!-- test: skip, REASON -->    the block is not run
"""

import contextlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from support.server import ServerProcess
from vecall.cli.app import app

_BLOCK = re.compile(
    r"(?:^[ ]*<!-- test: (?P<directive>.*?) -->\n+)?"
    r"^(?P<indent>[ ]*)```(?P<language>\w+)(?:[ ]+title=\"(?P<title>[^\"]+)\")?[ ]*\n(?P<code>.*?)^(?P=indent)```[ ]*$",
    re.MULTILINE | re.DOTALL,
)
_SHELL_SYNTAX = set("|&;<>$`*?(){}")
DOCUMENTED_URL = "127.0.0.1:8080"


@dataclass(frozen=True)
class Snippet:
    """A code block of a page.

    Attributes:
        page: The file.
        line: Line number of the block's first line of code.
        language: Of the fence, such as `python`.
        title: File that the block is the content of; None for code to run.
        code: Without the fence and its indentation.
        directive: Text of the comment before the block; empty without one.
    """

    page: Path
    line: int
    language: str
    title: str | None
    code: str
    directive: str

    @property
    def location(self) -> str:
        return f"{self.page.name}:{self.line}"

    @property
    def is_skipped(self) -> bool:
        return self.directive.startswith("skip")

    @property
    def code_without_comments(self) -> str:
        """The code without `#` comments and blank lines, which translations may word otherwise."""
        lines = (re.sub(r"(^|\s+)#.*$", "", line) for line in self.code.splitlines())
        return "\n".join(line for line in lines if line.strip())


def read_snippets(page: Path) -> list[Snippet]:
    """Read the code blocks of a page; blocks without a language hold no code."""
    text = page.read_text(encoding="utf-8")
    snippets = []
    for match in _BLOCK.finditer(text):
        indent = len(match["indent"])
        code = "".join(line[indent:] for line in match["code"].splitlines(keepends=True))
        line = text.count("\n", 0, match.start("code")) + 1
        snippets.append(Snippet(page, line, match["language"], match["title"], code, match["directive"] or ""))
    return snippets


class PageSession:
    """Runs the snippets of a page in the working directory; call it within `shell_environment`.

    Args:
        directory: Working directory of the commands.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._namespace: dict[str, Any] = {"__name__": "__main__"}
        self._url = DOCUMENTED_URL
        self._server: ServerProcess | None = None

    def run_page(self, page: Path) -> int:
        """Run a page's snippets; returns how many were run or written."""
        snippets = [snippet for snippet in read_snippets(page) if not snippet.is_skipped]
        try:
            return sum(self._run(snippet) for snippet in snippets)
        finally:
            if self._server is not None:
                self._server.stop()

    def _run(self, snippet: Snippet) -> bool:
        code = snippet.code.replace(DOCUMENTED_URL, self._url)
        if snippet.title is not None:
            path = self._directory / snippet.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(code, encoding="utf-8")
        elif snippet.directive == "server":
            self._start_server(code)
        elif snippet.language == "python":
            exec(compile("\n" * (snippet.line - 1) + code, str(snippet.page), "exec"), self._namespace)
        elif snippet.language == "sh":
            self._run_commands(snippet, code)
        else:
            return False
        return True

    def _run_commands(self, snippet: Snippet, code: str) -> None:
        commands = list(_split_commands(code))
        for index, command in enumerate(commands):
            exit_code, output = self._run_command(command)
            should_fail = snippet.directive == "fails" and index == len(commands) - 1
            assert (exit_code != 0) == should_fail, f"{snippet.location}: {command}\nexit code {exit_code}\n{output}"

    def _run_command(self, command: str) -> tuple[int, str]:
        """Run a command; a plain `vecall` command in this process, which has loaded torch already."""
        if command.startswith("vecall ") and not _SHELL_SYNTAX & set(command):
            result = CliRunner().invoke(app, shlex.split(command)[1:])
            return result.exit_code, result.output
        script = f"set -euo pipefail\n{command}\nenv -0 > {shlex.quote(str(self._directory / '.environment'))}"
        completed = subprocess.run(
            ["bash", "-c", script], cwd=self._directory, capture_output=True, text=True, check=False, timeout=120
        )
        if completed.returncode == 0:
            self._adopt_environment()
        return completed.returncode, completed.stdout + completed.stderr

    def _adopt_environment(self) -> None:
        """Keep what a command has exported, as a shell does."""
        file = self._directory / ".environment"
        entries = (entry.partition("=") for entry in file.read_text().split("\0") if entry)
        os.environ.update({name: value for name, _, value in entries if name not in ("PWD", "OLDPWD", "SHLVL", "_")})
        file.unlink()

    def _start_server(self, command: str) -> None:
        """Start `vecall serve --store STORE ...` on a free port, which replaces that of later snippets."""
        if self._server is not None:
            self._server.drain()
        arguments = shlex.split(command, comments=True)
        assert arguments[:3] == ["vecall", "serve", "--store"], command
        self._server = ServerProcess(self._directory / arguments[3], self._directory / "server.log", *arguments[4:])
        self._url = self._server.url.removeprefix("http://")


def _split_commands(code: str) -> Iterator[str]:
    """Commands of a shell block: plain `vecall` commands one by one, whatever lies between as one script."""
    script: list[str] = []
    for line in re.sub(r"\\\n\s*", "", code).splitlines():
        command = re.sub(r"(^|\s+)#.*$", "", line).strip()
        if command.startswith("vecall ") and not _SHELL_SYNTAX & set(command):
            if script:
                yield "\n".join(script)
                script = []
            yield command
        elif command:
            script.append(command)
    if script:
        yield "\n".join(script)


@contextlib.contextmanager
def shell_environment(directory: Path, environment: MutableMapping[str, str]) -> Iterator[None]:
    """Put a `vecall` and a `python` of this interpreter first on the path, and make curl fail on HTTP errors."""
    directory.mkdir()
    (directory / ".curlrc").write_text("fail-with-body\n")
    for name, arguments in (("vecall", "-m vecall "), ("python", "")):
        script = directory / name
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {arguments}"$@"\n')
        script.chmod(0o755)
    before = dict(environment)
    environment.update({"PATH": f"{directory}{os.pathsep}{before['PATH']}", "CURL_HOME": str(directory)})
    try:
        yield
    finally:
        for name in environment.keys() - before.keys():
            del environment[name]
        environment.update(before)


def list_anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site derive them from the text."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}
