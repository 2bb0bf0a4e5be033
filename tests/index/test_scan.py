import numpy as np
import pytest

from vecall.index import scan as scan_module
from vecall.index.bitmap import Bitmap
from vecall.index.exact import ExactIndex
from vecall.index.scan import rescore, round_to_half_precision, scan


def assert_same(hits, other_hits):
    np.testing.assert_array_equal(hits.rows, other_hits.rows)
    np.testing.assert_array_equal(hits.scores, other_hits.scores)


def test_every_finite_half_is_converted_bit_exactly():
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)].reshape(-1, 64)
    converted = scan_module.to_float32(halves)
    assert converted.dtype == np.float32
    np.testing.assert_array_equal(converted.view(np.uint32), halves.astype(np.float32).view(np.uint32))


def test_stored_values_are_rounded_half_to_even():
    """faiss rounds these values differently on different machines."""
    halfway = np.array([[1 + 2.0**-11, 1 + 3 * 2.0**-11]], dtype=np.float32)
    assert ExactIndex.build(halfway).vectors.get_vectors(np.array([0])).tolist() == [[1.0, 1 + 2.0**-9]]
    assert round_to_half_precision(halfway).tolist() == [[1.0, 1 + 2.0**-9]]


@pytest.mark.parametrize("seed", range(5))
def test_scan_in_blocks_gives_the_hits_of_one_block(monkeypatch, seed):
    """Many blocks of rows and of queries, equal vectors in all blocks, ascending scores (the worst case)."""
    rng = np.random.default_rng(seed)
    half_vectors = np.sort(rng.standard_normal((400, 6)), axis=0).astype(np.float16)
    half_vectors[rng.permutation(400)[:100]] = half_vectors[0]
    queries = rng.standard_normal((23, 6), dtype=np.float32)
    bitmap = Bitmap.from_mask(rng.random(400) < 0.7)
    in_one_block = [scan(half_vectors, queries, 15, allowed) for allowed in (None, bitmap)]
    monkeypatch.setattr(scan_module, "_BLOCK_ELEMENTS", 150)
    monkeypatch.setattr(scan_module, "_QUERY_BATCH_SIZE", 10)
    in_blocks = [scan(half_vectors, queries, 15, allowed) for allowed in (None, bitmap)]
    for hits, expected in zip(in_blocks, in_one_block, strict=True):
        assert_same(hits, expected)


def test_rounding_errors_of_the_matrix_product_do_not_change_the_hits(monkeypatch):
    """Plants products as wrong as the error bound allows, over scores that differ by less than the bound."""
    rng = np.random.default_rng(3)
    half_vectors = np.repeat(rng.standard_normal((20, 32)), 20, axis=0).astype(np.float16)
    half_vectors[:, 0] = rng.standard_normal(400)
    half_vectors = half_vectors[rng.permutation(400)]
    query = rng.standard_normal(32, dtype=np.float32)
    query[0] = 1e-5
    expected = scan(half_vectors, query[None], 30)  # a single query needs no matrix product
    queries = np.tile(query, (2, 1))
    select_candidates = scan_module._select_candidates

    def select_with_noise(products, k, kth_score, error_bound):
        assert error_bound > 1e-5
        noisy = products + np.where(rng.random(len(products)) < 0.5, 0.9, -0.9) * error_bound
        return select_candidates(noisy.astype(np.float32), k, kth_score, error_bound)

    monkeypatch.setattr(scan_module, "_select_candidates", select_with_noise)
    for block_elements in (10**6, 100 * 32):  # one block, four blocks
        monkeypatch.setattr(scan_module, "_BLOCK_ELEMENTS", block_elements)
        hits = scan(half_vectors, queries, 30)
        for b in range(2):
            np.testing.assert_array_equal(hits.rows[b], expected.rows[0])
            np.testing.assert_array_equal(hits.scores[b], expected.scores[0])


@pytest.mark.parametrize("scale", [1e-45, 1e-38, 1e-20, 1.0, 1e29 / 8])
def test_batch_gets_the_hits_of_single_queries_at_any_scale(scale):
    """Products may fall below the smallest float32 or come near the largest."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((2000, 20)).astype(np.float32)
    vectors[1000:] = vectors[:1000]
    index = ExactIndex.build(vectors * np.float32(65504 / 8 if scale > 1 else 1e-3))
    queries = (rng.standard_normal((30, 20)) * scale).astype(np.float32)
    batch = index.search(queries, 25)
    for b in range(30):
        single = index.search(queries[b : b + 1], 25)
        np.testing.assert_array_equal(batch.rows[b], single.rows[0])
        np.testing.assert_array_equal(batch.scores[b], single.scores[0])


def test_rescored_rows_have_exact_scores_and_are_sorted():
    half_vectors = np.array([[1, 0], [0, 1], [2, 0], [2, 0]], dtype=np.float16)
    queries = np.array([[1, 0], [0, 3]], dtype=np.float32)
    hits = rescore(half_vectors, queries, np.array([[3, 1, 2, -1], [-1, -1, 0, 1]]))
    assert hits.rows.tolist() == [[2, 3, 1, -1], [1, 0, -1, -1]]
    assert hits.scores.tolist() == [[2, 2, 0, -np.inf], [3, 0, -np.inf, -np.inf]]
