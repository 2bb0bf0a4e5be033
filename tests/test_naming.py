"""Names are the field's terms: words of the private vocabulary that this code once had do not come back."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vecall"
FILES = sorted(PACKAGE.rglob("*.py"))

# As a part of a name between underscores or capitals, with what to write instead.
FORBIDDEN = {
    "one": "the thing: item, name, value",
    "place": "index, position, location, offset",
    "places": "indices, positions",
    "made": "result, or what it is",
    "asked": "request, options",
    "told": "payload, or what it is",
    "said": "value, message",
    "given": "input, value, or what it is",
    "wanted": "expected, required",
    "taken": "history, used",
    "met": "observed",
    "shown": "visible, cards, impression",
    "usual": "default",
    "most": "max",
    "least": "min",
    "folder": "directory",
    "aside": "offload",
    "judge": "evaluate",
    "judged": "evaluated",
    "judgement": "result",
    "judgements": "results",
    "began": "start",
    "begun": "started",
    "patience_ms": "timeout",
    "overlay": "memtable",
    "founding": "dssm",
    "sum_files": "digest",
    "swap": "switch",
    "swaps": "switches",
    "swapped": "switched",
    "cells_index": "ivf",
    "effort": "search_params",
    "efforts": "search_params",
    "telling": "reporting",
    "mend": "fix",
    "refusal": "error",
    "recipe": "module",
    "contender": "model",
    "contenders": "models",
    "forgetting": "decay",
    "runners": "valid",
    "race": "chunk",
}
# Names that a public format or interface fixes, and terms in which the word is the field's own.
ALLOWED = {"connection_made", "effort", "one_hot", "Swap", "swap_axes"}


def words(name: str) -> list[str]:
    """Parts of a name in snake_case or CamelCase, in small letters."""
    return [part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[A-Z]|\d+", name)]


def defined_names(tree: ast.AST) -> list[tuple[str, int]]:
    """Every name that a module defines, and its line: functions, classes, parameters, variables, attributes of self."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.append((node.name, node.lineno))
        elif isinstance(node, ast.arg):
            names.append((node.arg, node.lineno))
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.append((node.id, node.lineno))
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.append((node.attr, node.lineno))
        elif isinstance(node, ast.alias) and node.asname:
            names.append((node.asname, node.lineno))
    return names


def forbidden_names(path: Path) -> list[str]:
    """`file:line: name (instead)` of each name with a forbidden word."""
    return [
        f"{path.name}:{line}: {name} (better: {FORBIDDEN[word]})"
        for name, line in defined_names(ast.parse(path.read_text(encoding="utf-8")))
        for word in words(name)
        if word in FORBIDDEN and name not in ALLOWED
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: ".".join(path.relative_to(PACKAGE).with_suffix("").parts))
def test_names_use_the_terms_of_the_field(path: Path) -> None:
    assert not forbidden_names(path)


@pytest.mark.parametrize("name", ["_made", "folder_of", "theOneThing", "MOST_ROWS", "run_dir_given"])
def test_forbidden_words_are_found_in_any_spelling(tmp_path: Path, name: str) -> None:
    source = tmp_path / "module.py"
    source.write_text(f"{name} = 1\n")
    assert len(forbidden_names(source)) == 1


@pytest.mark.parametrize("name", ["component", "replace", "almost_equal", "homemade", "stone"])
def test_words_within_words_are_no_matter(tmp_path: Path, name: str) -> None:
    source = tmp_path / "module.py"
    source.write_text(f"def {name}(): ...\n")
    assert not forbidden_names(source)
