"""An engine: how one kind of index is built, opened, tuned and dropped. `vecall.index.engines` lists them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import JsonValue

from vecall.arrays import HalfVectors, Vectors
from vecall.index.base import Index
from vecall.index.index_info import IndexInfo
from vecall.index.search_params import TuningPoint
from vecall.index.settings import IndexSettings
from vecall.index.sweep import SweepTask, sweep_widths


@dataclass(frozen=True)
class ReleaseDraft:
    """The release that an index is built for.

    Attributes:
        directory: of its files; the commit moves it to where releases are.
        name: of the release; None if it is named at the commit.
    """

    directory: Path
    name: str | None = None

    @property
    def store_dir(self) -> Path:
        """Directory of the store, where all drafts lie."""
        return self.directory.parent


@dataclass(frozen=True)
class BuildContext:
    """What an index is built with, beside the vectors.

    Attributes:
        settings: of the section `[index]`.
        draft: the release that it is for; None for an index that is not published, which no remote engine builds.
    """

    settings: IndexSettings
    draft: ReleaseDraft | None = None


@dataclass(frozen=True)
class EngineBuild:
    """An index that was built.

    Attributes:
        index: over all vectors.
        parameters: for the manifest's `index.parameters`, beside the tuned ones: what it was built with, and what its
            engine needs to open or drop it. Never a secret.
    """

    index: Index
    parameters: Mapping[str, JsonValue] = field(default_factory=dict)


@dataclass(frozen=True)
class Engine:
    """One kind of index.

    Attributes:
        name: in `index.engine` of the settings and of the manifest.
        file: name of its file in a release: `index.faiss`, or `vectors.npy` if the index itself lies elsewhere.
        build: builds an index over [N, D] float32 or float16 vectors. Raises `DataError` if they cannot be stored.
        open: opens the index of a release by the path of its file, whose sha256 has been checked, and by its entry in
            the manifest; a `RemoteIndex` if `is_remote`. Raises `InvalidReleaseError` if the file does not hold what
            the engine writes.
        settings_keys: the keys of `[index]` that it reads; those of other engines are refused beside it. A key implies
            the first engine that has it if the settings name none.
        is_exact: whether every search is exact, so there is nothing to tune.
        sweep: yields the search parameters that the tuner tries for one k, with what was measured.
        fixed_width_key: key of `[index]` that fixes the search width; None if there is none.
        max_k: largest number of rows that the index can be asked for; more are scanned. None: any number.
        is_remote: whether a search asks a server, so it may wait and raise `EngineUnavailableError`. "auto" chooses no
            such engine.
        maps_vectors: whether an open index leaves the vectors in `index.faiss`, mapped into memory, so that processes
            share them.
        drop: deletes what the engine keeps outside of the release, by the release's entry in the manifest and the
            store's directory; None if it keeps nothing there. Called after the release is gone, or was given up.
    """

    name: str
    file: str
    build: Callable[[Vectors | HalfVectors, BuildContext], EngineBuild]
    open: Callable[[Path, IndexInfo], Index]
    settings_keys: tuple[str, ...] = ()
    is_exact: bool = False
    sweep: Callable[[SweepTask], Iterator[TuningPoint]] = sweep_widths
    fixed_width_key: str | None = None
    max_k: int | None = None
    is_remote: bool = False
    maps_vectors: bool = False
    drop: Callable[[IndexInfo, Path], None] | None = None

    def get_fixed_width(self, settings: IndexSettings) -> int | None:
        """Return the search width that the settings fix; None if it is to be found."""
        width: int | None = None if self.fixed_width_key is None else getattr(settings, self.fixed_width_key)
        return width
