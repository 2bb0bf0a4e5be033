"""Paths given by users."""

from pathlib import Path

from vecall.errors import ConfigError


def to_absolute_path(path: str | Path) -> Path:
    """Make a path absolute, so that it stays valid when the process changes its working directory.

    Neither `~` nor symbolic links are resolved.

    Raises:
        ConfigError: The path is not valid UTF-8, which the libraries that read and write files require.
    """
    path = Path(path)
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"{str(path)!a}: this path is not UTF-8; rename it, or use a symbolic link with a UTF-8 name"
        ) from None
    return path.absolute()
