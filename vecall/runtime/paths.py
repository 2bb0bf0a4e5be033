"""Paths that users give: every library that is handed one must be able to say it."""

from pathlib import Path

from vecall.errors import ConfigError


def to_absolute_path(path: str | Path) -> Path:
    """A path as an absolute one, so that it stays the same when the process changes its folder.

    Raises:
        ConfigError: its name is no UTF-8, which the libraries that read and write files need.
    """
    path = Path(path)
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"{str(path)!a}: this path is not UTF-8, and cannot be used: rename it, or link to it"
        ) from None
    return path.absolute()
