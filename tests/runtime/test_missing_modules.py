"""A module that cannot be imported is attributed to the extra that installs it, and to no extra otherwise."""

import tomllib
from pathlib import Path

import pytest

from vecall.runtime.missing_modules import explain_missing_module

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def explain(module, extra):
    return explain_missing_module(ModuleNotFoundError(name=module), needed_by="this command", extra=extra)


@pytest.mark.parametrize("extra", ["serve", "train"])
def test_every_module_of_an_extra_is_attributed_to_it(extra):
    requirements = tomllib.loads(PYPROJECT.read_text("utf-8"))["project"]["optional-dependencies"][extra]
    modules = [requirement.partition(">")[0].replace("-", "_") for requirement in requirements]
    assert len(modules) >= 7
    for module in modules:
        expected = f"this command requires {module}, which is not installed: run pip install 'vecall[{extra}]'"
        assert explain(module, extra) == expected


def test_submodule_is_attributed_to_the_extra_of_its_package():
    assert explain("lightning.pytorch", "train").endswith("run pip install 'vecall[train]'")


@pytest.mark.parametrize("module", ["polars", "vecall.pipeline.fit", None])
def test_other_modules_are_attributed_to_no_extra(module):
    assert "vecall[" not in explain(module, "train")
    assert f"requires {module}, which is not installed and belongs to no extra of vecall" in explain(module, "train")
