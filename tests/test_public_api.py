"""The public names: few, fixed, documented and loaded when they are used."""

import inspect
import subprocess
import sys

import pytest

import vecall

PUBLIC = [
    "Config",
    "ConfigError",
    "DataError",
    "ExportError",
    "IndexSettings",
    "Query",
    "QueryError",
    "Recalled",
    "Recaller",
    "ReleaseRefused",
    "StoreError",
    "TrainingError",
    "VecallError",
    "evaluate",
    "fit",
    "load_config",
    "open_recaller",
    "publish",
    "publish_vectors",
]

SIGNATURES = {
    "load_config": "(path)",
    "fit": "(config, run_dir, *, init)",
    "publish": "(run_dir, store, *, name, activate, journal_seq, allow_worse)",
    "publish_vectors": "(store, ids, vectors, *, attributes, queries, index, name, activate, journal_seq)",
    "evaluate": "(*, run, store, config)",
    "open_recaller": "(store, *, release, writable, delta_max, auto_compact)",
    "Query": "(user_id, user, history, recent, vector, k, where, exclude, exclude_seen, explain)",
}


def test_the_public_names() -> None:
    assert vecall.__all__ == PUBLIC
    assert len(PUBLIC) <= 20


@pytest.mark.parametrize("name", PUBLIC)
def test_each_is_there_and_documented(name: str) -> None:
    assert inspect.getdoc(getattr(vecall, name))


@pytest.mark.parametrize("name", sorted(SIGNATURES))
def test_signatures_stay(name: str) -> None:
    parameters = inspect.signature(getattr(vecall, name)).parameters.values()
    keyword_only = [one.kind is one.KEYWORD_ONLY for one in parameters]
    names = [one.name for one in parameters]
    if any(keyword_only):
        names.insert(keyword_only.index(True), "*")
    assert f"({', '.join(names)})" == SIGNATURES[name]


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="recall_everything"):
        _ = vecall.recall_everything


def test_every_error_is_a_vecall_error() -> None:
    for name in PUBLIC:
        one = getattr(vecall, name)
        if inspect.isclass(one) and issubclass(one, Exception):
            assert issubclass(one, vecall.VecallError)


def test_public_names_without_training_load_no_torch() -> None:
    light = [name for name in PUBLIC if name not in ("fit", "publish", "evaluate")]
    code = f"import sys, vecall; [getattr(vecall, name) for name in {light!r}]; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
