"""Loading of a ranker of one's own by its name, for `vecall serve --ranker MODULE:NAME`."""

import sys
from importlib import import_module
from pathlib import Path

from vecall.errors import ConfigError
from vecall.ranking.ranker import NamedRanker


def load_ranker(spec: str) -> NamedRanker:
    """Import a ranker; the working directory is searched beside the installed packages and PYTHONPATH.

    Args:
        spec: `MODULE:NAME`, such as `my_rankers:boost`. NAME is a ranker (see `vecall.ranking.ranker.Ranker`), or a
            class of rankers, which is constructed without arguments. Answers call the ranker NAME.

    Raises:
        ConfigError: There is no such module or name, it cannot be imported or constructed, or it cannot be called.
    """
    module_name, _, name = spec.partition(":")
    if not module_name or not name or module_name.startswith("."):
        raise ConfigError(f"--ranker {spec}: expected MODULE:NAME, such as my_rankers:boost")
    if (directory := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, directory)  # which a console script does not search
    try:
        module = import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever the module raises
        is_missing = isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}.")
        hint = f"; searched {directory}, PYTHONPATH and the installed packages" if is_missing else ""
        text = f"--ranker {spec}: cannot import {module_name}: {type(error).__name__}: {error}{hint}"
        raise ConfigError(text) from error
    if not hasattr(module, name):
        location = getattr(module, "__file__", None) or "a directory without __init__.py"
        raise ConfigError(f"--ranker {spec}: module {module_name} ({location}) has no {name}")
    ranker = getattr(module, name)
    if isinstance(ranker, type):
        ranker = _construct(spec, ranker)
    if not callable(ranker):
        raise ConfigError(
            f"--ranker {spec}: expected a function of the candidates, or an object or a class with `__call__`, got "
            f"{type(ranker).__name__}"
        )
    return NamedRanker(name, ranker)


def _construct(spec: str, ranker_class: type) -> object:
    try:
        return ranker_class()
    except Exception as error:  # whatever it raises
        text = f"--ranker {spec}: cannot construct {ranker_class.__name__}(): {type(error).__name__}: {error}"
        raise ConfigError(text) from error
