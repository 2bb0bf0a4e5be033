"""Making a release the current one after all its checks have passed, where no service does it."""

from vecall.release.release import open_and_check_release
from vecall.release.store import Rollback, Store


def activate_release(store: Store, name: str) -> str | None:
    """Make a release the current one after all its checks have passed, golden queries included.

    Returns:
        Name of the release that was current before; None if there was none.

    Raises:
        StoreError: there is no such release.
        InvalidReleaseError: a file is damaged, missing or not listed in the manifest, or a golden query fails.
        EngineUnavailableError: the server that holds the index does not answer.
    """
    release = open_and_check_release(store, name)
    try:
        previous = store.activate(name)
        release.mark_current()
    finally:
        release.close()
    return previous


def roll_back(store: Store) -> Rollback:
    """Make the parent of the current release the current one, after the same checks as `activate_release`.

    Raises:
        StoreError: no release is current, it has no parent, or the parent was pruned.
        InvalidReleaseError, EngineUnavailableError: as for `activate_release`.
    """
    names = store.find_rollback()
    activate_release(store, names.current)
    return names
