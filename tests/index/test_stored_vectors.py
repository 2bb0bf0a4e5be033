"""Vectors mapped from `vectors.npy`: the same bits as faiss's flat storage, and refused if they are anything else."""

import numpy as np
import pytest
from support.vectors import random_vectors

from vecall.errors import DataError, InvalidReleaseError, StoreError
from vecall.index import scan
from vecall.index.bitmap import Bitmap
from vecall.index.exact import ExactIndex
from vecall.index.stored_vectors import StoredVectors, write_vectors


@pytest.fixture
def mapped(tmp_path):
    def write_and_map(vectors):
        write_vectors(vectors, tmp_path / "vectors.npy")
        return StoredVectors.open(tmp_path / "vectors.npy")

    return write_and_map


@pytest.mark.parametrize(("n", "dim"), [(1, 1), (700, 17), (3000, 9)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_mapped_vectors_equal_those_of_the_flat_storage(mapped, monkeypatch, n, dim, dtype):
    monkeypatch.setattr(scan, "_BLOCK_ELEMENTS", 1000)  # they are written in many blocks
    vectors, queries = random_vectors(n, dim).astype(dtype), random_vectors(5, dim, seed=1)
    stored, flat = mapped(vectors), ExactIndex.build(vectors).vectors
    assert (stored.size, stored.dim) == (n, dim)
    np.testing.assert_array_equal(stored.half_vectors.view(np.uint16), flat.half_vectors.view(np.uint16))
    rows = np.arange(n)[::-3]
    np.testing.assert_array_equal(stored.get_vectors(rows), flat.get_vectors(rows))
    np.testing.assert_array_equal(stored.score(queries[0], rows), flat.score(queries[0], rows))
    for allowed in (None, Bitmap.from_mask(np.random.default_rng(2).random(n) < 0.4)):
        for batch in (queries, queries[:1]):
            hits, expected = (vectors.search_exact(batch, 30, allowed=allowed) for vectors in (stored, flat))
            np.testing.assert_array_equal(hits.rows, expected.rows)
            np.testing.assert_array_equal(hits.scores, expected.scores)


def test_file_is_that_of_numpy(mapped, tmp_path):
    vectors = np.asfortranarray(random_vectors(50, 6))[::2]
    mapped(vectors)
    np.save(tmp_path / "expected.npy", np.ascontiguousarray(vectors, dtype=np.float16))
    assert (tmp_path / "vectors.npy").read_bytes() == (tmp_path / "expected.npy").read_bytes()


def test_stored_vectors_cannot_be_changed(mapped):
    stored = mapped(random_vectors(5, 3))
    with pytest.raises(ValueError, match="read-only"):
        stored.half_vectors[0] = 0


def test_vectors_that_cannot_be_stored_are_refused(tmp_path):
    for vectors in (np.empty((0, 4), np.float32), np.full((3, 4), np.nan, np.float32), np.ones((3, 4))):
        with pytest.raises(DataError, match="item vector"):
            write_vectors(vectors, tmp_path / "vectors.npy")
    with pytest.raises(StoreError, match=r"cannot be written: .*check that its directory exists"):
        write_vectors(random_vectors(3, 4), tmp_path / "none" / "vectors.npy")


ARRAYS = {
    "single precision": random_vectors(5, 4),
    "integers": np.ones((5, 4), np.int16),
    "one axis": np.ones(5, np.float16),
    "no rows": np.empty((0, 4), np.float16),
    "by column": np.asfortranarray(random_vectors(5, 4).astype(np.float16)),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_other_arrays_are_refused(tmp_path, kind):
    np.save(tmp_path / "vectors.npy", ARRAYS[kind])
    with pytest.raises(InvalidReleaseError, match=r"vectors\.npy holds .*; expected float16 \[N, D\]") as error_info:
        StoredVectors.open(tmp_path / "vectors.npy")
    assert error_info.value.file == "vectors.npy"


@pytest.mark.parametrize("content", [b"not an array", b"", None])
def test_missing_and_foreign_files_are_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "vectors.npy").write_bytes(content)
    with pytest.raises(InvalidReleaseError, match=r"vectors\.npy is not a readable array") as error_info:
        StoredVectors.open(tmp_path / "vectors.npy")
    assert error_info.value.file == "vectors.npy"
