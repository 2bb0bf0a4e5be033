"""A release opened: verified first, then everything that a request needs."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.data.id_map import Vocabulary
from vecall.errors import ReleaseRefused
from vecall.index import index_io as index_files
from vecall.index.base import Effort, Index, Rows
from vecall.index.kernels import warm
from vecall.index.planner import USUAL_COSTS, Costs
from vecall.index.search_params import EffortCurve, Filtered, Width
from vecall.index.topk import top_k
from vecall.release.atomic_io import read_array, read_table
from vecall.release.encoder import ENCODERS, Encoder
from vecall.release.golden import Golden
from vecall.release.item_features import FEATURES, ItemFeatures
from vecall.release.manifest import Manifest, verify
from vecall.release.store import Store
from vecall.release.users import Users, load_vocabulary

INDEX = "index.faiss"
ATTRIBUTES = "attributes.arrow"
POPULARITY = "popularity.npy"
GIVEN_ROWS = "given_rows.npy"
ITEM_PREFIX = "ids."

_FIRST = 2**15  # rows that are kept in the order of their popularity
_USUAL_EF = 50  # of a graph in a release of format 1 that was published without queries


@dataclass(frozen=True)
class Release:
    """All parts of one release; it never changes.

    Attributes:
        manifest: what it says of itself.
        items: vocabulary of the N items.
        index: over their vectors; a vector is returned as it is stored.
        effort: how hard to search for k rows; None where the index scans them all.
        costs: of searching and of scanning.
        attributes: [N] rows of what `where` and ranking may look at.
        popularity: [N] how often each item was taken; None where that is not known.
        users: known users; None without.
        encoder: both towers; None where the vectors were brought.
        golden: queries with known answers; None without.
        features: of the items, as far as they are no attributes; None without.
        given_rows: items whose vector was given, though the release has towers; ascending.
    """

    manifest: Manifest
    items: Vocabulary
    index: Index
    effort: EffortCurve | None
    costs: Costs
    attributes: pl.DataFrame
    popularity: NDArray[np.float32] | None
    users: Users | None
    encoder: Encoder | None
    golden: Golden | None
    features: ItemFeatures | None = None
    given_rows: Rows = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    @cached_property
    def most_popular(self) -> Rows:
        """Some ten thousand rows by popularity descending, then row ascending; none where it is not known."""
        if self.popularity is None:
            return np.empty(0, dtype=np.int64)
        rows: Rows = top_k(self.popularity[None], min(_FIRST, len(self.popularity))).rows[0]
        return rows

    @property
    def name(self) -> str:
        """The release's name."""
        return self.manifest.name

    def check_golden(self) -> None:
        """Prove that it answers as it did when it was published.

        Raises:
            ReleaseRefused: it does not.
        """
        if self.golden is None:
            return
        effort = None if self.effort is None else self.effort.at(self.golden.rows.shape[1])
        floor = cast("float", (self.manifest.ann or {}).get("floor", 0.0))
        self.golden.check(self.index, self.encoder, effort=effort, floor=floor)


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
    return load_release(store.folder(manifest.name), manifest)


def prove_release(store: Store, name: str) -> Release:
    """Verify and open a release, and see that its golden queries answer as they did when it was published.

    Raises:
        StoreError: there is no such release.
        ReleaseRefused: a file of it is damaged, missing or too many, or it answers otherwise.
    """
    release = load_release(store.folder(name), verify(store.folder(name)))
    release.check_golden()
    return release


def activate_release(store: Store, name: str) -> str | None:
    """Make a release the current one, once it has proved itself.

    Returns:
        Name of the release that was active before.

    Raises:
        StoreError: there is no such release.
        ReleaseRefused: a file of it is damaged, missing or too many, or it answers otherwise.
    """
    prove_release(store, name)
    return store.activate(name)


def load_release(folder: Path, manifest: Manifest) -> Release:
    """Open a folder whose every byte was verified against `manifest`.

    Raises:
        ReleaseRefused: a file is not what its name says, or they do not belong together.
    """
    popularity = folder / POPULARITY
    warm()  # else the first request would wait for the compiler
    release = Release(
        manifest=manifest,
        items=load_vocabulary(folder, ITEM_PREFIX),
        index=index_files.load(folder / INDEX),
        effort=_curve(manifest),
        costs=Costs(**manifest.index.costs) if manifest.index.costs else USUAL_COSTS,
        attributes=read_table(folder / ATTRIBUTES),
        popularity=read_array(popularity) if popularity.exists() else None,
        users=Users.load(folder),
        encoder=Encoder(folder) if (folder / ENCODERS).exists() else None,
        golden=Golden.load(folder),
        features=ItemFeatures(folder / FEATURES) if (folder / FEATURES).exists() else None,
        given_rows=read_array(folder / GIVEN_ROWS) if (folder / GIVEN_ROWS).exists() else np.empty(0, dtype=np.int64),
    )
    _check_sizes(release)
    _ = release.most_popular  # found here, so that no request waits for it
    return release


def _curve(manifest: Manifest) -> EffortCurve | None:
    """Points [k, width, depth]; format 1 has graphs alone, as [k, ef], or one `ef` for all."""
    parameters = manifest.index.parameters
    if manifest.index.engine == "exact":
        return None
    if "effort" in parameters:
        points = cast("list[list[int]]", parameters["effort"])
        filtered = cast("dict[str, Any]", parameters.get("filtered", {"widths": [], "deeper": 1.0}))
        widths = tuple(Width(*one) for one in filtered["widths"])
        return EffortCurve([(k, Effort(*effort)) for k, *effort in points], Filtered(widths, filtered["deeper"]))
    ef = cast("int", parameters.get("ef", _USUAL_EF))
    return EffortCurve([(1, Effort(ef)), (ef, Effort(ef))])


def _check_sizes(release: Release) -> None:
    n, dim = release.manifest.items, release.manifest.dim
    encoder, popularity, users = release.encoder, release.popularity, release.users
    for file, size, expected in (
        (INDEX, release.index.size, n),
        (INDEX, release.index.dim, dim),
        (f"{ITEM_PREFIX}*", len(release.items), n),
        (ATTRIBUTES, len(release.attributes), n),
        (POPULARITY, n if popularity is None else len(popularity), n),
        (ENCODERS, dim if encoder is None else encoder.dim, dim),
        ("users.*", 0 if users is None else len(users.histories), 0 if users is None else len(users.ids)),
    ):
        if size != expected:
            raise ReleaseRefused(
                f"release {release.name!r}: {file} has {size} where {expected} belongs to the release's other files; "
                "publish it again",
                file=file,
            )
