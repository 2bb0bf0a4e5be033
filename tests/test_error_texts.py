"""What an error advises exists: options of the command line, and keys of vecall.toml."""

import ast
import re
from pathlib import Path

import typer.main

from vecall.cli.app import app
from vecall.config import Config

PACKAGE = Path(__file__).parents[1] / "vecall"
OTHERS = {"--preload"}  # of gunicorn


def texts_of_errors() -> list[tuple[str, str]]:
    """File and text of all that is raised; what is formatted into it is left out."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for raised in ast.walk(ast.parse(path.read_text())):
            if isinstance(raised, ast.Raise):
                texts = [one.value for one in ast.walk(raised) if isinstance(one, ast.Constant)]
                found.append((path.name, " ".join(one for one in texts if isinstance(one, str))))
    return found


def options() -> set[str]:
    """Every option of every command."""
    left, known = [typer.main.get_command(app)], {"--help"}
    while left:
        command = left.pop()
        known |= {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
        left += getattr(command, "commands", {}).values()
    return known


def test_options_that_errors_name_exist() -> None:
    known = options() | OTHERS
    named = [(file, one) for file, text in texts_of_errors() for one in re.findall(r"(?<!\S)--[a-z][a-z-]*", text)]
    assert len(named) > 5
    assert [one for one in named if one[1] not in known] == []


def test_keys_that_errors_name_exist() -> None:
    sections = {name: field.annotation for name, field in Config.model_fields.items()}
    named = [
        (file, section, key)
        for file, text in texts_of_errors()
        for section, key in re.findall(rf"(?<![\w./])({'|'.join(sections)})\.([a-z_]+)", text)
    ]
    assert len(named) > 5
    assert [one for one in named if one[2] not in sections[one[1]].model_fields] == []
