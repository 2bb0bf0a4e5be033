import numpy as np
import polars as pl
import pytest

from vecall.data.ragged import RaggedArray
from vecall.errors import InvalidReleaseError
from vecall.index.base import SearchParams
from vecall.index.exact import ExactIndex
from vecall.release.golden import GOLDEN_TOP_K, GoldenQueries, UserTowerInputs


class MeanEncoder:
    """Encodes a user as the mean of the history's vectors, times `factor`."""

    dim, history_length = 8, 3

    def __init__(self, factor=1.0):
        self.factor = factor

    def select_history(self, histories):
        return histories.truncate_to_last(3)

    def encode_users(self, features, histories, lengths):
        is_item = np.arange(histories.shape[1]) < lengths[:, None]
        return (self.factor * (histories * is_item[..., None]).sum(1) / lengths[:, None]).astype(np.float32)


class HalfRecallIndex:
    """Index that finds only the first half of the exact rows unless the search width is at least k."""

    def __init__(self, index):
        self.index = index

    def __getattr__(self, name):
        return getattr(self.index, name)

    def search(self, queries, k, *, search_params=None, allowed=None):
        hits = self.index.search(queries, k)
        if search_params is None or search_params.width < k:
            hits.rows[:, k // 2 :] = -1
        return hits


def make_unit_vectors(seed, n=150, dim=8):
    vectors = np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


INDEX = ExactIndex.build(make_unit_vectors(0))
INPUTS = UserTowerInputs(RaggedArray.from_lists([[1, 2, 3, 4, 5], [7], [9, 8]]), pl.DataFrame(height=3))


@pytest.fixture
def golden():
    return GoldenQueries.record(INDEX.vectors, INPUTS.encode(MeanEncoder(), INDEX.vectors.get_vectors), INPUTS)


def check(golden, index=INDEX, encoder=None, min_recall=0.99, search_params=None):
    golden.check_user_vectors(index.vectors, encoder or MeanEncoder())
    golden.check_ann_recall(index, search_params, min_recall)


def test_inputs_are_encoded_from_stored_vectors_of_newest_items():
    vectors = INPUTS.encode(MeanEncoder(), INDEX.vectors.get_vectors)
    stored = INDEX.vectors.get_vectors(np.arange(INDEX.vectors.size))
    expected = [stored[rows].mean(0) for rows in ([3, 4, 5], [7], [9, 8])]
    np.testing.assert_allclose(vectors, expected, atol=1e-6)


def test_few_users_at_a_time_are_encoded_like_all_at_once(monkeypatch):
    expected = INPUTS.encode(MeanEncoder(), INDEX.vectors.get_vectors)
    gathered = []

    def gather(rows):
        gathered.append(len(rows))
        return INDEX.vectors.get_vectors(rows)

    for max_users in (1, 2, 3):
        monkeypatch.setattr("vecall.release.golden._MAX_GATHERED_NUMBERS", max_users * 3 * 8)
        np.testing.assert_allclose(INPUTS.encode(MeanEncoder(), gather), expected, atol=1e-6)
    assert gathered == [3, 1, 2, 6, 2, 9]
    monkeypatch.setattr("vecall.release.golden._MAX_GATHERED_NUMBERS", 1)
    assert INPUTS.encode(MeanEncoder(), gather).shape == (3, 8)
    nobody = UserTowerInputs(RaggedArray.from_lists([]), pl.DataFrame(height=0))
    assert nobody.encode(MeanEncoder(), gather).shape == (0, 8)


def test_recorded_queries_round_trip_and_pass_their_check(golden, tmp_path):
    assert GoldenQueries.load(tmp_path) is None
    check(golden)
    assert golden.exact_rows.shape == (3, GOLDEN_TOP_K)
    golden.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "golden.vectors.npy",
        "golden.exact_rows.npy",
        "golden.history_offsets.npy",
        "golden.history_rows.npy",
        "golden.features.arrow",
    }
    loaded = GoldenQueries.load(tmp_path)
    np.testing.assert_array_equal(loaded.vectors, golden.vectors)
    np.testing.assert_array_equal(loaded.exact_rows, INDEX.vectors.search_exact(golden.vectors, GOLDEN_TOP_K).rows)
    check(loaded)
    assert loaded.measure_ann_recall(INDEX, None) == 1


def test_check_fails_for_another_encoder(golden):
    check(golden, encoder=MeanEncoder(1.0001))  # as much as rounding on another CPU
    for factor in (1.01, float("nan")):
        with pytest.raises(InvalidReleaseError, match="user vectors differ") as caught:
            check(golden, encoder=MeanEncoder(factor))
        assert caught.value.file == "golden.vectors.npy"


def test_allowed_difference_is_relative_to_the_length_of_the_vectors():
    for scale in (100.0, 0.01):
        golden = GoldenQueries.record(
            INDEX.vectors, INPUTS.encode(MeanEncoder(scale), INDEX.vectors.get_vectors), INPUTS
        )
        check(golden, encoder=MeanEncoder(scale * 1.0001))
        with pytest.raises(InvalidReleaseError, match="user vectors differ"):
            check(golden, encoder=MeanEncoder(scale * 1.01))


def test_check_fails_for_other_item_vectors(golden):
    with pytest.raises(InvalidReleaseError, match="user vectors differ"):
        check(golden, ExactIndex.build(make_unit_vectors(1)))
    without_inputs = GoldenQueries.record(
        INDEX.vectors, golden.vectors, None
    )  # without towers only the search is checked
    with pytest.raises(InvalidReleaseError, match=r"ANN recall is 0\.\d+, below the floor 0\.99"):
        check(without_inputs, ExactIndex.build(make_unit_vectors(1)))


def test_check_fails_for_recall_below_floor(golden):
    check(golden, HalfRecallIndex(INDEX), search_params=SearchParams(100))
    with pytest.raises(InvalidReleaseError, match=r"ANN recall is 0\.5000, below the floor 0\.9900") as caught:
        check(golden, HalfRecallIndex(INDEX), search_params=SearchParams(99))
    assert caught.value.file == "golden.exact_rows.npy"
    check(golden, HalfRecallIndex(INDEX), min_recall=0.5)


def test_fewer_items_than_golden_k_are_all_recorded():
    small = ExactIndex.build(make_unit_vectors(0, n=5))
    golden = GoldenQueries.record(small.vectors, make_unit_vectors(1, n=2), None)
    assert golden.exact_rows.shape == (2, 5)
    check(golden, small)
