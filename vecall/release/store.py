"""A folder of releases, of which one is current: publishing, activating, rolling back, pruning."""

import fcntl
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError

from vecall.errors import InvalidReleaseError, StoreError
from vecall.release.atomic_io import atomic_write, fsync_path, translate_os_errors
from vecall.release.file_lock import file_lock
from vecall.release.manifest import (
    RELEASE_NAME_PATTERN,
    Manifest,
    ReleaseMetadata,
    digest_files,
    read_manifest,
    verify_release,
    write_manifest,
)
from vecall.runtime.paths import to_absolute_path
from vecall.settings_base import SettingsModel

logger = logging.getLogger(__name__)

_LOCK_TIMEOUT_SECONDS = 30.0  # seconds; the lock is held for moments


class CurrentPointer(SettingsModel):
    """What the file `CURRENT` says: which release is active."""

    release: str = Field(pattern=f"^{RELEASE_NAME_PATTERN}$")
    manifest_sha256: str = Field(pattern="^[0-9a-f]{64}$")

    def to_bytes(self) -> bytes:
        """The file, of which there is one spelling: a changed byte shows, a blank too."""
        return json.dumps(self.model_dump()).encode() + b"\n"


@dataclass(frozen=True)
class Draft:
    """A release in the making.

    Attributes:
        directory: write the release's files here: plain files, no folders, no links.
    """

    directory: Path
    _publish: Callable[[ReleaseMetadata, bool, str | None], str]

    def commit(self, metadata: ReleaseMetadata, *, activate: bool, expected_current: str | None = None) -> str:
        """Publish the folder's files, whole or not at all; if `activate`, make them the current release.

        Should activating fail, the release is there and is not current.

        Args:
            metadata: what to say of them.
            activate: whether they become the current release.
            expected_current: only if this release is the current one still.

        Returns:
            The release's name.

        Raises:
            StoreError: the name is taken by now, or the folder holds something else than plain files.
            ReleaseRefused: `CURRENT` is damaged.
            Locked: another process holds the store's lock.
        """
        return self._publish(metadata, activate, expected_current)


@dataclass(frozen=True)
class Store:
    """A store's folder. It is opened with `Store.open` or `Store.create`.

    Everything is done under `store.lock` but reading and the slow parts of publishing, and each step leaves
    a whole store: a crash leaves at most `tmp-*`, which the next draft or prune removes.

    Attributes:
        path: the folder.
    """

    path: Path

    @classmethod
    def open(cls, path: Path) -> Self:
        """A store that exists.

        Raises:
            StoreError: there is none at `path`.
        """
        path = to_absolute_path(path)
        try:
            found = (path / "releases").is_dir()
        except OSError as error:
            raise StoreError(f"{path} cannot be looked at: {error.strerror}; see to its permissions") from error
        if not found:
            raise StoreError(
                f"{path} is no store: expected a folder with `releases/` in it; give the path of a store, or "
                "publish a release to make one"
            )
        return cls(path)

    @classmethod
    def create(cls, path: Path) -> Self:
        """A store, made if there is none.

        Raises:
            StoreError: there is something else at `path`, or it cannot be written.
        """
        path = to_absolute_path(path)
        releases = path / "releases"
        with translate_os_errors(path):
            missing = [folder for folder in (releases, *releases.parents) if not folder.is_dir()]
            try:
                for folder in reversed(missing):
                    folder.mkdir(exist_ok=True)
                    fsync_path(folder.parent)
            except (FileExistsError, NotADirectoryError) as error:
                raise StoreError(f"{path} cannot be a store: a file is in its place, or above it") from error
        return cls(path)

    def get_release_dir(self, name: str) -> Path:
        """The folder of a release.

        Raises:
            StoreError: there is no such release.
        """
        folder = self.path / "releases" / name
        if not re.fullmatch(RELEASE_NAME_PATTERN, name) or not folder.is_dir():
            there = sorted(path.name for path in (self.path / "releases").iterdir())
            raise StoreError(f"{self.path} has no release {name!r}; it has {', '.join(there) or 'none'}")
        return folder

    def get_current(self) -> CurrentPointer:
        """The active release.

        Raises:
            StoreError: none is active.
            ReleaseRefused: `CURRENT` is damaged.
        """
        current = self.find_current()
        if current is None:
            raise StoreError(f"no release of {self.path} is active: publish one, or activate one of `releases`")
        return current

    def find_current(self) -> CurrentPointer | None:
        """The active release, if one is active.

        Raises:
            ReleaseRefused: `CURRENT` is damaged.
        """
        try:
            content = (self.path / "CURRENT").read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._make_current_error(str(error)) from error
        try:
            current = CurrentPointer.model_validate_json(content)
        except ValidationError as error:
            raise self._make_current_error(f"it holds {content[:200]!r}") from error
        if content != current.to_bytes():
            raise self._make_current_error(f"it is not spelled as it was written: {content[:200]!r}")
        return current

    def list_releases(self, *, skip_damaged: bool = False) -> list[Manifest]:
        """All releases, newest first; of their files only the manifests are checked.

        Raises:
            ReleaseRefused: a manifest is damaged, and is not to be skipped.
        """
        manifests = []
        for folder in sorted((self.path / "releases").iterdir()):
            try:
                manifests.append(read_manifest(folder)[0])
            except InvalidReleaseError:
                if folder.exists() and not skip_damaged:  # else it was pruned just now
                    raise
        return sorted(manifests, key=lambda manifest: (manifest.created, manifest.name), reverse=True)

    def verify(self, name: str | None = None) -> Manifest:
        """Check every byte of a release; None is the current one.

        Raises:
            StoreError: there is no such release.
            ReleaseRefused: a file is damaged, missing or too many; without a name, `CURRENT` is damaged.
        """
        current = self.get_current() if name is None else self._find_valid_current()
        if current is not None and name in (None, current.release):
            return verify_release(self._get_current_dir(current), expected_sha256=current.manifest_sha256)
        return verify_release(self.get_release_dir(str(name)))

    @contextmanager
    def create_draft(self, name: str | None = None) -> Iterator[Draft]:
        """A folder to write a release's files into; what was not committed is removed at the end.

        Args:
            name: of the release; None takes the time of the commit.

        Raises:
            StoreError: the name is taken or malformed, or the disk does not take the files.
            ReleaseRefused: `CURRENT` is damaged, so that the new release's parent is not known.
            Locked: another process holds the store's lock.
        """
        self.find_current()
        folder = self.path / f"tmp-{uuid.uuid4().hex}"
        with translate_os_errors(self.path):
            with self._acquire_lock():
                if name is not None:
                    self._check_name_available(name)
                self._remove_stale_drafts()
                folder.mkdir()
                # Held until the end, by the system: a draft whose process died is known by its free lock.
                in_use = os.open(folder, os.O_RDONLY)
                fcntl.flock(in_use, fcntl.LOCK_EX)
            try:
                yield Draft(folder, partial(self._publish, folder, name))
            finally:
                shutil.rmtree(folder, ignore_errors=True)  # committed, it is no longer there
                os.close(in_use)

    def activate(self, name: str) -> str | None:
        """Make a release the current one, once every byte of it was checked.

        It mends a damaged `CURRENT`.

        Returns:
            Name of the release that was active before; None when there was none, or `CURRENT` was damaged.

        Raises:
            StoreError: there is no such release, or the disk does not take the change.
            ReleaseRefused: a file of it is damaged, missing or too many.
            Locked: another process holds the store's lock.
        """
        verify_release(self.get_release_dir(name))
        with translate_os_errors(self.path), self._acquire_lock():
            _, digest = read_manifest(self.get_release_dir(name))  # it may have been pruned meanwhile
            previous = self._find_valid_current()
            self._write_current(name, digest)
        return previous.release if previous else None

    def rollback(self) -> tuple[str, str]:
        """Activate the current release's parent.

        Returns:
            Names of the release that is active now, and of the one that was.

        Raises:
            StoreError: none is active, it has no parent, or the parent was pruned.
            ReleaseRefused: the parent, or what says which it is, is damaged.
            Locked: another process holds the store's lock.
        """
        manifest = self._read_current_manifest(self.get_current())
        if manifest.parent is None:
            raise StoreError(f"release {manifest.name!r} has no parent to roll back to; activate one by its name")
        if not (self.path / "releases" / manifest.parent).is_dir():
            raise StoreError(
                f"{manifest.parent!r}, the parent of {manifest.name!r}, was pruned; activate another by its name"
            )
        self.activate(manifest.parent)
        return manifest.parent, manifest.name

    def prune(self, keep: int) -> list[str]:
        """Delete all releases but the newest `keep`, the current one and its parent.

        Returns:
            Names of the deleted releases, newest first.

        Raises:
            StoreError: `keep` is negative, or the disk does not take the change.
            ReleaseRefused: `CURRENT` or a manifest is damaged: what must stay is not known.
            Locked: another process holds the store's lock.
        """
        if keep < 0:
            raise StoreError(f"keep is {keep}; expected how many releases stay, 0 or more")
        with translate_os_errors(self.path), self._acquire_lock():
            fsync_path(self.path)  # or what `CURRENT` was before may come back, and name a release that is gone
            current = self.find_current()
            stays = {current.release, self._read_current_manifest(current).parent} if current else set()
            names = [manifest.name for manifest in self.list_releases()]
            doomed = [name for name in names[keep:] if name not in stays]
            for name in doomed:  # out of sight at once, and only then piece by piece
                self.get_release_dir(name).rename(self.path / f"tmp-{uuid.uuid4().hex}")
            fsync_path(self.path / "releases")
            self._remove_stale_drafts()
        return doomed

    def _publish(
        self, directory: Path, name: str | None, metadata: ReleaseMetadata, activate: bool, expected_current: str | None
    ) -> str:
        files = digest_files(directory)  # slow, so before the lock
        with self._acquire_lock():
            now = datetime.now(UTC)
            name = name or self._make_timestamp_name(now)
            self._check_name_available(name)
            current = self.find_current()
            parent = current.release if current else None
            created = self._make_created_time(now)
            manifest = Manifest(**dict(metadata), name=name, created=created, parent=parent, files=files)
            digest = write_manifest(directory, manifest)
            directory.rename(self.path / "releases" / name)
            fsync_path(self.path / "releases")
            if activate and expected_current in (None, parent):
                self._write_current(name, digest)
            elif activate:
                logger.warning("%s is not made current: %s has taken the place of %s", name, parent, expected_current)
        return name

    @contextmanager
    def _acquire_lock(self) -> Iterator[None]:
        with file_lock(self.path / "store.lock", timeout=_LOCK_TIMEOUT_SECONDS):
            yield

    def _check_name_available(self, name: str) -> None:
        if not re.fullmatch(RELEASE_NAME_PATTERN, name):
            raise StoreError(
                f"{name!r} cannot name a release: expected 1 to 64 of a-z 0-9 . _ - that start with a letter or digit"
            )
        if (self.path / "releases" / name).exists():
            raise StoreError(f"{self.path} has a release {name!r} already: choose another name")

    def _make_timestamp_name(self, now: datetime) -> str:
        stem = now.strftime("%Y%m%d-%H%M%S")
        taken = {path.name for path in (self.path / "releases").iterdir()}
        return next(name for i in range(len(taken) + 1) if (name := f"{stem}-{i}" if i else stem) not in taken)

    def _make_created_time(self, now: datetime) -> datetime:
        """The time, or just after the newest release's, should the clock have gone back: the newest is the last."""
        newest = next(iter(self.list_releases(skip_damaged=True)), None)
        if newest is None or newest.created < now:
            return now
        logger.warning("the clock is behind release %s, which was made at %s", newest.name, newest.created)
        return newest.created + timedelta(microseconds=1)

    def _write_current(self, name: str, digest: str) -> None:
        fsync_path(self.path / "releases")  # its name may be there, and yet not be on the disk
        atomic_write(self.path / "CURRENT", CurrentPointer(release=name, manifest_sha256=digest).to_bytes())

    def _remove_stale_drafts(self) -> None:
        """Remove what dead processes left; call it under the lock."""
        for left in self.path.glob("tmp-*"):
            with suppress(FileNotFoundError):  # whoever made it is just removing it
                if left.is_file():  # a CURRENT that never became it: only made under the lock
                    left.unlink()
                elif not _is_in_use(left):
                    shutil.rmtree(left)

    def _find_valid_current(self) -> CurrentPointer | None:
        try:
            return self.find_current()
        except InvalidReleaseError:
            return None

    def _get_current_dir(self, current: CurrentPointer) -> Path:
        folder = self.path / "releases" / current.release
        if not folder.is_dir():
            raise self._make_current_error(f"it names {current.release!r}, and there is no such release")
        return folder

    def _read_current_manifest(self, current: CurrentPointer) -> Manifest:
        return read_manifest(self._get_current_dir(current), expected_sha256=current.manifest_sha256)[0]

    def _make_current_error(self, reason: str) -> InvalidReleaseError:
        return InvalidReleaseError(
            f"{self.path / 'CURRENT'} is damaged: {reason}. Activate the release that is to be served", file="CURRENT"
        )


def _is_in_use(draft_dir: Path) -> bool:
    descriptor = os.open(draft_dir, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
