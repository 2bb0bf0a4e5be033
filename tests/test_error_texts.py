"""Options and keys that error texts name exist, on the command line and in vecall.toml."""

import ast
import re
from pathlib import Path

from support.cli import list_commands

from vecall.config import Config

PACKAGE = Path(__file__).parents[1] / "vecall"
FOREIGN_OPTIONS = {"--preload"}  # of gunicorn


def collect_error_texts() -> list[tuple[str, str]]:
    """File and literal text of every raise statement, without the values that are formatted into it."""
    error_texts = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for statement in ast.walk(ast.parse(path.read_text())):
            if isinstance(statement, ast.Raise):
                literals = [node.value for node in ast.walk(statement) if isinstance(node, ast.Constant)]
                error_texts.append((path.name, " ".join(text for text in literals if isinstance(text, str))))
    return error_texts


def list_options() -> set[str]:
    """Every option of every command."""
    parameters = [parameter for command in list_commands() for parameter in command.params]
    return {"--help"} | {name for parameter in parameters for name in (*parameter.opts, *parameter.secondary_opts)}


def test_options_named_in_errors_exist() -> None:
    known = list_options() | FOREIGN_OPTIONS
    named = [
        (file, option) for file, text in collect_error_texts() for option in re.findall(r"(?<!\S)--[a-z][a-z-]*", text)
    ]
    assert len(named) > 5
    assert [(file, option) for file, option in named if option not in known] == []


def test_config_keys_named_in_errors_exist() -> None:
    sections = {name: field.annotation for name, field in Config.model_fields.items()}
    named = [
        (file, section, key)
        for file, text in collect_error_texts()
        for section, key in re.findall(rf"(?<![\w./])({'|'.join(sections)})\.([a-z_]+)", text)
    ]
    assert len(named) > 5
    assert [(file, section, key) for file, section, key in named if key not in sections[section].model_fields] == []
