"""Base class of settings sections, and the TOML files that hold them."""

import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from vecall.errors import ConfigError


class SettingsModel(BaseModel):
    """Base of every settings section: frozen; unknown keys, NaN and infinity are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def read_toml(path: Path, *, is_secret: bool = False) -> dict[str, Any]:
    """What a file says.

    Args:
        path: the file.
        is_secret: no message may show anything of it.

    Raises:
        ConfigError: it cannot be read, or is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: is not TOML" + ("" if is_secret else f": {error}")) from (
            None if is_secret else error
        )
