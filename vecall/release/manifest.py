"""What a release says of itself, and the check that every byte of it is as it was published."""

import hashlib
import json
import re
import stat
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, Field, JsonValue, ValidationError

from vecall.errors import ReleaseRefused, StoreError
from vecall.release.atomic_io import sha256, sync, write_synced
from vecall.schema import IdType, Section

FORMAT = 2  # 1 is read too: it lacks `declared_seq`
NAME = r"[a-z0-9][a-z0-9._-]{0,63}"
MANIFEST, MANIFEST_SUM = "manifest.json", "manifest.sha256"
_SUM = r"[0-9a-f]{64}"
_LISTED = {"name", "created", "items", "dim", "metrics", "parent", "journal_seq"}


class FileSum(Section):
    """What a file must be."""

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=f"^{_SUM}$")


class IndexFacts(Section):
    """How the index was built."""

    engine: str
    metric: Literal["inner_product"] = "inner_product"
    storage: Literal["fp16"] = "fp16"
    parameters: dict[str, JsonValue] = Field({})
    costs: dict[str, float] = Field({}, description="milliseconds that the planner weighs")
    settings: dict[str, JsonValue] = Field({}, description="the [index] section that it was built by")


class Description(Section):
    """What a publisher says of a release; the store adds the rest."""

    items: int = Field(ge=1, description="N")
    dim: int = Field(ge=1, description="D")
    id_type: IdType
    encoder: str | None = Field(None, pattern="^[0-9a-f]+$", description="hash of the towers; None: no towers")
    index: IndexFacts
    ann: dict[str, JsonValue] | None = Field(None, description="k, ANN recall, its floor, ... as measured")
    metrics: dict[str, JsonValue] = Field({}, description="of the model")
    libraries: dict[str, str] = Field({}, description="versions")
    journal_seq: int = Field(0, ge=0, description="operations up to this one are contained")
    declared_seq: int = Field(0, ge=0, description="operations up to this one are in the tables, as was said last")


class Manifest(Description):
    """All that a release says of itself."""

    format: Literal[1, 2] = 2
    name: str = Field(pattern=f"^{NAME}$")
    created: AwareDatetime
    parent: str | None = Field(pattern=f"^{NAME}$", description="the release that was active before")
    files: dict[str, FileSum] = Field(description="every file but the manifest and its sum")

    @property
    def bytes(self) -> int:
        """Size of all files but the manifest and its sum."""
        return sum(entry.bytes for entry in self.files.values())

    def listed(self) -> dict[str, Any]:
        """What a list of releases tells of this one, as JSON."""
        return self.model_dump(mode="json", include=_LISTED) | {"bytes": self.bytes}


def sum_files(folder: Path) -> dict[str, FileSum]:
    """Size and sha256 of every file in a folder, each of them put on the disk.

    Raises:
        StoreError: there is something else than plain files, or a manifest.
    """
    sums = {}
    for path in sorted(folder.iterdir()):
        if not _is_plain(path) or path.name in (MANIFEST, MANIFEST_SUM):
            raise StoreError(
                f"{path} cannot be part of a release: expected plain files that are no manifest, "
                "without folders and links"
            )
        sync(path)
        sums[path.name] = FileSum(bytes=path.stat().st_size, sha256=sha256(path))
    return sums


def write_manifest(folder: Path, manifest: Manifest) -> str:
    """Write a manifest and, last, its sum; put both on the disk, and the folder's names too.

    Returns:
        The manifest's sha256.
    """
    content = json.dumps(manifest.model_dump(mode="json"), indent=1, ensure_ascii=False).encode() + b"\n"
    digest = hashlib.sha256(content).hexdigest()
    write_synced(folder / MANIFEST, content)
    write_synced(folder / MANIFEST_SUM, digest.encode() + b"\n")
    sync(folder)
    return digest


def read_manifest(folder: Path, *, expected_sha256: str | None = None) -> tuple[Manifest, str]:
    """Read a release's manifest and hold it against its sum; the other files are not looked at.

    Args:
        folder: the release, in a folder of its name.
        expected_sha256: the manifest's sum as `CURRENT` says it, if it does.

    Returns:
        The manifest and its sha256.

    Raises:
        ReleaseRefused: manifest or sum is missing, damaged or of a newer format; `file` says which.
    """
    said = _read(folder, MANIFEST_SUM)
    content = _read(folder, MANIFEST)
    actual = hashlib.sha256(content).hexdigest()
    if not re.fullmatch(_SUM.encode() + rb"\n", said):
        raise _refused(folder, MANIFEST_SUM, "is damaged: expected 64 hexadecimal digits and a line's end")
    if said != actual.encode() + b"\n":
        if expected_sha256 == actual:
            raise _refused(folder, MANIFEST_SUM, f"is damaged: CURRENT and {MANIFEST} agree on another sum")
        if said.decode().strip() == expected_sha256:
            raise _refused(folder, MANIFEST, f"is damaged: CURRENT and {MANIFEST_SUM} agree on another sum")
        raise _refused(folder, MANIFEST, f"and {MANIFEST_SUM} do not agree: one of them is damaged")
    if expected_sha256 not in (None, actual):
        raise ReleaseRefused(
            f"CURRENT expects {folder / MANIFEST} to have the sha256 {expected_sha256}, and it has {actual}: "
            f"CURRENT is damaged or the release was exchanged; activate a release that you trust",
            file="CURRENT",
        )
    return _parsed(folder, content), actual


def verify(folder: Path, *, expected_sha256: str | None = None) -> Manifest:
    """Check every byte of a release. Only after this may its files be given to native code.

    Args:
        folder: the release, in a folder of its name.
        expected_sha256: the manifest's sum as `CURRENT` says it, if it does.

    Raises:
        ReleaseRefused: a file is damaged, missing, or not named by the manifest; `file` says which.
    """
    manifest, _ = read_manifest(folder, expected_sha256=expected_sha256)
    try:
        _verify_files(folder, manifest)
    except OSError as error:  # pruned meanwhile, for one
        name = Path(str(error.filename or folder)).name
        raise _refused(folder, name, f"is missing or cannot be read ({error.strerror})") from error
    return manifest


def _verify_files(folder: Path, manifest: Manifest) -> None:
    present = set()
    for path in folder.iterdir():
        if not _is_plain(path):
            raise _refused(folder, path.name, "is a folder or a link: a release has plain files only")
        if path.name not in manifest.files and path.name not in (MANIFEST, MANIFEST_SUM):
            raise _refused(folder, path.name, "is not named by the manifest: move it out of the release")
        present.add(path.name)
    for name in manifest.files:
        if name not in present:
            raise _refused(folder, name, "is missing")
    for name, said in manifest.files.items():
        size = (folder / name).stat().st_size
        if size != said.bytes:
            raise _refused(folder, name, f"has {size} bytes; the manifest says {said.bytes}")
    for name, said in manifest.files.items():
        if sha256(folder / name) != said.sha256:
            raise _refused(folder, name, "is damaged: its sha256 is not the one in the manifest")


def _is_plain(path: Path) -> bool:
    return stat.S_ISREG(path.lstat().st_mode)


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise _refused(folder, name, f"is missing or cannot be read ({error.strerror})") from error


def _parsed(folder: Path, content: bytes) -> Manifest:
    try:
        fields: Any = json.loads(content)
        version = fields["format"]
        if isinstance(version, int) and version > FORMAT:
            raise _refused(
                folder, MANIFEST, f"has format {version}: it was made by a newer vecall; this one reads {FORMAT}"
            )
        manifest = Manifest.model_validate(fields)
    except (ValueError, TypeError, KeyError) as error:  # ValidationError and JSONDecodeError are ValueErrors
        raise _refused(folder, MANIFEST, f"is not a manifest: {_in_a_line(error)}") from error
    if manifest.name != folder.name:
        raise _refused(folder, MANIFEST, f"is of release {manifest.name!r}, and lies in {folder.name!r}")
    return manifest


def _in_a_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
    return f"{type(error).__name__}: {error}"


def _refused(folder: Path, name: str, what: str) -> ReleaseRefused:
    return ReleaseRefused(
        f"release {folder.name!r} is refused: {name} {what}. Restore {folder}, or activate another release",
        file=name,
    )
