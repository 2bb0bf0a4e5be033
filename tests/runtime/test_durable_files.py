import pytest

from vecall.runtime.durable_files import atomic_write, replace_atomically


def test_failed_atomic_write_keeps_old_content_and_no_temporary_file(tmp_path, monkeypatch):
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


def test_interrupted_replacement_keeps_the_old_file(tmp_path):
    path = tmp_path / "weights"
    with replace_atomically(path) as temporary:
        temporary.write_bytes(b"old")
    (tmp_path / "weights.tmp").write_bytes(b"left over by a killed process")

    def fail_to_write():
        with replace_atomically(path) as temporary:
            temporary.write_bytes(b"half")
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        fail_to_write()
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("weights", b"old")]
