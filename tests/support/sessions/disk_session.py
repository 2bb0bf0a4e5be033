"""A session for `fault_injection.disk`: writes as a release makes them, synced and unsynced, to test the simulation."""

import os
import shutil
from pathlib import Path

import faiss
import numpy as np
import polars as pl

from vecall.release.file_io import write_array, write_table
from vecall.runtime.durable_files import atomic_write, fsync_path, write_and_fsync


def prepare(directory: Path) -> None:
    (directory / "replaced").write_bytes(b"before")


def run_session(directory: Path, emit) -> None:
    write_and_fsync(directory / "synced", b"content" * 1000)
    fsync_path(directory)
    emit("synced is durable")
    atomic_write(directory / "replaced", b"after")
    emit("replaced is durable")

    draft = directory / "draft"
    draft.mkdir()
    write_array(draft / "array.npy", np.arange(1000))
    write_table(draft / "table.arrow", pl.DataFrame({"a": range(1000)}))
    index = faiss.IndexFlatIP(4)
    index.add(np.ones((100, 4), dtype=np.float32))
    faiss.write_index(index, str(draft / "index.faiss"))
    for path in draft.iterdir():
        fsync_path(path)
    fsync_path(draft)
    draft.rename(directory / "release")
    fsync_path(directory)
    emit("release is durable")

    (directory / "unsynced").write_bytes(b"content")
    fsync_path(directory)
    with (directory / "grown").open("wb") as file:
        file.write(b"first")
        file.flush()
        os.fsync(file.fileno())
        fsync_path(directory)
        file.write(b" then")
        file.truncate(7)
    write_and_fsync(directory / "unnamed", b"content")
    shutil.copytree(directory / "release", directory / "copy", copy_function=_copy_file)
    shutil.rmtree(directory / "copy")
    (directory / "release").rename(directory / "renamed")


def _copy_file(source: str, target: str) -> None:
    Path(target).write_bytes(Path(source).read_bytes())
