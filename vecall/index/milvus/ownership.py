"""Which collections of a server belong to a store: in use, in the making, or left over by a crash."""

import fcntl
import json
import logging
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vecall.errors import StoreError
from vecall.index.milvus import collection
from vecall.index.milvus.building import drop_quietly
from vecall.index.milvus.client import MilvusConnection
from vecall.runtime.durable_files import atomic_write

logger = logging.getLogger(__name__)

STORE_ID_FILE = "milvus_store.json"
COLLECTION_KEY = "collection"  # in `index.parameters` of a manifest
_RELEASES_DIR, _MANIFEST_FILE = "releases", "manifest.json"
_DRAFT_PATTERN = re.compile(r"tmp-([0-9a-f]{32})")


def read_store_id(store_dir: Path) -> str:
    """Return the id of a store, which the names of its collections contain; it is created at the first use.

    The file tells the inode of the directory of releases. A copy of the store has another, and gets an id of its own:
    it must not delete collections that the original uses.

    Raises:
        StoreError: the store cannot be written.
    """
    try:
        with _locked(store_dir):
            inode = (store_dir / _RELEASES_DIR).stat().st_ino
            store_id, known_inode = _read_identity(store_dir / STORE_ID_FILE)
            if known_inode != inode:
                store_id = uuid.uuid4().hex[:16]
                content = json.dumps({"store_id": store_id, "inode": inode})
                atomic_write(store_dir / STORE_ID_FILE, content.encode() + b"\n")
    except OSError as error:
        raise StoreError(f"{store_dir}: {STORE_ID_FILE} cannot be read or written ({error.strerror})") from error
    return store_id


def make_draft_collection_name(store_id: str, draft_dir: Path) -> str:
    """Make the name of a draft's collection: it ends with the draft's own id, so that nobody takes it for an orphan.

    Args:
        store_id: of the draft's store.
        draft_dir: `tmp-<id>` in the store; with another name the collection gets an id that no draft has.
    """
    match = _DRAFT_PATTERN.fullmatch(draft_dir.name)
    return collection.make_collection_name(store_id, match[1] if match else uuid.uuid4().hex)


def list_orphans(connection: MilvusConnection, store_dir: Path) -> list[str]:
    """List the collections of a store that neither a release nor a draft uses.

    Raises:
        StoreError: a manifest cannot be read, so it is not known what is in use.
        EngineUnavailableError: the server does not answer.
    """
    # In this order: a draft becomes a release, and its collection exists after the draft.
    names = collection.list_collections(connection, read_store_id(store_dir))
    draft_ids = {match[1] for path in store_dir.iterdir() if (match := _DRAFT_PATTERN.fullmatch(path.name))}
    used = list_used_collections(store_dir)
    return [name for name in names if name not in used and name.rpartition("_")[2] not in draft_ids]


def sweep_orphans(connection: MilvusConnection, store_dir: Path) -> list[str]:
    """Drop what crashed publishes and failed prunes left over.

    Returns:
        Names of the collections that are gone.

    Raises:
        StoreError, EngineUnavailableError: as for `list_orphans`.
    """
    dropped = [name for name in list_orphans(connection, store_dir) if drop_quietly(connection, name)]
    if dropped:
        logger.info("dropped %d collections that were left over: %s", len(dropped), ", ".join(dropped))
    return dropped


def list_used_collections(store_dir: Path) -> set[str]:
    """List the collections that the releases of a store name.

    Raises:
        StoreError: a manifest cannot be read, so it is not known what is in use.
    """
    used = set()
    for path in (store_dir / _RELEASES_DIR).iterdir():
        try:
            parameters = json.loads((path / _MANIFEST_FILE).read_bytes())["index"]["parameters"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            if not path.exists():
                continue  # pruned meanwhile
            raise StoreError(
                f"{path / _MANIFEST_FILE} cannot be read ({type(error).__name__}), so it is not known which "
                "collections are in use, and none is dropped: restore the release from a copy, or remove it"
            ) from error
        if isinstance(parameters, dict) and COLLECTION_KEY in parameters:
            used.add(str(parameters[COLLECTION_KEY]))
    return used


def _read_identity(path: Path) -> tuple[str, int | None]:
    """Id and inode that a file tells; ("", None) if it does not exist or is damaged, so that a new one is written."""
    try:
        content = json.loads(path.read_bytes())
        store_id, inode = str(content["store_id"]), int(content["inode"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return "", None
    return (store_id, inode) if re.fullmatch(collection.STORE_ID_PATTERN, store_id) else ("", None)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold a lock of a directory; held for moments only."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
