"""Engine `milvus`: a collection of a Milvus server per release, beside the stored vectors."""

import logging
from pathlib import Path

from pydantic import ValidationError

from vecall.arrays import HalfVectors, Vectors
from vecall.errors import ConfigError, InvalidReleaseError, VecallError
from vecall.index.engine import BuildContext, Engine, EngineBuild, ReleaseDraft
from vecall.index.index_info import IndexInfo
from vecall.index.milvus import collection, ownership
from vecall.index.milvus.building import CollectionParams, build_collection
from vecall.index.milvus.client import MilvusConnection, acquire_connection, release_connection
from vecall.index.milvus.endpoint import resolve_endpoint
from vecall.index.milvus.hnsw_index import check_parameters
from vecall.index.milvus.index import MilvusIndex
from vecall.index.milvus.searching import MAX_K
from vecall.index.milvus.session import CollectionSession
from vecall.index.milvus.settings import MilvusSettings
from vecall.index.stored_vectors import VECTORS_FILE, StoredVectors, write_vectors

logger = logging.getLogger(__name__)

_DEFAULT_M, _DEFAULT_EF_CONSTRUCTION = 16, 200
_TUNING_TIMEOUT_SECONDS = 60.0  # of a single query, while search parameters are tried that may be slow


def _build(vectors: Vectors | HalfVectors, context: BuildContext) -> EngineBuild:
    """Write the vectors into the draft and build a collection from them, which is complete and loaded, or dropped."""
    settings, draft = context.settings, context.draft
    if draft is None:
        raise ConfigError(
            "index.engine: 'milvus' indexes published releases only; choose another engine, or publish into a store"
        )
    m = settings.M or _DEFAULT_M
    ef_construction = settings.ef_construction or _DEFAULT_EF_CONSTRUCTION
    check_parameters(m, ef_construction)
    connection = acquire_connection(resolve_endpoint(settings.milvus))  # first, since writing takes long
    try:
        write_vectors(vectors, draft.directory / VECTORS_FILE)
        stored = StoredVectors.open(draft.directory / VECTORS_FILE)
        name = _prepare_name(connection, draft)
        build_collection(connection, name, stored.half_vectors, CollectionParams(m, ef_construction, settings.milvus))
    except BaseException:
        release_connection(connection)
        raise
    shape = stored.size, stored.dim
    session = CollectionSession(name, shape, settings.milvus, timeout=_TUNING_TIMEOUT_SECONDS, connection=connection)
    index = MilvusIndex(stored, session, settings.milvus.when_down)
    structure = {"M": m, "ef_construction": ef_construction, "rows": stored.size, "dim": stored.dim}
    return EngineBuild(index, {ownership.COLLECTION_KEY: name, **structure})


def _prepare_name(connection: MilvusConnection, draft: ReleaseDraft) -> str:
    """Make the name of a draft's collection, after what crashed publishes of the store left over has been dropped."""
    store_id = ownership.read_store_id(draft.store_dir)
    try:
        ownership.sweep_orphans(connection, draft.store_dir)
    except VecallError as error:  # an old release may be damaged
        logger.warning("collections that were left over are not dropped: %s", error)
    return ownership.make_draft_collection_name(store_id, draft.directory)


def _open(path: Path, info: IndexInfo) -> MilvusIndex:
    """Map the vectors, and load the collection; while the server is down, searches are refused until it is back."""
    stored = StoredVectors.open(path)
    name, settings = info.parameters.get(ownership.COLLECTION_KEY), _parse_settings(info)
    if not isinstance(name, str) or not collection.parse_store_id(name):
        raise InvalidReleaseError(
            f"manifest.json names the collection {name!r:.80}, expected vecall_<store>_<id>: publish the release again",
            file="manifest.json",
        )
    session = CollectionSession(name, (stored.size, stored.dim), settings)
    session.open()
    return MilvusIndex(stored, session, settings.when_down)


def _drop(info: IndexInfo, store_dir: Path) -> None:
    """Drop the collection of a release that is gone, unless it belongs to another store, as in a copy of one."""
    name = str(info.parameters.get(ownership.COLLECTION_KEY, ""))
    owner = collection.parse_store_id(name)
    if owner != ownership.read_store_id(store_dir):
        logger.warning("collection %s stays: it belongs to the store that this one was copied or moved from", name)
        return
    if name in ownership.list_used_collections(store_dir):
        logger.warning("collection %s stays: another release of %s uses it", name, store_dir)
        return
    connection = acquire_connection(resolve_endpoint(_parse_settings(info)))
    try:
        collection.drop(connection, name)
    finally:
        release_connection(connection)


def _parse_settings(info: IndexInfo) -> MilvusSettings:
    """Read the settings that a manifest repeats.

    Raises:
        InvalidReleaseError: they are invalid.
    """
    try:
        return MilvusSettings.model_validate(info.settings.get("milvus", {}))
    except ValidationError as error:
        raise InvalidReleaseError(
            f"manifest.json repeats invalid settings of the server: {error}; publish the release again",
            file="manifest.json",
        ) from error


MILVUS_ENGINE = Engine(
    name="milvus",
    file=VECTORS_FILE,
    build=_build,
    open=_open,
    settings_keys=("M", "ef_construction", "ef"),
    fixed_width_key="ef",
    max_k=MAX_K,
    is_remote=True,
    drop=_drop,
)
