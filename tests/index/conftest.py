"""Fixtures that several test files of the index share."""

import numpy as np
import pytest
from support.milvus_index import MilvusIndexBuilder
from support.vectors import random_vectors

from vecall import progress

# Of the random vectors of the contract suite. Collections of vectors that are not listed here are built when needed.
CONTRACT_SHAPES = [
    *((1, 1), (1, 128), (2, 3), (15, 2), (17, 5), (40, 1), (300, 128), (700, 17), (1, 3), (17, 1), (300, 17)),
    *((1200, 9), (30, 4), (1000, 8), (20, 3), (1, 9), (2500, 9), (600, 7), (3000, 16), (300, 5), (50, 4)),
]


@pytest.fixture(scope="session")
def clustered():
    """5,000 unit vectors of 32 dimensions around 100 centres, and 200 queries from the same distribution."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((100, 32))
    points = centres[rng.integers(100, size=5200)] + 0.5 * rng.standard_normal((5200, 32))
    points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    return points[:5000], points[5000:]


@pytest.fixture
def progress_events():
    """Progress reported during the test: (task, total) at the start, the steps of each advance, "end", lines."""
    events = []

    class RecordingListener:
        def start_task(self, task, total):
            events.append((task, total))
            return lambda steps=1, note="": events.append(steps)

        def stop_task(self):
            events.append("end")

        def write_line(self, text):
            events.append(text)

    with progress.report_to(RecordingListener()):
        yield events


@pytest.fixture(scope="session")
def build_on_milvus_server(milvus_server, clustered):
    builder = MilvusIndexBuilder()
    tied = random_vectors(1500, 13)
    tied[500:1000] = tied[:500]
    equal = [np.full((1000, 8), value, dtype=np.float32) for value in (0, 1)]
    repeated = [np.tile(random_vectors(6, dim), (50, 1)) for dim in (7, 33)]
    random = [random_vectors(n, dim) for n, dim in CONTRACT_SHAPES]
    builder.prebuild([*random, tied, *equal, *repeated, clustered[0], clustered[0][:2000]])
    yield builder
    builder.drop_all()
