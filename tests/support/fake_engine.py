"""An engine on a server of which this process plays the part: one file, as any engine is, and a line in `ENGINES`."""

import uuid
from dataclasses import dataclass, field

import numpy as np

from vecall.errors import EngineUnavailableError, InvalidReleaseError
from vecall.index.engine import BuildContext, Engine, EngineBuild
from vecall.index.remote import RemoteIndex
from vecall.index.stored_vectors import VECTORS_FILE, StoredVectors, write_vectors

NAME = "milvus"  # the settings know the names of engines


@dataclass
class FakeServer:
    """A server with collections of vectors.

    Attributes:
        max_k: largest number of rows of an answer.
        fault: None, or how it fails: "down" answers nothing; "short" returns half of the rows; "empty" none, as for a
            query of NaN; "damaged" returns repeated rows, padding and rows that do not exist beside right ones; "nan"
            has lost its vectors, so it returns any rows.
        collections: vectors by name.
        searches: queries, rows asked for and width of each search.
    """

    max_k: int = 400
    fault: str | None = None
    collections: dict[str, np.ndarray] = field(default_factory=dict)
    searches: list[tuple[int, int, int]] = field(default_factory=list)

    def check(self):
        if self.fault == "down":
            raise EngineUnavailableError("the fake server does not answer: start it")

    def search(self, name, queries, k, width):
        self.check()
        assert len(queries) >= 1
        assert 1 <= k <= self.max_k
        assert k <= width <= 10 * self.max_k
        self.searches.append((len(queries), k, width))
        vectors = self.collections[name] * (np.nan if self.fault == "nan" else 1)
        scores = np.array([(vectors * query).sum(axis=1) for query in queries])
        # Of equal scores the last rows come first, and its own rounding decides between similar ones.
        rows = np.argsort(np.where(np.isnan(scores), 0, scores)[:, ::-1], axis=1, kind="stable")[:, ::-1]
        rows = (len(vectors) - 1 - rows)[:, :k]
        if self.fault == "damaged":
            return np.concatenate([rows[:, : k // 2], rows[:, : k // 2], np.full((len(rows), 1), -1), rows + 10**6], 1)
        return rows[:, : {"short": k // 2, "empty": 0}.get(self.fault, k)]


@dataclass(frozen=True)
class FakeFinder:
    """The server's rows of one collection. See `vecall.index.remote.RowFinder`."""

    server: FakeServer
    collection: str

    @property
    def max_k(self):
        return self.server.max_k

    @property
    def max_width(self):
        return 10 * self.server.max_k

    def find_rows(self, queries, k, width):
        return self.server.search(self.collection, queries, k, width)


def make_engine(server):
    """The engine of a server."""

    def build(vectors, context: BuildContext):
        path = context.draft.directory / VECTORS_FILE
        write_vectors(vectors, path)
        stored = StoredVectors.open(path)
        server.check()
        name = f"vecall_{uuid.uuid4().hex}"
        server.collections[name] = stored.half_vectors.astype(np.float32)
        return EngineBuild(RemoteIndex(stored, FakeFinder(server, name)), {"collection": name, "rows": stored.size})

    def open_index(path, info):
        stored = StoredVectors.open(path)
        server.check()
        name = info.parameters["collection"]
        if name not in server.collections:
            raise InvalidReleaseError(f"the server has no collection {name}: publish the release again", file=path.name)
        return RemoteIndex(stored, FakeFinder(server, name))

    def drop(info, store_dir):
        assert (store_dir / "releases").is_dir()
        server.check()
        server.collections.pop(info.parameters["collection"], None)

    return Engine(
        name=NAME,
        file=VECTORS_FILE,
        build=build,
        open=open_index,
        settings_keys=("M", "ef_construction", "ef"),
        fixed_width_key="ef",
        max_k=server.max_k,
        is_remote=True,
        drop=drop,
    )
