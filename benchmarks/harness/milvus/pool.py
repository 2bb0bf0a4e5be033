"""Vectors, their release on a Milvus server, and queries."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from harness.clustered_vectors import ClusteredVectors
from harness.filters.grid import KS, TARGET_RECALL, write_vectors
from vecall import IndexSettings
from vecall.arrays import HalfVectors
from vecall.index.milvus.client import MilvusConnection, acquire_connection
from vecall.index.milvus.endpoint import resolve_endpoint
from vecall.index.milvus.settings import MilvusSettings

BUILD_STALL_MINUTES = 30.0
TIMEOUT_MS = 2_000  # of a search: a machine that is busy must not end a measurement
M, EF_CONSTRUCTION = 16, 200


class Server(Protocol):
    """The server process, see `support.milvus_server.MilvusServer`."""

    def start(self, wait: bool = True) -> None:
        """Start it again."""

    def kill(self) -> None:
        """End it without warning."""


@dataclass(frozen=True)
class MilvusPool:
    """Clustered vectors, and where their release is.

    Attributes:
        clusters: the vectors.
        directory: holds items.npy, tuning.npy and the store.
        server: the running server, which the environment names.
    """

    clusters: ClusteredVectors
    directory: Path
    server: Server

    @property
    def store(self) -> Path:
        """The store of the release, whose index is on the server."""
        return self.directory / "store"

    @cached_property
    def items(self) -> HalfVectors:
        """[N, D] vectors, mapped from a file that is written first where it is missing."""
        write_vectors(self.clusters, self.directory)
        items: HalfVectors = np.load(self.directory / "items.npy", mmap_mode="r")
        return items

    @cached_property
    def connection(self) -> MilvusConnection:
        """A connection to the server."""
        return acquire_connection(resolve_endpoint(self.milvus_settings))

    @property
    def milvus_settings(self) -> MilvusSettings:
        """Settings of the server; its address is in the environment."""
        return MilvusSettings(build_stall_minutes=BUILD_STALL_MINUTES, timeout_ms=TIMEOUT_MS)

    @property
    def index_settings(self) -> IndexSettings:
        """Settings that the release is published with."""
        settings: dict[str, Any] = {"M": M, "ef_construction": EF_CONSTRUCTION, "target_recall": TARGET_RECALL}
        return IndexSettings(engine="milvus", ks=KS, milvus=self.milvus_settings, **settings)
