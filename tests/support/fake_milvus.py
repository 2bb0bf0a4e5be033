"""A Milvus server as a fake client: the methods of `pymilvus.MilvusClient` that vecall calls, over arrays in memory."""

import threading
from types import SimpleNamespace

import numpy as np

from vecall.errors import EngineUnavailableError
from vecall.index.milvus.client import MilvusConnection
from vecall.index.milvus.endpoint import MilvusEndpoint


class FakeMilvusError(Exception):
    """What pymilvus raises.

    Attributes:
        code: number of the error.
        message: the server's words.
    """

    def __init__(self, code, message):
        super().__init__(f"<MilvusException: (code={code}, message={message})>")
        self.code, self.message = code, message


class FakeRpcError(Exception):
    """What gRPC raises: code and details are methods."""

    def __init__(self, name, details):
        super().__init__(details)
        self._name, self._details = name, details

    def code(self):
        return SimpleNamespace(name=self._name)

    def details(self):
        return self._details


class FakeMilvus:
    """Server and client in one. Searches are exact, with server scores; its faults are attributes that tests set.

    Attributes:
        collections: rows, vectors, index and load state by name.
        calls: (method, arguments, options) of every call.
        failures: exception to raise by method; a list raises one after another, None in it lets a call pass.
        is_down: whether connecting and every call fail.
        before_call: called with the method's name before each call.
        inserted_twice: numbers of inserts that the client repeats, as pymilvus does.
        max_indexed_rows: rows of which the index is built; the rest stays pending.
        index_failure: the reason why the index failed, if it did.
        load_progress: percents that loading reports, one a call, then the last one; 100 is loaded.
        max_answer_rows: longest answer of a search; None: k.
    """

    def __init__(self):
        self.collections, self.calls, self.failures, self.aliases = {}, [], {}, {}
        self.before_call = lambda method: None
        self.is_down = False
        self.inserted_twice, self.max_indexed_rows, self.index_failure = set(), 10**9, ""
        self.load_progress, self.max_answer_rows = [100], None
        self._insert_count = 0
        self._lock = threading.Lock()

    def connect(self, token=""):
        return self.connect_to(MilvusEndpoint("http://127.0.0.1:19530", token=token))

    def connect_to(self, endpoint):
        if self.is_down:
            raise EngineUnavailableError("Milvus: connecting failed")
        return MilvusConnection(self, endpoint, (FakeMilvusError, FakeRpcError))

    def called(self):
        return [method for method, _, _ in self.calls]

    def create_schema(self, **options):
        fields = {}
        return SimpleNamespace(
            options=options, fields=fields, add_field=lambda name, kind, **more: fields.update({name: (kind, more)})
        )

    def prepare_index_params(self):
        added = []
        return SimpleNamespace(added=added, add_index=lambda **options: added.append(options))

    def _get_connection(self):
        return SimpleNamespace(get_index_state=lambda name, index_name, timeout: (None, self.index_failure))

    def _start(self, method, arguments, options):
        assert options["timeout"] > 0, f"{method} was called without a deadline"
        with self._lock:
            self.calls.append((method, arguments, options))
            failure = self.failures.get(method)
            if isinstance(failure, list):
                failure = failure.pop(0) if failure else None
        self.before_call(method)
        if self.is_down:
            raise FakeRpcError("UNAVAILABLE", "connection refused")
        if failure is not None:
            raise failure

    def _find(self, name):
        if name not in self.collections:
            raise FakeMilvusError(100, f"can't find collection[database=default][collection={name}]")
        return self.collections[name]

    def list_collections(self, **options):
        self._start("list_collections", (), options)
        return list(self.collections)

    def create_collection(self, name, **options):
        self._start("create_collection", (name,), options)
        self.collections[name] = SimpleNamespace(
            schema=options["schema"], shards=options["num_shards"], rows=[], vectors=[], flushed=0, index=None, loaded=0
        )

    def insert(self, name, data, **options):
        self._start("insert", (name, data), options)
        for _ in range(2 if self._insert_count in self.inserted_twice else 1):
            self._find(name).rows.extend(entity["row"] for entity in data)
            self._find(name).vectors.extend(entity["vector"].copy() for entity in data)
        self._insert_count += 1
        return {"insert_count": len(data)}

    def flush(self, name, **options):
        self._start("flush", (name,), options)
        self._find(name).flushed = len(self._find(name).rows)

    def get_collection_stats(self, name, **options):
        self._start("get_collection_stats", (name,), options)
        return {"row_count": self._find(name).flushed}

    def create_index(self, name, index_params, **options):
        self._start("create_index", (name, index_params), options)
        assert options["sync"] is False
        self._find(name).index = index_params.added[0]

    def describe_index(self, name, index_name, **options):
        self._start("describe_index", (name, index_name), options)
        total = len(self._find(name).rows)
        indexed = min(total, self.max_indexed_rows)
        state = "Failed" if self.index_failure else "Finished"  # also with rows pending, as after a compaction
        return {"state": state, "indexed_rows": indexed, "pending_index_rows": total - indexed}

    def load_collection(self, name, **options):
        self._start("load_collection", (name,), options)
        assert options["_async"] is True
        self._find(name).loaded = 1

    def get_load_state(self, name, **options):
        self._start("get_load_state", (name,), options)
        if name not in self.collections:
            return {"state": SimpleNamespace(name="NotExist")}
        if not self._find(name).loaded:
            return {"state": SimpleNamespace(name="NotLoad")}
        percent = self.load_progress.pop(0) if len(self.load_progress) > 1 else self.load_progress[0]
        if percent < 100:
            return {"state": SimpleNamespace(name="Loading"), "progress": percent}
        return {"state": SimpleNamespace(name="Loaded")}

    def query(self, name, **options):
        self._start("query", (name,), options)
        assert options["consistency_level"] == "Strong"
        collection = self._find(name)
        if options["output_fields"] == ["count(*)"]:
            return [{"count(*)": len(collection.rows)}]
        requested = {int(row) for row in options["filter"].removeprefix("row in [").removesuffix("]").split(",")}
        found = [
            {"row": row, "vector": [float(value) for value in vector]}
            for row, vector in zip(collection.rows, collection.vectors, strict=True)
            if row in requested
        ]
        return found[::-1]  # the server keeps no order

    def search(self, name, data, **options):
        self._start("search", (name, data), options)
        collection = self._find(name)
        if not collection.loaded:
            raise FakeMilvusError(101, f"collection not loaded[collection={name}]")
        rows, vectors = np.array(collection.rows), np.array(collection.vectors)
        answers = []
        for query in data:
            if not np.isfinite(query).all():
                answers.append(SimpleNamespace(ids=[], distances=[]))
                continue
            scores = vectors @ query
            best = np.argsort(-scores, kind="stable")[: options["limit"]][: self.max_answer_rows]
            answers.append(SimpleNamespace(ids=rows[best].tolist(), distances=scores[best].tolist()))
        return answers

    def release_collection(self, name, **options):
        self._start("release_collection", (name,), options)
        self._find(name).loaded = 0

    def drop_collection(self, name, **options):
        self._start("drop_collection", (name,), options)
        assert name not in self.aliases.values()
        self.collections.pop(name, None)

    def alter_alias(self, name, alias, **options):
        self._start("alter_alias", (name, alias), options)
        if alias not in self.aliases:
            raise FakeMilvusError(1600, f"alias not found[alias={alias}]")
        self.aliases[alias] = name

    def create_alias(self, name, alias, **options):
        self._start("create_alias", (name, alias), options)
        self.aliases[alias] = name

    def list_aliases(self, name, **options):
        self._start("list_aliases", (name,), options)
        self._find(name)
        return {"aliases": [alias for alias, named in self.aliases.items() if named == name]}

    def drop_alias(self, alias, **options):
        self._start("drop_alias", (alias,), options)
        del self.aliases[alias]

    def close(self):
        self.calls.append(("close", (), {}))
