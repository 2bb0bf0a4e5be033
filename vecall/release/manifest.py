"""What a release says of itself, and the check that every byte of it is as it was published."""

import hashlib
import json
import re
import stat
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, Field, JsonValue, ValidationError

from vecall.errors import InvalidReleaseError, StoreError
from vecall.release.atomic_io import compute_sha256, fsync_path, write_and_fsync
from vecall.schema import IdType
from vecall.settings_base import SettingsModel, describe_validation_error

RELEASE_FORMAT = 3
RELEASE_NAME_PATTERN = r"[a-z0-9][a-z0-9._-]{0,63}"
MANIFEST_FILE, MANIFEST_DIGEST_FILE = "manifest.json", "manifest.sha256"
_SHA256_PATTERN = r"[0-9a-f]{64}"
_SUMMARY_FIELDS = {"name", "created", "items", "dim", "metrics", "parent", "journal_seq"}


class FileDigest(SettingsModel):
    """What a file must be."""

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=f"^{_SHA256_PATTERN}$")


class IndexInfo(SettingsModel):
    """How the index was built."""

    engine: str
    metric: Literal["inner_product"] = "inner_product"
    storage: Literal["fp16"] = "fp16"
    parameters: dict[str, JsonValue] = Field({})
    costs: dict[str, float] = Field({}, description="milliseconds that the planner weighs")
    settings: dict[str, JsonValue] = Field({}, description="the [index] section that it was built by")


class ReleaseMetadata(SettingsModel):
    """What a publisher says of a release; the store adds the rest."""

    items: int = Field(ge=1, description="N")
    dim: int = Field(ge=1, description="D")
    id_type: IdType
    encoder: str | None = Field(None, pattern="^[0-9a-f]+$", description="hash of the towers; None: no towers")
    index: IndexInfo
    ann: dict[str, JsonValue] | None = Field(None, description="k, ANN recall, its floor, ... as measured")
    metrics: dict[str, JsonValue] = Field({}, description="of the model")
    libraries: dict[str, str] = Field({}, description="versions")
    journal_seq: int = Field(0, ge=0, description="operations up to this one are contained")
    tables_seq: int = Field(0, ge=0, description="operations up to this one are in the tables, as was said last")


class Manifest(ReleaseMetadata):
    """All that a release says of itself."""

    format: Literal[3] = 3
    name: str = Field(pattern=f"^{RELEASE_NAME_PATTERN}$")
    created: AwareDatetime
    parent: str | None = Field(pattern=f"^{RELEASE_NAME_PATTERN}$", description="the release that was active before")
    files: dict[str, FileDigest] = Field(description="every file but the manifest and its sum")

    @property
    def total_bytes(self) -> int:
        """Size of all files but the manifest and its sum."""
        return sum(entry.bytes for entry in self.files.values())

    def to_summary(self) -> dict[str, Any]:
        """What a list of releases tells of this one, as JSON."""
        return self.model_dump(mode="json", include=_SUMMARY_FIELDS) | {"bytes": self.total_bytes}


def digest_files(directory: Path) -> dict[str, FileDigest]:
    """Size and sha256 of every file in a folder, each of them put on the disk.

    Raises:
        StoreError: there is something else than plain files, or a manifest.
    """
    sums = {}
    for path in sorted(directory.iterdir()):
        if not _is_regular_file(path) or path.name in (MANIFEST_FILE, MANIFEST_DIGEST_FILE):
            raise StoreError(
                f"{path} cannot be part of a release: expected plain files that are no manifest, "
                "without folders and links"
            )
        fsync_path(path)
        sums[path.name] = FileDigest(bytes=path.stat().st_size, sha256=compute_sha256(path))
    return sums


def write_manifest(directory: Path, manifest: Manifest) -> str:
    """Write a manifest and, last, its sum; put both on the disk, and the folder's names too.

    Returns:
        The manifest's sha256.
    """
    content = json.dumps(manifest.model_dump(mode="json"), indent=1, ensure_ascii=False).encode() + b"\n"
    digest = hashlib.sha256(content).hexdigest()
    write_and_fsync(directory / MANIFEST_FILE, content)
    write_and_fsync(directory / MANIFEST_DIGEST_FILE, digest.encode() + b"\n")
    fsync_path(directory)
    return digest


def read_manifest(directory: Path, *, expected_sha256: str | None = None) -> tuple[Manifest, str]:
    """Read a release's manifest and hold it against its sum; the other files are not looked at.

    Args:
        directory: the release, in a folder of its name.
        expected_sha256: the manifest's sum as `CURRENT` says it, if it does.

    Returns:
        The manifest and its sha256.

    Raises:
        ReleaseRefused: manifest or sum is missing, damaged or of a newer format; `file` says which.
    """
    said = _read_file(directory, MANIFEST_DIGEST_FILE)
    content = _read_file(directory, MANIFEST_FILE)
    actual = hashlib.sha256(content).hexdigest()
    if not re.fullmatch(_SHA256_PATTERN.encode() + rb"\n", said):
        raise _make_invalid_release_error(
            directory, MANIFEST_DIGEST_FILE, "is damaged: expected 64 hexadecimal digits and a line's end"
        )
    if said != actual.encode() + b"\n":
        if expected_sha256 == actual:
            raise _make_invalid_release_error(
                directory, MANIFEST_DIGEST_FILE, f"is damaged: CURRENT and {MANIFEST_FILE} agree on another sum"
            )
        if said.decode().strip() == expected_sha256:
            raise _make_invalid_release_error(
                directory, MANIFEST_FILE, f"is damaged: CURRENT and {MANIFEST_DIGEST_FILE} agree on another sum"
            )
        raise _make_invalid_release_error(
            directory, MANIFEST_FILE, f"and {MANIFEST_DIGEST_FILE} do not agree: one of them is damaged"
        )
    if expected_sha256 not in (None, actual):
        raise InvalidReleaseError(
            f"CURRENT expects {directory / MANIFEST_FILE} to have the sha256 {expected_sha256}, and it has {actual}: "
            f"CURRENT is damaged or the release was exchanged; activate a release that you trust",
            file="CURRENT",
        )
    return _parse_manifest(directory, content), actual


def verify_release(directory: Path, *, expected_sha256: str | None = None) -> Manifest:
    """Check every byte of a release. Only after this may its files be given to native code.

    Args:
        directory: the release, in a folder of its name.
        expected_sha256: the manifest's sum as `CURRENT` says it, if it does.

    Raises:
        ReleaseRefused: a file is damaged, missing, or not named by the manifest; `file` says which.
    """
    manifest, _ = read_manifest(directory, expected_sha256=expected_sha256)
    try:
        _verify_files(directory, manifest)
    except OSError as error:  # pruned meanwhile, for one
        name = Path(str(error.filename or directory)).name
        raise _make_invalid_release_error(
            directory, name, f"is missing or cannot be read ({error.strerror})"
        ) from error
    return manifest


def _verify_files(directory: Path, manifest: Manifest) -> None:
    present = set()
    for path in directory.iterdir():
        if not _is_regular_file(path):
            raise _make_invalid_release_error(
                directory, path.name, "is a folder or a link: a release has plain files only"
            )
        if path.name not in manifest.files and path.name not in (MANIFEST_FILE, MANIFEST_DIGEST_FILE):
            raise _make_invalid_release_error(
                directory, path.name, "is not named by the manifest: move it out of the release"
            )
        present.add(path.name)
    for name in manifest.files:
        if name not in present:
            raise _make_invalid_release_error(directory, name, "is missing")
    for name, said in manifest.files.items():
        size = (directory / name).stat().st_size
        if size != said.bytes:
            raise _make_invalid_release_error(directory, name, f"has {size} bytes; the manifest says {said.bytes}")
    for name, said in manifest.files.items():
        if compute_sha256(directory / name) != said.sha256:
            raise _make_invalid_release_error(directory, name, "is damaged: its sha256 is not the one in the manifest")


def _is_regular_file(path: Path) -> bool:
    return stat.S_ISREG(path.lstat().st_mode)


def _read_file(directory: Path, file_name: str) -> bytes:
    try:
        return (directory / file_name).read_bytes()
    except OSError as error:
        raise _make_invalid_release_error(
            directory, file_name, f"is missing or cannot be read ({error.strerror})"
        ) from error


def _parse_manifest(directory: Path, content: bytes) -> Manifest:
    try:
        fields: Any = json.loads(content)
        version = fields["format"]
        if isinstance(version, int) and version != RELEASE_FORMAT:
            age = "a newer" if version > RELEASE_FORMAT else "an older"
            raise _make_invalid_release_error(
                directory,
                MANIFEST_FILE,
                f"has format {version}, written by {age} vecall; this version reads format {RELEASE_FORMAT}: publish again",
            )
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
            directory, MANIFEST_FILE, f"is of release {manifest.name!r}, and lies in {directory.name!r}"
        )
    return manifest


def _make_invalid_release_error(directory: Path, file_name: str, reason: str) -> InvalidReleaseError:
    return InvalidReleaseError(
        f"release {directory.name!r} is refused: {file_name} {reason}. Restore {directory}, or activate another release",
        file=file_name,
    )
