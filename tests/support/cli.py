"""The command line in tests: in this process, or in a process of its own."""

import json
import subprocess
import sys
from typing import Any

import typer.main
from typer.testing import CliRunner

from vecall.cli.app import app


def invoke(*arguments: object) -> Any:
    """Run a command in this process; returns exit code and output."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def run_json(*arguments: object) -> dict[str, Any]:
    """Run a command with --json in a process of its own; returns the object that it prints on stdout."""
    command = [sys.executable, "-c", "from vecall.cli.app import main; main()", *map(str, arguments), "--json"]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    return parse_object(completed.stdout)


def list_commands() -> list[Any]:
    """All commands and groups of commands."""
    remaining, commands = [typer.main.get_command(app)], []
    while remaining:
        command = remaining.pop()
        commands.append(command)
        remaining += getattr(command, "commands", {}).values()
    return commands


def parse_object(text: str) -> dict[str, Any]:
    parsed = json.loads(text)
    assert isinstance(parsed, dict)
    return parsed
