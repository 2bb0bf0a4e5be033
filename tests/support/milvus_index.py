"""Indexes over a Milvus server, real or fake, for tests."""

import hashlib
import uuid
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from vecall.index.milvus import collection
from vecall.index.milvus.building import CollectionParams, build_collection
from vecall.index.milvus.client import acquire_connection, release_connection
from vecall.index.milvus.endpoint import resolve_endpoint
from vecall.index.milvus.index import MilvusIndex
from vecall.index.milvus.session import CollectionSession
from vecall.index.milvus.settings import MilvusSettings
from vecall.index.scan import check_vectors
from vecall.index.stored_vectors import StoredVectors

STORE_ID = "0123456789abcdef"


class MilvusIndexBuilder:
    """Builds indexes over the server that `VECALL_MILVUS_URI` names; equal vectors share a collection."""

    def __init__(self, **settings):
        self._settings = MilvusSettings(build_stall_minutes=1, timeout_ms=5000, **settings)
        self._names = {}

    def prebuild(self, arrays):
        """Build the collections of several arrays at the same time: each takes seconds, in which the server waits."""
        with ThreadPoolExecutor(12) as pool:
            for index in pool.map(self, arrays):
                index.close()

    def __call__(self, vectors, threads=None):
        check_vectors(vectors)
        half_vectors = np.ascontiguousarray(vectors, dtype=np.float16)
        key = (half_vectors.shape, hashlib.sha256(half_vectors.tobytes()).digest())
        connection = acquire_connection(resolve_endpoint(self._settings))
        if key not in self._names:
            name = collection.make_collection_name(STORE_ID, uuid.uuid4().hex)
            build_collection(connection, name, half_vectors, CollectionParams(16, 200, self._settings))
            self._names[key] = name
        session = CollectionSession(
            self._names[key], half_vectors.shape, self._settings, timeout=5, connection=connection
        )
        return MilvusIndex(StoredVectors(half_vectors.copy()), session, "refuse")

    def drop_all(self):
        connection = acquire_connection(resolve_endpoint(self._settings))
        for name in self._names.values():
            collection.drop(connection, name)
        release_connection(connection)
