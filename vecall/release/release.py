"""Loading of a release: all its files are verified, then opened and checked against each other."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.arrays import HalfVectors, Rows
from vecall.channels.channel_tables import ChannelTables
from vecall.channels.merge_plan import MergePlan
from vecall.data.frames import get_unnamed_column
from vecall.data.id_map import IdMap
from vecall.data.ragged import RaggedArray
from vecall.errors import InvalidReleaseError, StoreError, VecallError
from vecall.index.base import Index, SearchParams
from vecall.index.engine import Engine
from vecall.index.engines import ENGINES
from vecall.index.kernels import compile_kernels
from vecall.index.planner import DEFAULT_COSTS, CostModel
from vecall.index.remote import RemoteIndex
from vecall.index.row_filter import compile_row_filter
from vecall.index.row_positions import compile_row_positions
from vecall.index.row_scores import compile_row_scores
from vecall.index.search_params import FilteredSearchTable, SearchParamCurve, WidthsAtRank
from vecall.index.stored_vectors import StoredVectors
from vecall.index.topk import select_top_k_batch
from vecall.ranking.cosines import compile_cosines
from vecall.ranking.ranker import NamedRanker
from vecall.release.channel_io import load_channels
from vecall.release.creation_times import CreationTimes, to_creation_micros
from vecall.release.encoder import ENCODERS_FILE, OnnxEncoder
from vecall.release.file_io import map_array, read_table
from vecall.release.golden import GoldenQueries
from vecall.release.id_map_io import load_id_map
from vecall.release.item_features import FEATURES_FILE, ItemFeatureFile
from vecall.release.manifest import CHANNELS_DIR, MANIFEST_FILE, Manifest, read_manifest, verify_release
from vecall.release.ranker_io import load_ranker
from vecall.release.store import Store
from vecall.release.users import UserTable
from vecall.schema import IdType, Schema

ATTRIBUTES_FILE = "attributes.arrow"
POPULARITY_FILE = "popularity.npy"
EXTERNAL_VECTOR_ROWS_FILE = "external_vector_rows.npy"
ITEM_ID_MAP_PREFIX = "ids."

_POPULAR_CACHE_ROWS = 2**15  # most popular rows kept in memory
_NEWEST_CACHE_ROWS = 10_000  # newest items whose vectors are kept in memory once more


@dataclass(frozen=True)
class Release:
    """All parts of one release, which are immutable.

    Attributes:
        manifest: the release's manifest.
        item_ids: maps ids of the N items to rows and back.
        index: search over the N item vectors.
        search_param_curve: search parameters by k; None for an exact index.
        cost_model: milliseconds of searching and of scanning.
        attributes: [N] rows with the columns that `where` and ranking read.
        popularity: [N] number of positive interactions per item; None where it is not known.
        users: known users; None where there are none.
        encoder: both towers; None where the vectors came from the caller.
        golden_queries: queries with expected results; None where there are none.
        item_features: item features that are not attributes; None where there are none.
        external_vector_rows: ascending rows of items whose vector came from the caller although the release has
            towers.
        channels: what the channels beside the vectors read.
        ranker: orders what was recalled into the final list; None without one. Where this machine lacks its package,
            it raises `RankerUnavailableError`.
        manifest_sha256: digest of the manifest, as in `CURRENT`; empty for a release that is no directory of a store.
    """

    manifest: Manifest
    item_ids: IdMap
    index: Index
    search_param_curve: SearchParamCurve | None
    cost_model: CostModel
    attributes: pl.DataFrame
    popularity: NDArray[np.float32] | None
    users: UserTable | None
    encoder: OnnxEncoder | None
    golden_queries: GoldenQueries | None
    item_features: ItemFeatureFile | None = None
    external_vector_rows: Rows = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    channels: ChannelTables = field(default_factory=ChannelTables)
    ranker: NamedRanker | None = None
    manifest_sha256: str = ""

    @cached_property
    def popular_rows(self) -> Rows:
        """Up to 32,768 rows, popularity descending, then row ascending; empty where popularity is not known."""
        if self.popularity is None:
            return np.empty(0, dtype=np.int64)
        rows: Rows = select_top_k_batch(self.popularity[None], min(_POPULAR_CACHE_ROWS, len(self.popularity))).rows[0]
        return rows

    @cached_property
    def popular_codes(self) -> RaggedArray | None:
        """For each item the indices of its values among `channels.popular.by`; None where there are no such lists."""
        popular = self.channels.popular
        if popular is None or popular.by is None:
            return None
        return popular.by.encode(get_unnamed_column(self.attributes, popular.by.column))

    @cached_property
    def creation_times(self) -> CreationTimes | None:
        """When the items came; None where the release does not know it."""
        created = self.channels.facts.created
        if created is None:
            return None
        return CreationTimes(to_creation_micros(get_unnamed_column(self.attributes, created)))

    @cached_property
    def newest_vectors(self) -> HalfVectors:
        """Vectors of up to 10,000 newest items of `creation_times`, which are read together; none without times."""
        rows = np.empty(0, dtype=np.int64)
        if self.creation_times is not None:
            rows = self.creation_times.newest_rows[:_NEWEST_CACHE_ROWS]
        return self.vectors.get_vectors(rows).astype(np.float16)

    @property
    def name(self) -> str:
        """Name of the release."""
        return self.manifest.name

    @property
    def engine(self) -> Engine:
        """Engine of the index."""
        return _get_engine(self.manifest)

    @property
    def vectors(self) -> StoredVectors:
        """The N item vectors, in half precision."""
        return self.index.vectors

    @property
    def remote_index(self) -> RemoteIndex | None:
        """`index`, if its searches ask a server; None if they run in this process."""
        return cast("RemoteIndex", self.index) if ENGINES[self.manifest.index.engine].is_remote else None

    @property
    def merge_plan(self) -> MergePlan:
        """Channels that a request uses if it names none, and how they are merged."""
        return self.manifest.merge

    @property
    def user_id_type(self) -> IdType:
        """Type of user ids; "string" for a release without users, which accepts any user id."""
        return "string" if self.users is None else self.users.ids.id_type

    def check_id_types(self, schema: Schema) -> None:
        """Check that tables of a schema have ids of the release's types.

        Raises:
            StoreError: they have others.
        """
        for side, own, other in (
            ("item", self.item_ids.id_type, schema.items.id_type),
            ("user", self.user_id_type, schema.users.id_type),
        ):
            if own != other and (side == "item" or self.users is not None):
                raise StoreError(
                    f"release {self.name!r} has {side} ids of type {own}, and the settings say {other}: use the "
                    "settings that it was published from, or publish again to another store"
                )

    def close(self) -> None:
        """End what an index on a server keeps in this process; nothing for others."""
        if self.remote_index is not None:
            self.remote_index.close()

    def mark_current(self) -> None:
        """Tell the server of an index, which other tools may ask, that the release is the current one by now."""
        if self.remote_index is not None:
            self.remote_index.mark_current()

    def check_golden_queries(self) -> None:
        """Check that the golden queries are encoded and answered as at publishing; has a server load the index first.

        Raises:
            InvalidReleaseError: a user vector differs, or the ANN recall is below the manifest's floor.
            EngineUnavailableError: the server that holds the index does not answer; all else was checked.
        """
        golden, curve = self.golden_queries, self.search_param_curve
        if golden is not None:
            golden.check_user_vectors(self.vectors, self.encoder)
        if self.remote_index is not None:
            self.remote_index.load()
        if golden is not None:
            search_params = None if curve is None else curve.look_up(golden.exact_rows.shape[1])
            min_recall = cast("float", (self.manifest.ann or {}).get("floor", 0.0))
            golden.check_ann_recall(self.index, search_params, min_recall)


def open_release(store: Store, name: str | None = None) -> Release:
    """Verify every byte of a release and load it.

    Args:
        store: the store that contains it.
        name: of the release; None opens the current one.

    Raises:
        StoreError: there is no such release.
        InvalidReleaseError: a file is damaged, missing or not listed in the manifest.
    """
    while True:
        current = store.find_current() if name is None else None
        try:
            manifest = store.verify(name)
            return load_release(store.get_release_dir(manifest.name), manifest)
        except VecallError:
            # The current release may have been replaced, and pruned, while it was opened.
            if name is not None or store.find_current() == current:
                raise


def open_and_check_release(store: Store, name: str) -> Release:
    """Verify and load a release, and check its golden queries.

    Raises:
        StoreError: there is no such release.
        InvalidReleaseError: a file is damaged, missing or not listed in the manifest, or a golden query fails.
        EngineUnavailableError: the server that holds the index does not answer.
    """
    directory = store.get_release_dir(name)
    release = load_release(directory, verify_release(directory))
    try:
        release.check_golden_queries()
    except BaseException:
        release.close()
        raise
    return release


def load_release(directory: Path, manifest: Manifest) -> Release:
    """Load a release whose files have been verified against `manifest`.

    Raises:
        InvalidReleaseError: a file cannot be read, or files do not match each other.
    """
    popularity_path = directory / POPULARITY_FILE
    features_path = directory / FEATURES_FILE
    external_rows_path = directory / EXTERNAL_VECTOR_ROWS_FILE
    engine = _get_engine(manifest)
    _compile_kernels_of_requests()
    release = Release(
        manifest=manifest,
        item_ids=load_id_map(directory, ITEM_ID_MAP_PREFIX),
        index=engine.open(directory / engine.file, manifest.index),
        search_param_curve=_parse_search_param_curve(manifest),
        cost_model=_parse_cost_model(manifest),
        attributes=read_table(directory / ATTRIBUTES_FILE),
        popularity=map_array(popularity_path) if popularity_path.exists() else None,
        users=UserTable.load(directory),
        encoder=OnnxEncoder(directory) if (directory / ENCODERS_FILE).exists() else None,
        golden_queries=GoldenQueries.load(directory),
        item_features=ItemFeatureFile(features_path) if features_path.exists() else None,
        external_vector_rows=(
            map_array(external_rows_path) if external_rows_path.exists() else np.empty(0, dtype=np.int64)
        ),
        channels=load_channels(directory, manifest.items),
        ranker=load_ranker(directory, manifest.ranker),
        manifest_sha256=read_manifest(directory)[1],  # the last to be read: fails if the release was pruned meanwhile
    )
    _check_consistency(release, engine.file)
    _check_channel_columns(release)
    _sort_for_channels(release)
    return release


def _compile_kernels_of_requests() -> None:
    """Compile now, or load from numba's cache, what the first request would wait for."""
    for compile_part in (
        compile_kernels,
        compile_row_positions,
        compile_row_scores,
        compile_row_filter,
        compile_cosines,
    ):
        compile_part()


def _sort_for_channels(release: Release) -> None:
    """Sort and cache now, rather than in the first request, what channels read."""
    _ = release.popular_rows
    _ = release.channels.similar is None or release.channels.similar.mean_similarities
    if (popular := release.channels.popular) is not None:
        _ = popular.sorted_rows, popular.total, release.popular_codes
        for lists in (popular.by, popular.by_user):
            _ = lists is None or (lists.codes, lists.totals)
    if release.creation_times is not None and release.channels.facts.fresh_days is not None:
        _ = release.creation_times.list_since(0), release.newest_vectors


def _get_engine(manifest: Manifest) -> Engine:
    """Return the engine of a release's index.

    Raises:
        InvalidReleaseError: this version has no such engine.
    """
    engine = ENGINES.get(manifest.index.engine)
    if engine is None:
        raise InvalidReleaseError(
            f"release {manifest.name!r}: {MANIFEST_FILE} names the engine {manifest.index.engine!r}, and this version "
            f"has {', '.join(ENGINES)}: upgrade vecall, or publish the release again",
            file=MANIFEST_FILE,
        )
    return engine


def _parse_search_param_curve(manifest: Manifest) -> SearchParamCurve | None:
    """Read the tuned search parameters: points [k, width, rerank_depth]; None for an exact index.

    Raises:
        InvalidReleaseError: the manifest of an approximate index lacks them or spells them otherwise.
    """
    if _get_engine(manifest).is_exact:
        return None
    parameters = cast("dict[str, Any]", manifest.index.parameters)
    try:
        filtered = parameters["filtered_search_params"]
        widths = tuple(
            WidthsAtRank(rank, width_for_all, width_for_tail)
            for rank, width_for_all, width_for_tail in filtered["widths"]
        )
        return SearchParamCurve(
            [
                (k, SearchParams(width, rerank_depth, spread))
                for k, width, rerank_depth, spread in parameters["search_params"]
            ],
            FilteredSearchTable(widths, filtered["depth_factor"], filtered["spread"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _make_index_info_error(manifest, "parameters", error) from error


def _parse_cost_model(manifest: Manifest) -> CostModel:
    """Read the measured costs; defaults where nothing was measured, as for an exact index.

    Raises:
        InvalidReleaseError: the manifest has other keys than the cost model.
    """
    try:
        return CostModel(**manifest.index.costs) if manifest.index.costs else DEFAULT_COSTS
    except TypeError as error:
        raise _make_index_info_error(manifest, "costs", error) from error


def _make_index_info_error(manifest: Manifest, key: str, error: Exception) -> InvalidReleaseError:
    return InvalidReleaseError(
        f"release {manifest.name!r}: index.{key} of {MANIFEST_FILE} is invalid ({type(error).__name__}: {error}); "
        "publish the release again",
        file=MANIFEST_FILE,
    )


def _check_channel_columns(release: Release) -> None:
    """Check that the release has the attributes that its channels read."""
    created, popular, dtypes = release.channels.facts.created, release.channels.popular, release.attributes.schema
    by = None if popular is None or popular.by is None else popular.by.column
    if by is not None and by not in dtypes:
        raise _make_missing_column_error(release, f"column {by!r}")
    if created is not None and dtypes.get(created) != pl.Datetime("us"):
        raise _make_missing_column_error(release, f"column {created!r} of datetimes in microseconds")


def _make_missing_column_error(release: Release, column: str) -> InvalidReleaseError:
    return InvalidReleaseError(
        f"release {release.name!r}: {ATTRIBUTES_FILE} has no {column}, which {CHANNELS_DIR}/ names; publish it again",
        file=ATTRIBUTES_FILE,
    )


def _check_consistency(release: Release, index_file: str) -> None:
    items, dim = release.manifest.items, release.manifest.dim
    encoder, popularity, users = release.encoder, release.popularity, release.users
    for file, unit, actual, expected in (
        (index_file, "vectors", release.vectors.size, items),
        (index_file, "dimensions", release.vectors.dim, dim),
        (f"{ITEM_ID_MAP_PREFIX}*", "ids", len(release.item_ids), items),
        (ATTRIBUTES_FILE, "rows", len(release.attributes), items),
        (POPULARITY_FILE, "values", items if popularity is None else len(popularity), items),
        (ENCODERS_FILE, "dimensions", dim if encoder is None else encoder.dim, dim),
        ("users.*", "histories", 0 if users is None else len(users.histories), 0 if users is None else len(users.ids)),
    ):
        if actual != expected:
            raise InvalidReleaseError(
                f"release {release.name!r}: {file} has {actual} {unit}, expected {expected} to match the release's "
                "other files; publish it again",
                file=file,
            )
