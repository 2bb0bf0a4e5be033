"""A release opened: verified first, then everything that a request needs."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.data.id_map import IdMap
from vecall.errors import InvalidReleaseError
from vecall.index import index_io as index_files
from vecall.index.base import Index, Rows, SearchParams
from vecall.index.kernels import compile_kernels
from vecall.index.planner import DEFAULT_COSTS, CostModel
from vecall.index.search_params import FilteredSearchParams, SearchParamCurve, WidthAtRank
from vecall.index.topk import select_top_k_batch
from vecall.release.atomic_io import read_array, read_table
from vecall.release.encoder import ENCODERS_FILE, OnnxEncoder
from vecall.release.golden import GoldenQueries
from vecall.release.item_features import FEATURES_FILE, ItemFeatureFile
from vecall.release.manifest import Manifest, verify_release
from vecall.release.store import Store
from vecall.release.users import UserTable, load_id_map
from vecall.schema import IdType

INDEX_FILE = "index.faiss"
ATTRIBUTES_FILE = "attributes.arrow"
POPULARITY_FILE = "popularity.npy"
EXTERNAL_VECTOR_ROWS_FILE = "given_rows.npy"
ITEM_ID_MAP_PREFIX = "ids."

_POPULAR_CACHE_ROWS = 2**15  # rows that are kept in the order of their popularity


@dataclass(frozen=True)
class Release:
    """All parts of one release; it never changes.

    Attributes:
        manifest: what it says of itself.
        item_ids: vocabulary of the N items.
        index: over their vectors; a vector is returned as it is stored.
        search_param_curve: how hard to search for k rows; None where the index scans them all.
        cost_model: of searching and of scanning.
        attributes: [N] rows of what `where` and ranking may look at.
        popularity: [N] how often each item was taken; None where that is not known.
        users: known users; None without.
        encoder: both towers; None where the vectors were brought.
        golden_queries: queries with known answers; None without.
        item_features: of the items, as far as they are no attributes; None without.
        external_vector_rows: items whose vector was given, though the release has towers; ascending.
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

    @cached_property
    def popular_rows(self) -> Rows:
        """Some ten thousand rows by popularity descending, then row ascending; none where it is not known."""
        if self.popularity is None:
            return np.empty(0, dtype=np.int64)
        rows: Rows = select_top_k_batch(self.popularity[None], min(_POPULAR_CACHE_ROWS, len(self.popularity))).rows[0]
        return rows

    @property
    def name(self) -> str:
        """The release's name."""
        return self.manifest.name

    @property
    def user_id_type(self) -> IdType:
        """Type of user ids; "string" for a release without users, which accepts any user id."""
        return "string" if self.users is None else self.users.ids.id_type

    def check_golden_queries(self) -> None:
        """Prove that it answers as it did when it was published.

        Raises:
            ReleaseRefused: it does not.
        """
        if self.golden_queries is None:
            return
        effort = (
            None
            if self.search_param_curve is None
            else self.search_param_curve.look_up(self.golden_queries.exact_rows.shape[1])
        )
        floor = cast("float", (self.manifest.ann or {}).get("floor", 0.0))
        self.golden_queries.check(self.index, self.encoder, search_params=effort, min_recall=floor)


def open_release(store: Store, name: str | None = None) -> Release:
    """Verify every byte of a release and open it.

    Args:
        store: where it lies.
        name: None is the current one.

    Raises:
        StoreError: there is no such release.
        ReleaseRefused: a file of it is damaged, missing or too many.
    """
    manifest = store.verify(name)
    return load_release(store.get_release_dir(manifest.name), manifest)


def open_and_check_release(store: Store, name: str) -> Release:
    """Verify and open a release, and see that its golden queries answer as they did when it was published.

    Raises:
        StoreError: there is no such release.
        ReleaseRefused: a file of it is damaged, missing or too many, or it answers otherwise.
    """
    release = load_release(store.get_release_dir(name), verify_release(store.get_release_dir(name)))
    release.check_golden_queries()
    return release


def activate_release(store: Store, name: str) -> str | None:
    """Make a release the current one, once it has proved itself.

    Returns:
        Name of the release that was active before.

    Raises:
        StoreError: there is no such release.
        ReleaseRefused: a file of it is damaged, missing or too many, or it answers otherwise.
    """
    open_and_check_release(store, name)
    return store.activate(name)


def load_release(directory: Path, manifest: Manifest) -> Release:
    """Open a folder whose every byte was verified against `manifest`.

    Raises:
        ReleaseRefused: a file is not what its name says, or they do not belong together.
    """
    popularity = directory / POPULARITY_FILE
    compile_kernels()  # else the first request would wait for the compiler
    release = Release(
        manifest=manifest,
        item_ids=load_id_map(directory, ITEM_ID_MAP_PREFIX),
        index=index_files.load_index(directory / INDEX_FILE),
        search_param_curve=_parse_search_param_curve(manifest),
        cost_model=CostModel(**manifest.index.costs) if manifest.index.costs else DEFAULT_COSTS,
        attributes=read_table(directory / ATTRIBUTES_FILE),
        popularity=read_array(popularity) if popularity.exists() else None,
        users=UserTable.load(directory),
        encoder=OnnxEncoder(directory) if (directory / ENCODERS_FILE).exists() else None,
        golden_queries=GoldenQueries.load(directory),
        item_features=ItemFeatureFile(directory / FEATURES_FILE) if (directory / FEATURES_FILE).exists() else None,
        external_vector_rows=read_array(directory / EXTERNAL_VECTOR_ROWS_FILE)
        if (directory / EXTERNAL_VECTOR_ROWS_FILE).exists()
        else np.empty(0, dtype=np.int64),
    )
    _check_consistency(release)
    _ = release.popular_rows  # found here, so that no request waits for it
    return release


def _parse_search_param_curve(manifest: Manifest) -> SearchParamCurve | None:
    """The tuned search parameters, points [k, width, rerank_depth]; None of an exact index."""
    parameters = manifest.index.parameters
    if manifest.index.engine == "exact":
        return None
    points = cast("list[list[int]]", parameters["search_params"])
    filtered = cast("dict[str, Any]", parameters["filtered_search_params"])
    widths = tuple(WidthAtRank(*width) for width in filtered["widths"])
    return SearchParamCurve(
        [(k, SearchParams(width, rerank_depth)) for k, width, rerank_depth in points],
        FilteredSearchParams(widths, filtered["depth_factor"]),
    )


def _check_consistency(release: Release) -> None:
    n, dim = release.manifest.items, release.manifest.dim
    encoder, popularity, users = release.encoder, release.popularity, release.users
    for file, size, expected in (
        (INDEX_FILE, release.index.size, n),
        (INDEX_FILE, release.index.dim, dim),
        (f"{ITEM_ID_MAP_PREFIX}*", len(release.item_ids), n),
        (ATTRIBUTES_FILE, len(release.attributes), n),
        (POPULARITY_FILE, n if popularity is None else len(popularity), n),
        (ENCODERS_FILE, dim if encoder is None else encoder.dim, dim),
        ("users.*", 0 if users is None else len(users.histories), 0 if users is None else len(users.ids)),
    ):
        if size != expected:
            raise InvalidReleaseError(
                f"release {release.name!r}: {file} has {size} where {expected} belongs to the release's other files; "
                "publish it again",
                file=file,
            )
