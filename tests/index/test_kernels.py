import mmap
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import vecall
from vecall.index import kernels
from vecall.index.bitmap import Bitmap
from vecall.index.kernels import (
    bitmap_to_rows,
    compute_inner_products,
    gather_vectors,
    select_top_k,
    select_top_k_superset,
)

DIMS = [*range(1, 70), 127, 128, 129, 256, 300, 768]


def make_vectors_and_query(n, dim):
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, dim)).astype(np.float16), rng.standard_normal(dim, dtype=np.float32)


def test_every_finite_half_is_converted_bit_exactly():
    """Subnormal numbers too; the sign of a zero is ignored."""
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)][:, None]
    query = np.ones(1, dtype=np.float32)
    expected = halves[:, 0].astype(np.float32)
    assert np.count_nonzero(expected) == len(halves) - 2
    np.testing.assert_array_equal(compute_inner_products(halves, query), expected)
    np.testing.assert_array_equal(compute_inner_products(halves, query, np.arange(len(halves))), expected)
    # Longer rows are converted eight values at a time in registers.
    for axis in (0, 5, 30):
        vectors = np.zeros((len(halves), 32), dtype=np.float16)
        vectors[:, axis] = halves[:, 0]
        np.testing.assert_array_equal(compute_inner_products(vectors, np.eye(32, dtype=np.float32)[axis]), expected)


@pytest.mark.parametrize("dim", DIMS)
def test_score_of_a_row_does_not_depend_on_its_position(dim):
    vectors, query = make_vectors_and_query(53, dim)
    expected = np.array([compute_inner_products(vectors[row : row + 1], query)[0] for row in range(53)])
    order = np.random.default_rng(1).permutation(53)
    np.testing.assert_array_equal(compute_inner_products(vectors, query), expected)
    np.testing.assert_array_equal(compute_inner_products(vectors, query, order), expected[order])
    np.testing.assert_array_equal(compute_inner_products(vectors[order], query), expected[order])
    np.testing.assert_array_equal(compute_inner_products(vectors, query, np.repeat(7, 40)), np.repeat(expected[7], 40))
    exact = vectors.astype(np.float64) @ query.astype(np.float64)
    bound = dim * 2.0**-23 * (np.abs(vectors.astype(np.float64)) @ np.abs(query.astype(np.float64)))
    assert (np.abs(expected - exact) <= bound).all()


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 200])
def test_any_number_of_rows_is_scored(count):
    """Rows are prefetched 16 ahead, but never beyond the last."""
    vectors, query = make_vectors_and_query(40, 100)
    rows = np.random.default_rng(2).integers(40, size=count)
    expected = compute_inner_products(vectors, query)[rows]
    np.testing.assert_array_equal(compute_inner_products(vectors, query, rows), expected)


def test_no_kind_of_array_triggers_another_compilation(tmp_path):
    """A request would wait for the compiler."""
    kernels.compile_kernels()
    compiled = [kernels._score_all, kernels._score_rows, kernels._list_rows, kernels._collect_top_k_superset]
    compiled += [kernels._collect_sort_keys, kernels._unpack_sort_keys]
    before = [len(kernel.signatures) for kernel in compiled]
    vectors, query = make_vectors_and_query(30, 6)
    vectors.tofile(tmp_path / "vectors")
    mapped = np.memmap(tmp_path / "vectors", np.float16, "r", shape=vectors.shape)
    read_only_bits = np.frombuffer(b"\xff\x0f\xf0\x00", dtype=np.uint8)
    strided_query, read_only_query = np.repeat(query, 2)[::2], np.frombuffer(query.tobytes(), dtype=np.float32)
    for any_vectors in (vectors, mapped):
        for any_query in (query, strided_query, read_only_query):
            for rows in (None, np.arange(30), bitmap_to_rows(Bitmap(read_only_bits, 32, 16))):
                scores = compute_inner_products(any_vectors, any_query, rows)
                scores.flags.writeable = False
                select_top_k_superset(scores, 2)
                select_top_k(scores, rows, 2)
    assert [len(kernel.signatures) for kernel in compiled] == before
    assert isinstance(mapped.base, mmap.mmap)
    assert vectors.flags.writeable
    assert query.flags.writeable


numbers = st.sampled_from([-2.5, -0.0, 0.0, 1e-45, 1.0, 1.0000001, 3e38, -3e38]) | st.floats(
    allow_nan=False, allow_infinity=False, width=32
)


@settings(max_examples=300)
@given(hnp.arrays(np.float32, st.integers(0, 60), elements=numbers), st.integers(1, 70))
def test_superset_holds_the_k_best_their_ties_and_few_others(scores, k):
    before = scores.copy()
    positions = select_top_k_superset(scores, k)
    assert positions.tolist() == sorted(set(positions.tolist()))
    if len(scores) <= k:
        assert len(positions) == len(scores)
    else:
        kth_score = np.sort(scores)[::-1][k - 1]
        assert set(np.flatnonzero(scores >= kth_score).tolist()) <= set(positions.tolist())
        # All others are in the histogram bin of the k-th score.
        bin_width = (float(scores.max()) - float(scores.min())) / 2047
        assert (scores[positions].astype(np.float64) >= float(kth_score) - bin_width * (1 + 1e-6)).all()
    np.testing.assert_array_equal(scores, before)


@settings(max_examples=300)
@given(hnp.arrays(np.float32, st.integers(0, 60), elements=numbers), st.integers(1, 70), st.booleans(), st.data())
def test_top_k_is_sorted_by_descending_score_then_ascending_row(scores, k, is_all_rows, data):
    drawn = data.draw(st.permutations([*range(len(scores) - 1), 2**32 - 1][: len(scores)]))
    rows = np.arange(len(scores)) if is_all_rows else np.array(drawn, dtype=np.int64)
    best_rows, best_scores = select_top_k(scores, None if is_all_rows else rows, k)
    expected = sorted(zip((-scores).tolist(), rows.tolist(), strict=True))[:k]
    assert best_rows.tolist() == [row for _, row in expected]
    assert best_scores.tolist() == [-score for score, _ in expected]


@pytest.mark.parametrize("k", [1, 100, 5000, 9999])
def test_superset_of_random_scores_is_small(k):
    scores = np.random.default_rng(0).standard_normal(10_000, dtype=np.float32)
    assert k <= len(select_top_k_superset(scores, k)) <= k + 60


@pytest.mark.parametrize("value", [0.0, -7.25, 3e38])
def test_superset_of_equal_scores_is_all_of_them(value):
    assert select_top_k_superset(np.full(1000, value, dtype=np.float32), 3).tolist() == list(range(1000))


@pytest.mark.parametrize("selectivity", [0.0, 0.01, 0.5, 1.0])
@pytest.mark.parametrize("size", [1, 8, 777])
def test_rows_of_a_bitmap_are_listed_in_ascending_order(size, selectivity):
    mask = np.random.default_rng(0).random(size) < selectivity
    rows = bitmap_to_rows(Bitmap.from_mask(mask))
    assert rows.dtype == np.int64
    assert rows.tolist() == np.flatnonzero(mask).tolist()


def test_kernel_is_compiled_without_a_cache_if_none_can_be_written(monkeypatch):
    njit, is_cached = numba.njit, []

    def njit_without_cache(**options):
        is_cached.append(options.pop("cache", False))
        if is_cached[-1]:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(**options)

    monkeypatch.setattr(numba, "njit", njit_without_cache)
    double = kernels._jit(lambda number: 2 * number)
    assert (double(21), is_cached) == (42, [True, False])


def test_package_works_in_a_read_only_directory(tmp_path):
    """Installed by another user, and imported by a user without a home directory."""
    shutil.copytree(Path(vecall.__file__).parent, tmp_path / "vecall", ignore=lambda *_: {"__pycache__"})
    (tmp_path / "vecall" / "index" / "__pycache__").write_text("a file, so that no directory can be created here")
    code = (
        "import numpy as np; from vecall.index import kernels; print(kernels.__file__, "
        "kernels.compute_inner_products(np.ones((1, 3), np.float16), np.ones(3, np.float32)), "
        "kernels._score_all.stats.cache_path)"
    )
    not_a_directory = str(tmp_path / "vecall" / "py.typed")
    environment = os.environ | {
        "PYTHONPATH": str(tmp_path), "HOME": not_a_directory, "XDG_CACHE_HOME": not_a_directory,
    }  # fmt: skip
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    expected = [str(tmp_path / "vecall" / "index" / "kernels.py"), "[3.]", "None"]
    assert process.stdout.split() == expected, process.stderr


def test_scores_that_are_not_finite_do_not_index_outside_the_arrays():
    """NaN, infinities, equal scores, and scores as far apart as float32 allows."""
    for scores in ([np.nan, 1, 2], [np.inf, -np.inf, 0], [np.inf] * 3, [3e38, -3e38, 0], [np.nan] * 3, [0.0] * 3):
        positions = select_top_k_superset(np.array(scores, dtype=np.float32), 2)
        assert set(positions.tolist()) <= {0, 1, 2}


@pytest.mark.slow
@pytest.mark.skipif("NUMBA_BOUNDSCHECK" in os.environ, reason="this is the inner run")
def test_this_file_passes_with_bounds_checks(tmp_path):
    """Without them, a kernel that indexes outside an array silently reads or writes other memory."""
    process = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not read_only_directory", __file__],
        env=os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr


@pytest.mark.parametrize("k", [1, 50, 500, 3000])
def test_best_of_scores_with_a_heavy_tail_and_many_ties_are_sorted(k):
    """Nearly all are in the lowest bin of a linear histogram."""
    rng = np.random.default_rng(0)
    scores, rows = rng.zipf(1.5, 4000).astype(np.float32), rng.permutation(4000)
    best_rows, best_scores = select_top_k(scores, rows, k)
    expected = np.lexsort((rows, -scores))[:k]
    np.testing.assert_array_equal(best_rows, rows[expected])
    np.testing.assert_array_equal(best_scores, scores[expected])


def test_gathered_vectors_are_the_stored_ones():
    vectors = make_vectors_and_query(40, 19)[0]
    rows = np.random.default_rng(2).integers(40, size=100)
    np.testing.assert_array_equal(gather_vectors(vectors, rows), vectors[rows].astype(np.float32))
