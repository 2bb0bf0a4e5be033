"""Manifest of a release, and verification of the release's files against it."""

import hashlib
import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, Field, JsonValue, ValidationError

from vecall.channels.merge_plan import VECTORS_ALONE, MergePlan
from vecall.errors import InvalidReleaseError, StoreError
from vecall.index.index_info import IndexInfo
from vecall.ranking.ranker_info import NO_RANKER, RankerInfo
from vecall.release.file_io import compute_sha256
from vecall.runtime.durable_files import fsync_path, write_and_fsync
from vecall.schema import IdType
from vecall.settings_base import SettingsModel, describe_validation_error

RELEASE_FORMAT = 4
RELEASE_NAME_PATTERN = r"[a-z0-9][a-z0-9._-]{0,63}"
MANIFEST_FILE, MANIFEST_DIGEST_FILE = "manifest.json", "manifest.sha256"
CHANNELS_DIR = "channels"  # the only directory in a release
_SHA256_PATTERN = r"[0-9a-f]{64}"
_SUMMARY_FIELDS = {"name", "created", "items", "dim", "metrics", "parent", "journal_seq"}


class FileDigest(SettingsModel):
    """Size and SHA-256 of a file."""

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=f"^{_SHA256_PATTERN}$")


class ReleaseMetadata(SettingsModel):
    """Part of the manifest that the publisher provides; the store adds the rest."""

    items: int = Field(ge=1, description="N, the number of items")
    dim: int = Field(ge=1, description="D, the dimension of item vectors")
    id_type: IdType
    encoder: str | None = Field(None, pattern="^[0-9a-f]+$", description="encoder hash; None without towers")
    index: IndexInfo
    ann: dict[str, JsonValue] | None = Field(None, description="measured ANN recall, its floor and the tuned points")
    merge: MergePlan = Field(VECTORS_ALONE, description="channels that a request uses, and how they are merged")
    ranker: RankerInfo = Field(NO_RANKER, description="what orders the recalled items, and why")
    metrics: dict[str, JsonValue] = Field({}, description="of the model and of the baselines, by name")
    trained_settings: dict[str, JsonValue] = Field({}, description="sections model and training of a trained run")
    libraries: dict[str, str] = Field({}, description="version by library")
    journal_seq: int = Field(0, ge=0, description="the release contains the journal's operations up to this one")
    tables_seq: int = Field(0, ge=0, description="the tables contain the journal's operations up to this one")
    rejected_changes: tuple[tuple[int | str, int], ...] = Field(
        (), description="upserts up to journal_seq that the release cannot take, as item id and sequence number"
    )


class Manifest(ReleaseMetadata):
    """Content of `manifest.json`."""

    format: Literal[4] = 4
    name: str = Field(pattern=f"^{RELEASE_NAME_PATTERN}$")
    created: AwareDatetime
    parent: str | None = Field(pattern=f"^{RELEASE_NAME_PATTERN}$", description="the current release at publishing")
    files: dict[str, FileDigest] = Field(description="all files but the manifest and its digest")

    @property
    def total_bytes(self) -> int:
        """Size of all files but the manifest and its digest."""
        return sum(entry.bytes for entry in self.files.values())

    def to_summary(self) -> dict[str, Any]:
        """Return this release's entry of `GET /v1/releases`, as JSON values."""
        return self.model_dump(mode="json", include=_SUMMARY_FIELDS) | {"bytes": self.total_bytes}


def digest_files(directory: Path) -> dict[str, FileDigest]:
    """Flush every file of a directory to disk and compute its digest.

    Returns:
        Digest by file name.

    Raises:
        StoreError: the directory contains a manifest, or anything that is not a regular file.
    """
    digests = {}
    for path in sorted(_list_entries(directory)):
        if not _is_regular_file(path) or path.name in (MANIFEST_FILE, MANIFEST_DIGEST_FILE):
            raise StoreError(
                f"{path} cannot be part of a release: expected regular files other than a manifest, no links, and no "
                f"directories but {CHANNELS_DIR}/; remove it"
            )
        fsync_path(path)
        name = path.relative_to(directory).as_posix()
        digests[name] = FileDigest(bytes=path.stat().st_size, sha256=compute_sha256(path))
    if (directory / CHANNELS_DIR).exists():
        fsync_path(directory / CHANNELS_DIR)
    return digests


def _list_entries(directory: Path) -> Iterator[Path]:
    """Yield everything in the directory of a release; in place of `channels/`, what is in it."""
    for path in directory.iterdir():
        if path.name == CHANNELS_DIR and stat.S_ISDIR(path.lstat().st_mode):
            yield from path.iterdir()
        else:
            yield path


def write_manifest(directory: Path, manifest: Manifest) -> str:
    """Write a manifest and then its digest; flush both files and their directory to disk.

    Returns:
        The manifest's SHA-256.
    """
    content = json.dumps(manifest.model_dump(mode="json"), indent=1, ensure_ascii=False).encode() + b"\n"
    digest = hashlib.sha256(content).hexdigest()
    write_and_fsync(directory / MANIFEST_FILE, content)
    write_and_fsync(directory / MANIFEST_DIGEST_FILE, digest.encode() + b"\n")
    fsync_path(directory)
    return digest


def read_manifest(directory: Path, *, expected_sha256: str | None = None) -> tuple[Manifest, str]:
    """Read a release's manifest and verify it against its digest; other files are not read.

    Args:
        directory: the release.
        expected_sha256: the manifest's SHA-256 according to `CURRENT`, if the release is the current one.

    Returns:
        The manifest and its SHA-256.

    Raises:
        InvalidReleaseError: manifest or digest is missing, damaged or of another format; `file` names the file.
    """
    recorded = read_release_file(directory, MANIFEST_DIGEST_FILE)
    content = read_release_file(directory, MANIFEST_FILE)
    actual = hashlib.sha256(content).hexdigest()
    if not re.fullmatch(_SHA256_PATTERN.encode() + rb"\n", recorded):
        raise _make_invalid_release_error(
            directory, MANIFEST_DIGEST_FILE, "is damaged: expected 64 hexadecimal digits and a line feed"
        )
    if recorded != actual.encode() + b"\n":
        raise _make_digest_mismatch_error(directory, recorded.decode().strip(), actual, expected_sha256)
    if expected_sha256 not in (None, actual):
        raise InvalidReleaseError(
            f"CURRENT expects {directory / MANIFEST_FILE} to have the SHA-256 {expected_sha256}, but it has {actual}: "
            "CURRENT is damaged or the release was replaced; activate a release that you trust",
            file="CURRENT",
        )
    return _parse_manifest(directory, content), actual


def verify_release(directory: Path, *, expected_sha256: str | None = None) -> Manifest:
    """Verify every byte of a release. Native libraries may open its files only after this.

    Args:
        directory: the release.
        expected_sha256: the manifest's SHA-256 according to `CURRENT`, if the release is the current one.

    Raises:
        InvalidReleaseError: a file is damaged, missing or not listed in the manifest; `file` names it.
    """
    manifest, _ = read_manifest(directory, expected_sha256=expected_sha256)
    try:
        _verify_files(directory, manifest)
    except OSError as error:  # for example, the release was pruned meanwhile
        name = Path(str(error.filename or directory)).name
        raise _make_invalid_release_error(
            directory, name, f"is missing or cannot be read ({error.strerror})"
        ) from error
    return manifest


def _verify_files(directory: Path, manifest: Manifest) -> None:
    """Compare names, then all sizes, then all digests, so that cheap checks fail before gigabytes are read."""
    present_names = set()
    for path in _list_entries(directory):
        name = path.relative_to(directory).as_posix()
        if not _is_regular_file(path):
            raise _make_invalid_release_error(
                directory, name, "is a directory or a link; a release consists of regular files"
            )
        if name not in manifest.files and name not in (MANIFEST_FILE, MANIFEST_DIGEST_FILE):
            raise _make_invalid_release_error(
                directory, name, "is not listed in the manifest; move it out of the release"
            )
        present_names.add(name)
    for name in manifest.files:
        if name not in present_names:
            raise _make_invalid_release_error(directory, name, "is missing")
    for name, expected in manifest.files.items():
        size = (directory / name).stat().st_size
        if size != expected.bytes:
            raise _make_invalid_release_error(directory, name, f"has {size} bytes; the manifest lists {expected.bytes}")
    for name, expected in manifest.files.items():
        if compute_sha256(directory / name) != expected.sha256:
            raise _make_invalid_release_error(directory, name, "is damaged: its SHA-256 differs from the manifest's")


def _is_regular_file(path: Path) -> bool:
    return stat.S_ISREG(path.lstat().st_mode)


def read_release_file(directory: Path, file_name: str) -> bytes:
    """Read a file of a release into memory, without verifying it.

    Raises:
        InvalidReleaseError: the file is missing or cannot be read.
    """
    try:
        return (directory / file_name).read_bytes()
    except OSError as error:
        raise _make_invalid_release_error(
            directory, file_name, f"is missing or cannot be read ({error.strerror})"
        ) from error


def _parse_manifest(directory: Path, content: bytes) -> Manifest:
    try:
        fields: Any = json.loads(content)
        _check_format(directory, fields["format"])
        manifest = Manifest.model_validate(fields)
    except ValidationError as error:
        problems = "; ".join(map(str, describe_validation_error(error, Manifest, fields)))
        raise _make_invalid_release_error(directory, MANIFEST_FILE, f"is not a manifest: {problems}") from error
    except (ValueError, TypeError, KeyError) as error:  # JSONDecodeError is a ValueError
        raise _make_invalid_release_error(
            directory, MANIFEST_FILE, f"is not a manifest: {type(error).__name__}: {error}"
        ) from error
    if manifest.name != directory.name:
        raise _make_invalid_release_error(
            directory, MANIFEST_FILE, f"is of release {manifest.name!r}, but lies in the directory {directory.name!r}"
        )
    return manifest


def _check_format(directory: Path, version: object) -> None:
    """Reject another format before its keys are validated, since these would make a confusing message."""
    if not isinstance(version, int) or version == RELEASE_FORMAT:  # the manifest's validation rejects other types
        return
    age, remedy = ("a newer", "Upgrade vecall") if version > RELEASE_FORMAT else ("an older", "Publish it again")
    raise _make_invalid_release_error(
        directory,
        MANIFEST_FILE,
        f"has format {version}, written by {age} vecall; this version reads format {RELEASE_FORMAT}",
        remedy,
    )


def _make_digest_mismatch_error(
    directory: Path, recorded: str, actual: str, expected: str | None
) -> InvalidReleaseError:
    """Blame whichever of manifest and digest file disagrees with `CURRENT`; without `CURRENT`, blame both."""
    if expected == actual:
        return _make_invalid_release_error(
            directory, MANIFEST_DIGEST_FILE, f"is damaged: CURRENT and {MANIFEST_FILE} agree on another SHA-256"
        )
    if expected == recorded:
        return _make_invalid_release_error(
            directory, MANIFEST_FILE, f"is damaged: CURRENT and {MANIFEST_DIGEST_FILE} agree on another SHA-256"
        )
    return _make_invalid_release_error(
        directory, MANIFEST_FILE, f"and {MANIFEST_DIGEST_FILE} do not agree: one of them is damaged"
    )


def _make_invalid_release_error(
    directory: Path, file_name: str, reason: str, remedy: str | None = None
) -> InvalidReleaseError:
    return InvalidReleaseError(
        f"release {directory.name!r} is refused: {file_name} {reason}. {remedy or f'Restore {directory} from a copy'}, "
        "or activate another release",
        file=file_name,
    )
