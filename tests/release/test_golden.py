import numpy as np
import polars as pl
import pytest

from vecall.data.ragged import RaggedArray
from vecall.errors import InvalidReleaseError
from vecall.index.base import SearchParams
from vecall.index.exact import ExactIndex
from vecall.release.golden import GOLDEN_TOP_K, GoldenQueries, UserTowerInputs


class MeanEncoder:
    """A user is the mean of its history."""

    dim, history_length = 8, 3

    def __init__(self, factor=1.0):
        self.factor = factor

    def encode_users(self, features, histories, lengths):
        counted = np.arange(histories.shape[1]) < lengths[:, None]
        return (self.factor * (histories * counted[..., None]).sum(1) / lengths[:, None]).astype(np.float32)


class Lazy:
    """An index that finds the first half of the right rows."""

    def __init__(self, index):
        self.index = index

    def __getattr__(self, name):
        return getattr(self.index, name)

    def search(self, queries, k, *, search_params=None, allowed=None):
        hits = self.index.search(queries, k)
        if search_params is None or search_params.width < k:
            hits.rows[:, k // 2 :] = -1
        return hits


def unit(seed, n=150, dim=8):
    vectors = np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


INDEX = ExactIndex.build(unit(0))
INPUTS = UserTowerInputs(RaggedArray.from_lists([[1, 2, 3, 4, 5], [7], [9, 8]]), pl.DataFrame(height=3))


@pytest.fixture
def golden():
    return GoldenQueries.record(INDEX, INPUTS.encode(MeanEncoder(), INDEX.get_vectors), INPUTS)


def check(golden, index=INDEX, encoder=None, floor=0.99, effort=None):
    golden.check(index, encoder or MeanEncoder(), effort=effort, floor=floor)


def test_inputs_are_read_as_the_index_serves_them():
    vectors = INPUTS.encode(MeanEncoder(), INDEX.get_vectors)
    stored = INDEX.get_vectors(np.arange(INDEX.size))
    expected = [stored[rows].mean(0) for rows in ([3, 4, 5], [7], [9, 8])]
    np.testing.assert_allclose(vectors, expected, atol=1e-6)


def test_what_was_recorded_passes_and_comes_back(golden, tmp_path):
    assert GoldenQueries.load(tmp_path) is None
    check(golden)
    assert golden.rows.shape == (3, GOLDEN_TOP_K)
    golden.save(tmp_path)
    again = GoldenQueries.load(tmp_path)
    np.testing.assert_array_equal(again.vectors, golden.vectors)
    np.testing.assert_array_equal(again.exact_rows, INDEX.search_exact(golden.vectors, GOLDEN_TOP_K).rows)
    check(again)
    assert again.measure_ann_recall(INDEX, None) == 1


def test_another_model_is_refused(golden):
    check(golden, encoder=MeanEncoder(1.0001))  # other processors round otherwise
    for factor in (1.01, float("nan")):
        with pytest.raises(InvalidReleaseError, match="user vectors differ") as refused:
            check(golden, encoder=MeanEncoder(factor))
        assert refused.value.file == "golden.vectors.npy"


def test_other_item_vectors_are_refused(golden):
    with pytest.raises(InvalidReleaseError, match="user vectors differ"):
        check(golden, ExactIndex.build(unit(1)))
    brought = GoldenQueries.record(INDEX, golden.vectors, None)  # without towers the answers tell
    with pytest.raises(InvalidReleaseError, match=r"ANN recall is 0\.\d+, below the floor 0\.99"):
        check(brought, ExactIndex.build(unit(1)))


def test_an_index_that_finds_less_is_refused(golden):
    check(golden, Lazy(INDEX), effort=SearchParams(100))
    with pytest.raises(InvalidReleaseError, match=r"ANN recall is 0\.5000, below the floor 0\.9900") as refused:
        check(golden, Lazy(INDEX), effort=SearchParams(99))
    assert refused.value.file == "golden.rows.npy"
    check(golden, Lazy(INDEX), floor=0.5)


def test_few_items_give_few_answers():
    small = ExactIndex.build(unit(0, n=5))
    golden = GoldenQueries.record(small, unit(1, n=2), None)
    assert golden.exact_rows.shape == (2, 5)
    check(golden, small)
