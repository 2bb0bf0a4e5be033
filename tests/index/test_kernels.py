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
from vecall.index.kernels import bitmap_to_rows, compute_inner_products, select_top_k, select_top_k_superset

DIMS = [*range(1, 70), 127, 128, 129, 256, 300, 768]


def some(n, dim, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, dim)).astype(np.float16), rng.standard_normal(dim, dtype=np.float32)


def test_every_half_precision_number_is_widened_to_the_bit():
    """All finite ones, the subnormal ones too; the sign of a zero says nothing."""
    codes = np.arange(2**16, dtype=np.uint16).view(np.float16)
    codes = codes[np.isfinite(codes)][:, None]
    one = np.ones(1, dtype=np.float32)
    expected = codes[:, 0].astype(np.float32)
    assert np.count_nonzero(expected) == len(codes) - 2
    np.testing.assert_array_equal(compute_inner_products(codes, one), expected)
    np.testing.assert_array_equal(compute_inner_products(codes, one, np.arange(len(codes))), expected)
    # Eight at a time in registers, as longer rows are.
    for axis in (0, 5, 30):
        rows = np.zeros((len(codes), 32), dtype=np.float16)
        rows[:, axis] = codes[:, 0]
        np.testing.assert_array_equal(compute_inner_products(rows, np.eye(32, dtype=np.float32)[axis]), expected)


@pytest.mark.parametrize("dim", DIMS)
def test_a_row_has_one_score_wherever_it_stands(dim):
    codes, query = some(53, dim)
    alone = np.array([compute_inner_products(codes[row : row + 1], query)[0] for row in range(53)])
    order = np.random.default_rng(1).permutation(53)
    np.testing.assert_array_equal(compute_inner_products(codes, query), alone)
    np.testing.assert_array_equal(compute_inner_products(codes, query, order), alone[order])
    np.testing.assert_array_equal(compute_inner_products(codes[order], query), alone[order])
    np.testing.assert_array_equal(compute_inner_products(codes, query, np.repeat(7, 40)), np.repeat(alone[7], 40))
    exact = codes.astype(np.float64) @ query.astype(np.float64)
    bound = dim * 2.0**-23 * (np.abs(codes.astype(np.float64)) @ np.abs(query.astype(np.float64)))
    assert (np.abs(alone - exact) <= bound).all()


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 200])
def test_any_number_of_rows(count):
    """The memory is asked for rows ahead, and never for one that is not there."""
    codes, query = some(40, 100)
    rows = np.random.default_rng(2).integers(40, size=count)
    np.testing.assert_array_equal(
        compute_inner_products(codes, query, rows), compute_inner_products(codes, query)[rows]
    )


def test_whatever_arrays_are_like_nothing_is_compiled_anew(tmp_path):
    """A request would wait for it."""
    kernels.compile_kernels()
    compiled = [kernels._score_all, kernels._score_rows, kernels._list_rows, kernels._collect_top_k_superset]
    compiled += [kernels._pack_sort_keys, kernels._unpack_sort_keys]
    before = [len(one.signatures) for one in compiled]
    codes, query = some(30, 6)
    codes.tofile(tmp_path / "codes")
    mapped = np.memmap(tmp_path / "codes", np.float16, "r", shape=codes.shape)
    bits = np.frombuffer(b"\xff\x0f\xf0\x00", dtype=np.uint8)  # read-only
    for array in (codes, mapped):
        for asked in (query, np.repeat(query, 2)[::2], np.frombuffer(query.tobytes(), dtype=np.float32)):
            for rows in (None, np.arange(30), bitmap_to_rows(Bitmap(bits, 32, 16))):
                scores = compute_inner_products(array, asked, rows)
                scores.flags.writeable = False
                select_top_k_superset(scores, 2)
                select_top_k(scores, rows, 2)
    assert [len(one.signatures) for one in compiled] == before
    assert isinstance(mapped.base, mmap.mmap)
    assert codes.flags.writeable
    assert query.flags.writeable


numbers = st.sampled_from([-2.5, -0.0, 0.0, 1e-45, 1.0, 1.0000001, 3e38, -3e38]) | st.floats(
    allow_nan=False, allow_infinity=False, width=32
)


@settings(max_examples=300)
@given(hnp.arrays(np.float32, st.integers(0, 60), elements=numbers), st.integers(1, 70))
def test_the_k_best_and_their_ties_are_near_the_best(scores, k):
    before = scores.copy()
    places = select_top_k_superset(scores, k)
    assert places.tolist() == sorted(set(places.tolist()))
    if len(scores) <= k:
        assert len(places) == len(scores)
    else:
        kth = np.sort(scores)[::-1][k - 1]
        assert set(np.flatnonzero(scores >= kth).tolist()) <= set(places.tolist())
        # What is taken too lies in one step of the scale with the k-th.
        step = (float(scores.max()) - float(scores.min())) / 2047
        assert (scores[places].astype(np.float64) >= float(kth) - step * (1 + 1e-6)).all()
    np.testing.assert_array_equal(scores, before)


@settings(max_examples=300)
@given(hnp.arrays(np.float32, st.integers(0, 60), elements=numbers), st.integers(1, 70), st.booleans(), st.data())
def test_the_best_stand_in_the_one_order(scores, k, all_rows, data):
    rows = data.draw(st.permutations([*range(len(scores) - 1), 2**32 - 1][: len(scores)]))
    places = np.arange(len(scores)) if all_rows else np.array(rows, dtype=np.int64)
    best, best_scores = select_top_k(scores, None if all_rows else places, k)
    by_sorting = sorted(zip((-scores).tolist(), places.tolist(), strict=True))[:k]
    assert best.tolist() == [row for _, row in by_sorting]
    assert best_scores.tolist() == [-score for score, _ in by_sorting]


@pytest.mark.parametrize("k", [1, 100, 5000, 9999])
def test_few_others_are_near_the_best(k):
    scores = np.random.default_rng(0).standard_normal(10_000, dtype=np.float32)
    assert k <= len(select_top_k_superset(scores, k)) <= k + 60


@pytest.mark.parametrize("value", [0.0, -7.25, 3e38])
def test_equal_scores_are_all_near_the_best(value):
    assert select_top_k_superset(np.full(1000, value, dtype=np.float32), 3).tolist() == list(range(1000))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
@pytest.mark.parametrize("size", [1, 8, 777])
def test_rows_of_a_bitmap(size, share):
    marked = np.random.default_rng(0).random(size) < share
    rows = bitmap_to_rows(Bitmap.from_mask(marked))
    assert rows.dtype == np.int64
    assert rows.tolist() == np.flatnonzero(marked).tolist()


def test_where_no_cache_may_be_written_it_compiles_all_the_same(monkeypatch):
    njit, asked = numba.njit, []

    def refusing(**options):
        asked.append(options.pop("cache", False))
        if asked[-1]:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(**options)

    monkeypatch.setattr(numba, "njit", refusing)
    double = kernels._jit(lambda number: 2 * number)
    assert (double(21), asked) == (42, [True, False])


def test_a_package_that_cannot_be_written_to_can_be_used(tmp_path):
    """As installed by somebody else, for a user without a home."""
    shutil.copytree(Path(vecall.__file__).parent, tmp_path / "vecall", ignore=lambda *_: {"__pycache__"})
    (tmp_path / "vecall" / "index" / "__pycache__").write_text("a file, so that no folder can be made here")
    code = (
        "import numpy as np; from vecall.index import kernels; print(kernels.__file__, "
        "kernels.scores_of(np.ones((1, 3), np.float16), np.ones(3, np.float32)), kernels._score_all.stats.cache_path)"
    )
    nowhere = str(tmp_path / "vecall" / "py.typed")
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "HOME": nowhere, "XDG_CACHE_HOME": nowhere}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == [str(tmp_path / "vecall" / "index" / "kernels.py"), "[3.]", "None"], done.stderr


def test_no_score_makes_a_kernel_read_or_write_outside_its_arrays():
    """Whatever comes in: numbers that are not finite, all equal, or as far apart as float32 goes."""
    for scores in ([np.nan, 1, 2], [np.inf, -np.inf, 0], [np.inf] * 3, [3e38, -3e38, 0], [np.nan] * 3, [0.0] * 3):
        places = kernels.select_top_k_superset(np.array(scores, dtype=np.float32), 2)
        assert set(places.tolist()) <= {0, 1, 2}


@pytest.mark.skipif("NUMBA_BOUNDSCHECK" in os.environ, reason="runs itself")
def test_all_of_this_file_with_every_index_checked(tmp_path):
    """Compiled without it, an index outside an array is no error: memory is read or written."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not cannot_be_written", __file__],
        env=os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
