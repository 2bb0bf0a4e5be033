"""Rankers of one's own by name: what is loaded, and what the error says of what is not."""

import sys

import polars as pl
import pytest

from vecall.errors import ConfigError
from vecall.service.ranker_loading import load_ranker

MODULE = """
import math

def by_score(candidates):
    return candidates["score"]

class Constant:
    def __call__(self, candidates):
        return [1.0] * len(candidates)

class NeedsModel:
    def __init__(self, path):
        pass

constant, number = Constant(), 5
"""


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    (tmp_path / "own_rankers.py").write_text(MODULE)
    (tmp_path / "broken_rankers.py").write_text("import module_that_is_missing\n")
    (tmp_path / "invalid_rankers.py").write_text("def rank(:\n")
    (tmp_path / "exiting_rankers.py").write_text("raise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in ("own_rankers", "broken_rankers", "invalid_rankers"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("name", "scores"), [("by_score", [0.5, 0.25]), ("Constant", [1.0, 1.0]), ("constant", [1.0, 1.0])]
)
def test_function_object_and_class_are_loaded_from_the_working_directory(name, scores):
    named = load_ranker(f"own_rankers:{name}")
    assert named.name == name
    assert list(named.ranker(pl.DataFrame({"score": [0.5, 0.25]}))) == scores


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("own_rankers", "expected MODULE:NAME, such as"),
        (":by_score", "expected MODULE:NAME, such as"),
        ("no_rankers:rank", "cannot import no_rankers: ModuleNotFoundError: .*; searched .*PYTHONPATH"),
        ("broken_rankers:rank", "cannot import broken_rankers: .*No module named 'module_that_is_missing'$"),
        ("invalid_rankers:rank", "cannot import invalid_rankers: SyntaxError"),
        (".own_rankers:rank", "expected MODULE:NAME, such as"),
        ("exiting_rankers:rank", "cannot import exiting_rankers: SystemExit: 3"),
        ("own_rankers:best", r"module own_rankers \(.*own_rankers.py\) has no best"),
        ("own_rankers:number", "expected a function of the candidates.* got int"),
        ("own_rankers:NeedsModel", r"cannot construct NeedsModel\(\): TypeError: .*path"),
    ],
)
def test_error_says_what_is_wrong(spec, message):
    with pytest.raises(ConfigError, match=f"--ranker {spec}: {message}"):
        load_ranker(spec)
