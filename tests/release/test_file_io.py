import hashlib

import numpy as np
import polars as pl
import pytest

from vecall.errors import InvalidReleaseError
from vecall.release.file_io import compute_sha256, map_array, read_table, write_array, write_array_blocks, write_table


def test_compute_sha256_hashes_content_beyond_one_chunk(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(content)
    assert compute_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_table_round_trips_through_path_with_glob_characters(tmp_path):
    (directory := tmp_path / "[1]*").mkdir()
    table = pl.DataFrame({"id": ["甲", None], "tags": [["a", "b"], []], "year": [1999, None]})
    write_table(directory / "t.arrow", table)
    assert read_table(directory / "t.arrow").equals(table)


@pytest.mark.parametrize("shape", [(3, 4), (0, 4)])
def test_array_round_trips_and_is_read_only(tmp_path, shape):
    array = np.ones(shape, dtype=np.float16)
    write_array(tmp_path / "a.npy", array)
    loaded = map_array(tmp_path / "a.npy")
    np.testing.assert_array_equal(loaded, array)
    assert not loaded.flags.writeable


def test_python_objects_are_neither_written_nor_read(tmp_path):
    objects = np.array([{}], dtype=object)
    with pytest.raises(ValueError, match="pickle"):
        write_array(tmp_path / "a.npy", objects)
    np.save(tmp_path / "b.npy", objects, allow_pickle=True)
    with pytest.raises(InvalidReleaseError, match=r"b\.npy"):
        map_array(tmp_path / "b.npy")


@pytest.mark.parametrize("read", [map_array, read_table])
@pytest.mark.parametrize("content", [None, b"", b"no such format" * 9])
def test_unreadable_file_raises_invalid_release_with_its_name(tmp_path, read, content):
    if content is not None:
        (tmp_path / "f").write_bytes(content)
    with pytest.raises(InvalidReleaseError, match="cannot be read") as caught:
        read(tmp_path / "f")
    assert caught.value.file == "f"


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64])
@pytest.mark.parametrize("sizes", [(), (0,), (3,), (2, 0, 5)])
def test_array_of_blocks_is_the_file_of_their_concatenation(tmp_path, dtype, sizes):
    blocks = [np.arange(3 * size, dtype=dtype).reshape(size, 3) + start for start, size in enumerate(sizes)]
    whole = np.concatenate([np.empty((0, 3), dtype=dtype), *blocks])
    write_array(tmp_path / "whole.npy", whole)
    # Blocks that are not contiguous are stored row by row too.
    write_array_blocks(tmp_path / "blocks.npy", whole.shape, whole.dtype, map(np.asfortranarray, blocks))
    assert (tmp_path / "blocks.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


def test_blocks_of_another_number_of_rows_raise(tmp_path):
    with pytest.raises(ValueError, match=r"a\.npy: blocks of 2 rows were written, expected 3"):
        write_array_blocks(tmp_path / "a.npy", (3, 4), np.dtype(np.float32), [np.ones((2, 4), dtype=np.float32)])
