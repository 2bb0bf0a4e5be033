"""A fake engine whose index lies on a server: a local index behind calls that can be slow, fail or answer wrongly."""

import threading
import time
from dataclasses import replace

from vecall.errors import EngineUnavailableError
from vecall.index.engines import ENGINES
from vecall.index.hits import Hits
from vecall.index.search_deadline import get_remaining_seconds

FAILURES_THAT_OPEN_THE_CIRCUIT = 3


class FakeServer:
    """What the server does, which tests set, and what it was asked for.

    Attributes:
        state: "up", "down" (calls fail at once) or "frozen" (calls fail at the end of their time).
        delay_seconds: of each search.
        answer: "good", "short" (half of the rows), "nan" (no rows, as for a NaN) or "wrong" (rows that cannot be).
        timeout_seconds: the client's own time limit of a search.
        ignores_deadline: the client keeps no time limit, and waits until the server is up.
        when_down: setting of all releases.
        loaded: names of the releases whose index is in memory.
        calls: (what, name of the release) of each call.
        running, max_running: searches at present, and the most at a time.
        threads: names of the threads that searched.
    """

    def __init__(self):
        self.state, self.delay_seconds, self.answer = "up", 0.0, "good"
        self.timeout_seconds, self.ignores_deadline, self.when_down = 0.2, False, "refuse"
        self.loaded, self.calls, self.threads = set(), [], set()
        self.running = self.max_running = 0
        self._changed = threading.Condition()

    def set(self, **attributes):
        with self._changed:
            for name, value in attributes.items():
                setattr(self, name, value)
            self._changed.notify_all()

    def search(self, name):
        with self._changed:
            self.calls.append(("search", name))
            self.threads.add(threading.current_thread().name)
            self.running += 1
            self.max_running = max(self.max_running, self.running)
        try:
            self._answer(None if self.ignores_deadline else min(self.timeout_seconds, get_remaining_seconds()))
        finally:
            with self._changed:
                self.running -= 1
        if name not in self.loaded:
            raise EngineUnavailableError(f"index {name} is not loaded")

    def change(self, what, name):
        self.calls.append((what, name))
        self._answer(0.05)
        getattr(self.loaded, {"load": "add", "unload": "discard"}[what])(name)

    def _answer(self, timeout):
        if self.state == "up" and (timeout is None or self.delay_seconds <= timeout):
            time.sleep(self.delay_seconds)
            return
        if self.state != "down":
            with self._changed:
                if self._changed.wait_for(lambda: self.state == "down", timeout) or timeout is not None:
                    raise EngineUnavailableError("the server has not answered in time")
        raise EngineUnavailableError("the server is down")


class FakeServerIndex:
    """A local index that is on a server: see `vecall.index.server_index.ServerIndex`."""

    def __init__(self, local_index, name, server):
        self._local_index, self._name, self._server = local_index, name, server
        self.vectors, self.max_width = local_index.vectors, local_index.max_width
        self.profile_filter, self.adapt, self.save = local_index.profile_filter, local_index.adapt, local_index.save
        self.is_closed, self._failure_count = False, 0

    @property
    def when_down(self):
        return self._server.when_down

    @property
    def unavailable_reason(self):
        """An open circuit, whose probe sees at once that the server is up."""
        if self._server.state == "up" or self._failure_count < FAILURES_THAT_OPEN_THE_CIRCUIT:
            return None
        return "the server has not answered three times"

    def search(self, queries, k, *, search_params=None, allowed=None, lists=None):
        if self.is_closed:
            raise EngineUnavailableError("the index is closed")
        if (reason := self.unavailable_reason) is not None:
            raise EngineUnavailableError(reason)
        try:
            self._server.search(self._name)
            hits = self._local_index.search(queries, k, search_params=search_params, allowed=allowed, lists=lists)
            return self._check(hits, queries, allowed)
        except EngineUnavailableError:
            self._failure_count += 1
            raise

    def _check(self, hits, queries, allowed):
        self._failure_count = 0
        if self._server.answer == "wrong":
            raise EngineUnavailableError("the server returned rows that are not in the index")
        if self._server.answer != "good":
            kept = hits.rows.shape[1] // 2 if self._server.answer == "short" else 0
            hits = Hits(hits.rows.copy(), hits.scores.copy())
            hits.rows[:, kept:], hits.scores[:, kept:] = -1, float("-inf")
        return self.vectors.fill_missing_hits(hits, queries, allowed)

    def load(self):
        self._server.change("load", self._name)
        self.is_closed = False

    def unload(self):
        self._server.change("unload", self._name)

    def close(self):
        self.is_closed = True


def put_on_server(monkeypatch, engine_name="hnsw"):
    """Let the indexes of an engine lie on a fake server; returns the server."""
    server, engine = FakeServer(), ENGINES[engine_name]

    def open_index(path, info):
        return FakeServerIndex(engine.open(path, info), path.parent.name, server)

    monkeypatch.setitem(ENGINES, engine_name, replace(engine, is_remote=True, open=open_index))
    return server
