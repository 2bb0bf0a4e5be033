"""The file `CURRENT` of a store: which release is current."""

import json
from pathlib import Path

from pydantic import Field, ValidationError

from vecall.errors import InvalidReleaseError
from vecall.release.manifest import RELEASE_NAME_PATTERN
from vecall.runtime.durable_files import atomic_write, fsync_path
from vecall.settings_base import SettingsModel

_FILE = "CURRENT"


class CurrentPointer(SettingsModel):
    """Content of the file `CURRENT`: which release is current."""

    release: str = Field(pattern=f"^{RELEASE_NAME_PATTERN}$")
    manifest_sha256: str = Field(pattern="^[0-9a-f]{64}$")

    def to_bytes(self) -> bytes:
        """Serialize to the only accepted spelling, so that any changed byte is detected, even a space."""
        return json.dumps(self.model_dump()).encode() + b"\n"


def read_current(store_dir: Path) -> CurrentPointer | None:
    """Read which release of a store is current; None if no release is.

    Raises:
        InvalidReleaseError: `CURRENT` is damaged.
    """
    try:
        content = (store_dir / _FILE).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise make_current_error(store_dir, str(error)) from error
    try:
        current = CurrentPointer.model_validate_json(content)
    except ValidationError as error:
        raise make_current_error(store_dir, f"it contains {content[:200]!r}") from error
    if content != current.to_bytes():
        raise make_current_error(store_dir, f"it is not spelled as vecall writes it: {content[:200]!r}")
    return current


def write_current(store_dir: Path, current: CurrentPointer) -> None:
    """Make a release current, atomically and durably; call it under the store's lock."""
    fsync_path(store_dir / "releases")  # the release's directory entry may not have been flushed yet
    atomic_write(store_dir / _FILE, current.to_bytes())


def make_current_error(store_dir: Path, reason: str) -> InvalidReleaseError:
    """Build the error of a damaged `CURRENT`."""
    return InvalidReleaseError(
        f"{store_dir / _FILE} is damaged: {reason}. Activate the release to be served", file=_FILE
    )
