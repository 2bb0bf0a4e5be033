import hashlib

import numpy as np
import polars as pl
import pytest

from vecall.errors import InvalidReleaseError
from vecall.release.atomic_io import atomic_write, compute_sha256, read_array, read_table, write_array, write_table


def test_sha256_is_that_of_the_bytes(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(content)
    assert compute_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_a_file_is_replaced_whole_and_nothing_is_left_behind(tmp_path, monkeypatch):
    path = tmp_path / "CURRENT"
    atomic_write(path, b"old")
    atomic_write(path, b"new")
    assert path.read_bytes() == b"new"

    def crash(*_):
        raise OSError("no space")

    monkeypatch.setattr("os.fsync", crash)
    with pytest.raises(OSError, match="no space"):
        atomic_write(path, b"half")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["CURRENT"]


def test_tables_come_back_also_from_a_path_with_pattern_signs(tmp_path):
    (folder := tmp_path / "[1]*").mkdir()
    table = pl.DataFrame({"id": ["甲", None], "tags": [["a", "b"], []], "year": [1999, None]})
    write_table(folder / "t.arrow", table)
    assert read_table(folder / "t.arrow").equals(table)


@pytest.mark.parametrize("shape", [(3, 4), (0, 4)])
def test_arrays_are_mapped_read_only(tmp_path, shape):
    array = np.ones(shape, dtype=np.float16)
    write_array(tmp_path / "a.npy", array)
    again = read_array(tmp_path / "a.npy")
    np.testing.assert_array_equal(again, array)
    assert not again.flags.writeable


def test_pickles_are_neither_written_nor_read(tmp_path):
    objects = np.array([{}], dtype=object)
    with pytest.raises(ValueError, match="pickle"):
        write_array(tmp_path / "a.npy", objects)
    np.save(tmp_path / "b.npy", objects, allow_pickle=True)
    with pytest.raises(InvalidReleaseError, match=r"b\.npy"):
        read_array(tmp_path / "b.npy")


@pytest.mark.parametrize("read", [read_array, read_table])
@pytest.mark.parametrize("content", [None, b"", b"no such format" * 9])
def test_what_cannot_be_read_is_refused_by_name(tmp_path, read, content):
    if content is not None:
        (tmp_path / "f").write_bytes(content)
    with pytest.raises(InvalidReleaseError, match="cannot be read") as refused:
        read(tmp_path / "f")
    assert refused.value.file == "f"
