"""Store of releases, one of them current: publish, activate, roll back, prune."""

import fcntl
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import NamedTuple, Self

from vecall.errors import InvalidReleaseError, StoreError
from vecall.release.current_pointer import CurrentPointer, make_current_error, read_current, write_current
from vecall.release.drafts import Draft, remove_stale_drafts
from vecall.release.file_io import translate_write_errors
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
from vecall.runtime.durable_files import fsync_path
from vecall.runtime.paths import to_absolute_path

logger = logging.getLogger(__name__)

_LOCK_TIMEOUT_SECONDS = 30.0  # the lock is held for much less


class Rollback(NamedTuple):
    """Names of the release that is current now, and of the one that was current before."""

    current: str
    previous: str


@dataclass(frozen=True)
class Store:
    """A directory of releases; open it with `Store.open` or `Store.open_or_create`.

    Changes are made under `store.lock`; reading, and the slow parts of publishing, take no lock. A crash at any step
    leaves a consistent store, at worst with `tmp-*` left over, which the next draft or prune removes.

    Attributes:
        path: the store's directory.
    """

    path: Path

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open an existing store.

        Raises:
            StoreError: there is no store at `path`, or permissions forbid reading it.
        """
        path = to_absolute_path(path)
        try:
            is_store = (path / "releases").is_dir()
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error.strerror}; fix its permissions") from error
        if not is_store:
            raise StoreError(
                f"{path} is no store: expected a directory that contains `releases/`; give the path of a store, or "
                "publish a release to create one"
            )
        return cls(path)

    @classmethod
    def open_or_create(cls, path: Path) -> Self:
        """Open a store, or create it if it does not exist.

        Raises:
            StoreError: `path` or a parent of it is a file, or it cannot be written.
        """
        path = to_absolute_path(path)
        releases = path / "releases"
        with translate_write_errors(path):
            missing = [directory for directory in (releases, *releases.parents) if not directory.is_dir()]
            try:
                for directory in reversed(missing):
                    directory.mkdir(exist_ok=True)
                    fsync_path(directory.parent)
            except (FileExistsError, NotADirectoryError) as error:
                raise StoreError(
                    f"{path} cannot be a store: it, or a parent of it, is a file; give another path"
                ) from error
        return cls(path)

    def get_release_dir(self, name: str) -> Path:
        """Return the directory of a release.

        Raises:
            StoreError: there is no such release.
        """
        is_name = isinstance(name, str) and re.fullmatch(RELEASE_NAME_PATTERN, name) is not None
        directory = self.path / "releases" / str(name)
        if not is_name or not directory.is_dir():
            names = sorted(path.name for path in (self.path / "releases").iterdir())
            raise StoreError(f"{self.path} has no release {name!r}; it has {', '.join(names) or 'none'}")
        return directory

    def get_current(self) -> CurrentPointer:
        """Read which release is current.

        Raises:
            StoreError: no release is current.
            InvalidReleaseError: `CURRENT` is damaged.
        """
        current = self.find_current()
        if current is None:
            raise StoreError(f"no release of {self.path} is current: publish a release, or activate an existing one")
        return current

    def find_current(self) -> CurrentPointer | None:
        """Read which release is current; None if no release is.

        Raises:
            InvalidReleaseError: `CURRENT` is damaged.
        """
        return read_current(self.path)

    def find_current_manifest(self) -> Manifest | None:
        """Read the current release's manifest; None if no release is current, or it cannot be read."""
        try:
            current = self.find_current()
            return None if current is None else read_manifest(self.get_release_dir(current.release))[0]
        except StoreError:
            return None

    def list_releases(
        self, *, skip_damaged: bool = False, on_damaged: Callable[[InvalidReleaseError], object] | None = None
    ) -> list[Manifest]:
        """Read the manifests of all releases, newest first; other files are not verified.

        Args:
            skip_damaged: leave out releases whose manifest is damaged.
            on_damaged: called with the error of each that is left out.

        Raises:
            InvalidReleaseError: a manifest is damaged and `skip_damaged` is False.
        """
        manifests = []
        for directory in sorted((self.path / "releases").iterdir()):
            try:
                manifests.append(read_manifest(directory)[0])
            except InvalidReleaseError as error:
                if not directory.exists():  # it has just been pruned
                    continue
                if not skip_damaged:
                    raise
                if on_damaged is not None:
                    on_damaged(error)
        return sorted(manifests, key=lambda manifest: (manifest.created, manifest.name), reverse=True)

    def verify(self, name: str | None = None) -> Manifest:
        """Verify every byte of a release; None verifies the current one.

        Raises:
            StoreError: there is no such release.
            InvalidReleaseError: a file is damaged, missing or not listed in the manifest; without a name, also if
                `CURRENT` is damaged.
        """
        current = self.get_current() if name is None else self._find_valid_current()
        if current is not None and name in (None, current.release):
            return verify_release(self._get_current_dir(current), expected_sha256=current.manifest_sha256)
        return verify_release(self.get_release_dir(str(name)))

    @contextmanager
    def create_draft(self, name: str | None = None) -> Iterator[Draft]:
        """Create a directory for the files of a new release; it is removed at the end unless committed.

        Args:
            name: of the release; None takes the time of the commit.

        Raises:
            StoreError: the name is in use or malformed, or the store cannot be written.
            InvalidReleaseError: `CURRENT` is damaged, so the new release's parent is not known.
            LockedError: another process holds the store's lock.
        """
        self.find_current()
        directory = self.path / f"tmp-{uuid.uuid4().hex}"
        with translate_write_errors(self.path), self.lock():
            if name is not None:
                self.check_name_available(name)
            remove_stale_drafts(self.path)
            directory.mkdir()
            # Locked until the end of the draft. The system releases the lock when the process dies, which marks the
            # draft as stale.
            descriptor = os.open(directory, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:  # the caller translates errors of writing the files: an OSError here may come from reading its inputs
            yield Draft(directory, name, partial(self._publish, directory, name))
        finally:
            shutil.rmtree(directory, ignore_errors=True)  # after a commit it no longer exists
            os.close(descriptor)

    def check_name_available(self, name: str) -> None:
        """Check that a release may be published under a name.

        Raises:
            StoreError: it is malformed or in use.
        """
        if not isinstance(name, str) or not re.fullmatch(RELEASE_NAME_PATTERN, name):
            raise StoreError(
                f"{name!r} cannot name a release: expected 1 to 64 characters of a-z 0-9 . _ -, the first a letter or "
                "digit"
            )
        if (self.path / "releases" / name).exists():
            raise StoreError(f"{self.path} already has a release {name!r}: choose another name")

    def activate(self, name: str) -> str | None:
        """Make a release the current one after every byte of it has been verified.

        A damaged `CURRENT` is replaced.

        Returns:
            Name of the release that was current before; None if there was none or `CURRENT` was damaged.

        Raises:
            StoreError: there is no such release, or the store cannot be written.
            InvalidReleaseError: a file is damaged, missing or not listed in the manifest.
            LockedError: another process holds the store's lock.
        """
        verify_release(self.get_release_dir(name))
        with translate_write_errors(self.path), self.lock():
            previous = self._find_valid_current()
            self._point_to(name)
        return previous.release if previous else None

    def replace_current(self, expected: str, name: str) -> bool:
        """Make a verified release the current one, unless another than `expected` has become current (compare-and-set).

        Returns:
            Whether `name` is current now.

        Raises:
            StoreError, InvalidReleaseError, LockedError: as for `activate`.
        """
        verify_release(self.get_release_dir(name))
        with translate_write_errors(self.path), self.lock():
            current = self._find_valid_current()
            if current is None or current.release != expected:
                return False
            self._point_to(name)
        return True

    def _point_to(self, name: str) -> None:
        _, digest = read_manifest(self.get_release_dir(name))  # fails if it has been pruned meanwhile
        write_current(self.path, CurrentPointer(release=name, manifest_sha256=digest))

    def find_rollback(self) -> Rollback:
        """Return what a rollback activates: the parent of the current release, which was current at its publication.

        That is not always the release that was current last, as after `activate`.

        Raises:
            StoreError: no release is current, it has no parent, or the parent was pruned.
            InvalidReleaseError: `CURRENT` or the current release's manifest is damaged.
        """
        manifest = self._read_current_manifest(self.get_current())
        if manifest.parent is None:
            raise StoreError(f"release {manifest.name!r} has no parent to roll back to; activate a release by name")
        if not (self.path / "releases" / manifest.parent).is_dir():
            raise StoreError(
                f"release {manifest.parent!r}, the parent of {manifest.name!r}, was pruned; activate a release by name"
            )
        return Rollback(current=manifest.parent, previous=manifest.name)

    def prune(self, keep_newest: int) -> list[str]:
        """Delete all releases except the newest `keep_newest`, and except the current one and its parent.

        Returns:
            Names of the deleted releases, newest first.

        Raises:
            StoreError: `keep_newest` is negative, or the store cannot be written.
            InvalidReleaseError: `CURRENT` or a manifest is damaged, so it is not known what must be kept.
            LockedError: another process holds the store's lock.
        """
        if keep_newest < 0:
            raise StoreError(f"keep is {keep_newest}; expected the number of newest releases to keep, 0 or more")
        with translate_write_errors(self.path), self.lock():
            fsync_path(self.path)  # otherwise a crash may bring back an older `CURRENT` that names a deleted release
            current = self.find_current()
            protected = {current.release, self._read_current_manifest(current).parent} if current else set()
            names = [manifest.name for manifest in self.list_releases()]
            pruned = [name for name in names[keep_newest:] if name not in protected]
            for name in pruned:  # renamed first, so that a crash leaves no half-deleted release
                self.get_release_dir(name).rename(self.path / f"tmp-{uuid.uuid4().hex}")
            fsync_path(self.path / "releases")
            remove_stale_drafts(self.path)
        return pruned

    def _publish(
        self,
        directory: Path,
        name: str | None,
        metadata: ReleaseMetadata,
        activate: bool,
        activate_only_if_current: str | None,
        base: str | None,
        check: Callable[[], object] | None,
    ) -> str:
        with translate_write_errors(self.path):
            files = digest_files(directory)  # slow, therefore outside of the lock
        with translate_write_errors(self.path), self.lock():
            now = datetime.now(UTC)
            name = name or self._make_timestamp_name(now)
            self.check_name_available(name)
            if base is not None:
                self.get_release_dir(base)  # raises if it is gone
            if check is not None:
                check()
            current = self.find_current()
            parent = current.release if current else None
            created = self._make_created_time(now)
            manifest = Manifest(**dict(metadata), name=name, created=created, parent=parent, files=files)
            digest = write_manifest(directory, manifest)
            directory.rename(self.path / "releases" / name)
            fsync_path(self.path / "releases")
            if activate and activate_only_if_current in (None, parent):
                write_current(self.path, CurrentPointer(release=name, manifest_sha256=digest))
            elif activate:
                logger.warning(
                    "not activating %s: the current release is %s, not %s", name, parent, activate_only_if_current
                )
        return name

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock under which the store is changed; not reentrant.

        Raises:
            LockedError: another process holds it for 30 seconds.
        """
        with file_lock(self.path / "store.lock", timeout=_LOCK_TIMEOUT_SECONDS):
            yield

    def _make_timestamp_name(self, now: datetime) -> str:
        """Format `now`, with a suffix `-1`, `-2`, ... if another release has that name."""
        stem = now.strftime("%Y%m%d-%H%M%S")
        used = {path.name for path in (self.path / "releases").iterdir()}
        return next(name for i in range(len(used) + 1) if (name := f"{stem}-{i}" if i else stem) not in used)

    def _make_created_time(self, now: datetime) -> datetime:
        """Return `now`, or just after the newest release's time if the clock went back: order of time is kept."""
        newest = next(iter(self.list_releases(skip_damaged=True)), None)
        if newest is None or newest.created < now:
            return now
        logger.warning("the clock is behind release %s, which was created at %s", newest.name, newest.created)
        return newest.created + timedelta(microseconds=1)

    def _find_valid_current(self) -> CurrentPointer | None:
        try:
            return self.find_current()
        except InvalidReleaseError:
            return None

    def _get_current_dir(self, current: CurrentPointer) -> Path:
        directory = self.path / "releases" / current.release
        if not directory.is_dir():
            raise make_current_error(self.path, f"it names {current.release!r}, but there is no such release")
        return directory

    def _read_current_manifest(self, current: CurrentPointer) -> Manifest:
        return read_manifest(self._get_current_dir(current), expected_sha256=current.manifest_sha256)[0]
