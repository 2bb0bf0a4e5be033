"""Drafts: releases that are being written. Those of dead processes are removed."""

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vecall.release.file_lock import try_lock
from vecall.release.manifest import ReleaseMetadata

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Draft:
    """A release that is being written.

    Attributes:
        directory: write the release's files here; regular files only, no directories or links.
        name: of the release; None if it is named at the commit.
    """

    directory: Path
    name: str | None
    _publish: Callable[[ReleaseMetadata, bool, str | None, str | None, Callable[[], object] | None], str]

    def commit(
        self,
        metadata: ReleaseMetadata,
        *,
        activate: bool,
        activate_only_if_current: str | None = None,
        base: str | None = None,
        check: Callable[[], object] | None = None,
    ) -> str:
        """Publish the files of `directory` atomically.

        The release stays published, but not current, if activating fails, or if another release has become current,
        which is only logged.

        Args:
            metadata: the publisher's part of the manifest.
            activate: make the release the current one.
            activate_only_if_current: with `activate`, do so only if this release is still the current one.
            base: release that the new one was made of without training: with it, operations of the journal that it does
                not contain may have been pruned, so the new one is given up if it is gone.
            check: called under the store's lock before the release can be seen; what it raises gives the release up.

        Returns:
            Name of the release, activated or not.

        Raises:
            StoreError: the name is in use by now, `base` was pruned meanwhile, the directory contains something other
                than regular files, or the store cannot be written.
            InvalidReleaseError: `CURRENT` is damaged.
            LockedError: another process holds the store's lock.
        """
        return self._publish(metadata, activate, activate_only_if_current, base, check)


def remove_stale_drafts(store_path: Path) -> None:
    """Remove what dead processes left behind, and releases that `prune` has renamed; call it under the store's lock."""
    for path in store_path.glob("tmp-*"):
        try:
            if path.is_symlink() or path.is_file():  # a CURRENT that was not put in place: its writer has died
                path.unlink()
            elif not _is_in_use(path):
                shutil.rmtree(path)
        except FileNotFoundError:  # its process is removing it at the same time
            pass
        except OSError as error:  # such as that of another user
            logger.warning("%s is left over and cannot be removed: %s; remove it by hand", path, error)


def _is_in_use(draft_dir: Path) -> bool:
    """Tell whether a living process holds the lock of a draft."""
    descriptor = os.open(draft_dir, os.O_RDONLY)
    try:
        return not try_lock(descriptor)
    finally:
        os.close(descriptor)
