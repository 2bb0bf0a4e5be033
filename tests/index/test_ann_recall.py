import numpy as np
import pytest

from vecall.index.ann_recall import recall_per_query, tail_recall_per_query
from vecall.index.exact import ExactIndex
from vecall.index.settings import IndexSettings
from vecall.pipeline.publish_vectors import publish_vectors

# Scores 9, 7, 7, 7, 5, 1 for the query [1, 0].
INDEX = ExactIndex.build(np.array([[9, 0], [7, 1], [7, 2], [7, 3], [5, 0], [1, 0]], dtype=np.float32))
QUERY = np.array([[1, 0]], dtype=np.float32)


def share(found, exact, tail=None):
    rows = np.array([found]), np.array([exact])
    if tail is None:
        return recall_per_query(INDEX, QUERY, *rows)[0]
    return tail_recall_per_query(INDEX, QUERY, *rows, tail)[0]


@pytest.mark.parametrize(
    ("found", "exact", "expected"),
    [
        ([0, 1, 4], [0, 1, 2], 2 / 3),
        ([0, 3, 2], [0, 1, 2], 1.0),  # which of equal rows is found makes no difference
        ([3, 3, 3], [0, 1, 2], 1 / 3),  # one that stands twice counts once
        ([-1, -1, 0], [0, 1, 2], 1 / 3),
        ([-1, -1, -1], [0, 1, 2], 0.0),
        ([0, 1, 2, 3, 4, 5], [0, 1, 2], 1.0),  # more than wanted: not above 1
        ([4, 5, 0, -1], [0, 1, 2, 3, 4, 5, -1, -1], 0.5),  # of an answer that is shorter than k
    ],
)
def test_shares_by_hand(found, exact, expected):
    assert share(found, exact) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("found", "tail", "expected"),
    [
        ([0, 1, 2, 3, 4, 5], 2, 1.0),
        ([0, 1, 2, 3, 4, -1], 2, 0.5),
        ([0, 1, 2, 3, -1, -1], 2, 0.0),
        ([4, 5, -1, -1, -1, -1], 2, 1.0),  # what is nearer is not asked for
        ([0, 4, 5, 1, -1, -1], 3, 2 / 3),
    ],
)
def test_shares_of_the_last_rows_by_hand(found, tail, expected):
    assert share(found, [0, 1, 2, 3, 4, 5], tail) == pytest.approx(expected)


def test_many_equal_vectors_neither_mislead_nor_delay_the_tuner(tmp_path):
    """A graph falls apart among them, and would be tuned until it looks at everything; cells are found right."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((6000, 32)).astype(np.float32)
    vectors[rng.permutation(6000)[:2500]] = rng.standard_normal(32)
    queries = rng.standard_normal((200, 32)).astype(np.float32)
    publish_vectors(tmp_path, np.arange(6000), vectors, queries=queries, index=IndexSettings(ks=[100]))
    from vecall.release.store import Store

    manifest = Store.open(tmp_path).verify()
    assert manifest.index.engine == "cells"
    assert manifest.ann["recall"] > 0.97
    tried = [point["width"] for point in manifest.ann["frontier"]]
    assert max(tried) < 6000
