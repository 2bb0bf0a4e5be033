"""An engine on a server of which this process plays the part: one file, as any engine is, and a line in `ENGINES`."""

import threading
import uuid
from dataclasses import dataclass, field

import numpy as np

from vecall.errors import EngineUnavailableError, InvalidReleaseError
from vecall.index.engine import BuildContext, Engine, EngineBuild
from vecall.index.engines import ENGINES
from vecall.index.remote import RemoteIndex
from vecall.index.search_deadline import get_remaining_seconds
from vecall.index.stored_vectors import VECTORS_FILE, StoredVectors, write_vectors

NAME = "milvus"  # the settings know the names of engines
FAILURES_THAT_OPEN_THE_CIRCUIT = 3
TIMEOUT_SECONDS = 5.0  # of a search without a deadline


@dataclass
class FakeServer:
    """A server with collections of vectors.

    Attributes:
        max_k: largest number of rows of an answer.
        fault: None, or how it fails: "down" answers nothing; "frozen" lets each call wait until its time is up, or
            without `keeps_deadlines` until the server is down; "short" returns half of the rows; "empty" none, as for a
            query of NaN; "damaged" returns repeated rows, padding and rows that do not exist beside right ones; "nan"
            has lost its vectors, so it returns any rows.
        collections: vectors by name.
        searches: queries, rows asked for and width of each search.
        delay_seconds: of each search.
        keeps_deadlines: whether its client gives up a search when its time is up.
        when_down: of its indexes.
        unloaded: names of the collections that are not in its memory.
        calls: "load" or "unload" and the collection of each such call.
        running: searches at present.
        threads: names of the threads that searched.
    """

    max_k: int = 400
    fault: str | None = None
    collections: dict[str, np.ndarray] = field(default_factory=dict)
    searches: list[tuple[int, int, int]] = field(default_factory=list)
    delay_seconds: float = 0.0
    keeps_deadlines: bool = True
    when_down: str = "refuse"
    unloaded: set[str] = field(default_factory=set)
    calls: list[tuple[str, str]] = field(default_factory=list)
    running: int = 0
    threads: set[str] = field(default_factory=set)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def set(self, **attributes):
        """Set attributes, and wake up what waits for the server."""
        with self.changed:
            for name, value in attributes.items():
                setattr(self, name, value)
            self.changed.notify_all()

    def check(self, timeout=0.02, delay=0.0):
        """Answer a call after a delay, or fail, perhaps at the end of its time."""
        with self.changed:
            seconds, is_late = min(delay, timeout), delay > timeout
            if self.fault == "frozen":
                seconds, is_late = timeout if self.keeps_deadlines else None, True
            self.changed.wait_for(lambda: self.fault == "down", seconds)
            if is_late or self.fault == "down":
                raise EngineUnavailableError("the fake server does not answer: start it")

    def find(self, name, queries, k, width):
        """Search, and keep track of it."""
        with self.changed:
            self.running += 1
            self.threads.add(threading.current_thread().name)
        try:
            timeout = min(TIMEOUT_SECONDS, get_remaining_seconds())
            self.check(timeout, self.delay_seconds)
            if name in self.unloaded:
                raise EngineUnavailableError(f"collection {name} of the fake server is not loaded")
            return self.search(name, queries, k, width)
        finally:
            with self.changed:
                self.running -= 1

    def call(self, what, name):
        """Load or unload a collection."""
        self.calls.append((what, name))
        self.check()
        getattr(self.unloaded, {"load": "discard", "unload": "add"}[what])(name)

    def search(self, name, queries, k, width):
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
        return self.server.find(self.collection, queries, k, width)


class FakeIndex(RemoteIndex):
    """Index of a collection, with a circuit breaker whose probe sees at once that the server answers again."""

    def __init__(self, vectors, server, collection):
        super().__init__(vectors, FakeFinder(server, collection))
        self.server, self.collection = server, collection
        self.is_closed, self._failure_count = False, 0

    @property
    def when_down(self):
        return self.server.when_down

    @property
    def unavailable_reason(self):
        is_open = self._failure_count >= FAILURES_THAT_OPEN_THE_CIRCUIT and self.server.fault in ("down", "frozen")
        return "the fake server has failed three times" if is_open else None

    def search(self, *arguments, **options):
        if self.is_closed or self.unavailable_reason is not None:
            raise EngineUnavailableError(self.unavailable_reason or "the index is closed")
        try:
            hits = super().search(*arguments, **options)
        except EngineUnavailableError:
            self._failure_count += 1
            raise
        self._failure_count = 0
        return hits

    def load(self):
        self.server.call("load", self.collection)
        self.is_closed = False

    def unload(self):
        self.server.call("unload", self.collection)

    def close(self):
        self.is_closed = True


def make_engine(server):
    """The engine of a server."""

    def build(vectors, context: BuildContext):
        path = context.draft.directory / VECTORS_FILE
        write_vectors(vectors, path)
        stored = StoredVectors.open(path)
        server.check()
        name = f"vecall_{uuid.uuid4().hex}"
        server.collections[name] = stored.half_vectors.astype(np.float32)
        return EngineBuild(FakeIndex(stored, server, name), {"collection": name, "rows": stored.size})

    def open_index(path, info):
        stored = StoredVectors.open(path)
        name = info.parameters["collection"]
        if server.fault is None and name not in server.collections:
            raise InvalidReleaseError(f"the server has no collection {name}: publish the release again", file=path.name)
        return FakeIndex(stored, server, name)

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


def register(monkeypatch):
    """Make the engine known during a test; returns its server."""
    server = FakeServer()
    monkeypatch.setitem(ENGINES, NAME, make_engine(server))
    return server
