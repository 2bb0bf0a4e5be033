import numpy as np
import pytest

from vecall.index import exact
from vecall.index.bitmap import Bitmap
from vecall.index.exact import ExactIndex, rescore, round_to_half_precision, scan


def test_every_half_precision_number_is_widened_to_the_bit():
    codes = np.arange(2**16, dtype=np.uint16).view(np.float16)
    codes = codes[np.isfinite(codes)].reshape(-1, 64)
    numbers = exact.to_float32(codes)
    assert numbers.dtype == np.float32
    np.testing.assert_array_equal(numbers.view(np.uint32), codes.astype(np.float32).view(np.uint32))


def test_stored_numbers_are_rounded_half_to_even():
    """faiss's own rounding of these depends on the machine."""
    halfway = np.array([[1 + 2.0**-11, 1 + 3 * 2.0**-11]], dtype=np.float32)
    assert ExactIndex.build(halfway).get_vectors(np.array([0])).tolist() == [[1.0, 1 + 2.0**-9]]
    assert round_to_half_precision(halfway).tolist() == [[1.0, 1 + 2.0**-9]]


@pytest.mark.parametrize("seed", range(5))
def test_blocks_change_nothing(monkeypatch, seed):
    """Many blocks of rows and of queries, equal vectors in all of them, ascending scores (the worst case)."""
    rng = np.random.default_rng(seed)
    codes = np.sort(rng.standard_normal((400, 6)), axis=0).astype(np.float16)
    codes[rng.permutation(400)[:100]] = codes[0]
    queries = rng.standard_normal((23, 6), dtype=np.float32)
    allowed = Bitmap.from_mask(rng.random(400) < 0.7)
    whole = [scan(codes, queries, 15, kept) for kept in (None, allowed)]
    monkeypatch.setattr(exact, "_BLOCK", 150)
    monkeypatch.setattr(exact, "_QUERIES", 10)
    cut = [scan(codes, queries, 15, kept) for kept in (None, allowed)]
    for a, b in zip(whole, cut, strict=True):
        np.testing.assert_array_equal(a.rows, b.rows)
        np.testing.assert_array_equal(a.scores, b.scores)


def test_the_noise_of_a_matrix_product_decides_nothing(monkeypatch):
    """Planted: products as wrong as the bound allows, over scores that are closer than that."""
    rng = np.random.default_rng(3)
    codes = np.repeat(rng.standard_normal((20, 32)), 20, axis=0).astype(np.float16)
    codes[:, 0] = rng.standard_normal(400)
    codes = codes[rng.permutation(400)]
    query = rng.standard_normal(32, dtype=np.float32)
    query[0] = 1e-5
    before = scan(codes, query[None], 30)  # alone: no product decides
    query = np.tile(query, (2, 1))
    perhaps_best = exact._select_candidates

    def noisy(products, k, kth, doubt):
        assert doubt > 1e-5
        wrong = products + np.where(rng.random(len(products)) < 0.5, 0.9, -0.9) * doubt
        return perhaps_best(wrong.astype(np.float32), k, kth, doubt)

    monkeypatch.setattr(exact, "_perhaps_best", noisy)
    for block in (10**6, 100 * 32):  # at once, and in four blocks
        monkeypatch.setattr(exact, "_BLOCK", block)
        after = scan(codes, query, 30)
        for b in range(2):
            np.testing.assert_array_equal(after.rows[b], before.rows[0])
            np.testing.assert_array_equal(after.scores[b], before.scores[0])


@pytest.mark.parametrize("scale", [1e-45, 1e-38, 1e-20, 1.0, 1e29 / 8])
def test_a_batch_is_answered_as_one_by_one_at_any_scale(scale):
    """Products may fall below the smallest float32, or stand near the largest."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((2000, 20)).astype(np.float32)
    vectors[1000:] = vectors[:1000]
    index = ExactIndex.build(vectors * np.float32(65504 / 8 if scale > 1 else 1e-3))
    queries = (rng.standard_normal((30, 20)) * scale).astype(np.float32)
    hits = index.search(queries, 25)
    for b in range(30):
        alone = index.search(queries[b : b + 1], 25)
        np.testing.assert_array_equal(hits.rows[b], alone.rows[0])
        np.testing.assert_array_equal(hits.scores[b], alone.scores[0])


def test_rows_found_by_other_means_are_scored_and_put_in_order():
    codes = np.array([[1, 0], [0, 1], [2, 0], [2, 0]], dtype=np.float16)
    queries = np.array([[1, 0], [0, 3]], dtype=np.float32)
    hits = rescore(codes, queries, np.array([[3, 1, 2, -1], [-1, -1, 0, 1]]))
    assert hits.rows.tolist() == [[2, 3, 1, -1], [1, 0, -1, -1]]
    assert hits.scores.tolist() == [[2, 2, 0, -np.inf], [3, 0, -np.inf, -np.inf]]
