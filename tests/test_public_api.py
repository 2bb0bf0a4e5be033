"""Public names of the package: few, fixed, documented and imported on first access."""

import inspect
import subprocess
import sys

import pytest

import vecall

PUBLIC = [
    "Client",
    "Config",
    "ConfigError",
    "DataError",
    "DenseTower",
    "ExportError",
    "IndexSettings",
    "InvalidReleaseError",
    "Query",
    "QueryError",
    "Recalled",
    "Recaller",
    "Recommended",
    "StoreError",
    "TableEncoder",
    "TrainingError",
    "VecallError",
    "evaluate",
    "fit",
    "fit_encoders",
    "load_config",
    "open_recaller",
    "publish",
    "publish_towers",
    "publish_vectors",
]

SIGNATURES = {
    "Client": "(url, key, *, timeout_seconds, max_attempts)",
    "load_config": "(path)",
    "fit": "(config, run_dir, *, init)",
    "publish": "(run_dir, store, *, name, activate, journal_seq, allow_worse)",
    "publish_towers": "(store, user_tower, item_tower, *, schema, items, users, interactions, queries, encoders, "
    "history_length, index, name, activate, journal_seq, allow_worse)",
    "fit_encoders": "(schema, items, users)",
    "DenseTower": "(target, *, features)",
    "publish_vectors": "(store, ids, vectors, *, attributes, queries, index, name, activate, journal_seq, allow_worse)",
    "evaluate": "(*, run, store, config, all_users)",
    "open_recaller": "(store, *, release, writable, max_delta_items, auto_compact, ranker)",
    "Query": "(user_id, user, history, recent, vector, k, where, exclude, exclude_seen, channels, explain)",
}


def test_public_names() -> None:
    assert vecall.__all__ == PUBLIC
    assert len(PUBLIC) <= 25


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_exists_and_has_a_docstring(name: str) -> None:
    assert inspect.getdoc(getattr(vecall, name))


@pytest.mark.parametrize("name", sorted(SIGNATURES))
def test_public_signature_is_fixed(name: str) -> None:
    parameters = inspect.signature(getattr(vecall, name)).parameters.values()
    keyword_only = [parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters]
    names = [parameter.name for parameter in parameters]
    if any(keyword_only):
        names.insert(keyword_only.index(True), "*")
    assert f"({', '.join(names)})" == SIGNATURES[name]


def test_unknown_name_raises_attribute_error() -> None:
    with pytest.raises(AttributeError, match="recall_everything"):
        _ = vecall.recall_everything


def test_missing_dependency_raises_import_error_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_without_torch(name: str) -> None:
        raise ModuleNotFoundError(f"No module named 'torch', imported by {name}", name="torch")

    monkeypatch.setattr(vecall, "import_module", import_without_torch)
    with pytest.raises(ImportError, match=r"vecall\.fit requires torch, .* pip install 'vecall\[train\]'"):
        _ = vecall.fit


def test_public_exceptions_derive_from_vecall_error() -> None:
    classes = [value for name in PUBLIC if inspect.isclass(value := getattr(vecall, name))]
    exceptions = [value for value in classes if issubclass(value, Exception)]
    assert len(exceptions) == 8
    for exception in exceptions:
        assert issubclass(exception, vecall.VecallError)
        assert exception.__name__.endswith("Error")


def test_public_names_other_than_training_load_no_torch() -> None:
    names = [name for name in PUBLIC if name not in ("DenseTower", "fit", "publish", "publish_towers", "evaluate")]
    code = f"import sys, vecall; [getattr(vecall, name) for name in {names!r}]; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
