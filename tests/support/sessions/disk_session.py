"""Writers as a release has them, for `disk_faults` to show that it sees them all; some careful, some not."""

import os
import shutil
from pathlib import Path

import faiss
import numpy as np
import polars as pl

from vecall.release.atomic_io import atomic_write, fsync_path, write_array, write_and_fsync, write_table


def prepare(folder: Path) -> None:
    (folder / "there").write_bytes(b"before")


def session(folder: Path, say) -> None:
    write_and_fsync(folder / "whole", b"content" * 1000)
    fsync_path(folder)
    say("whole is kept")
    atomic_write(folder / "there", b"after")
    say("there is kept")

    draft = folder / "draft"
    draft.mkdir()
    write_array(draft / "array.npy", np.arange(1000))
    write_table(draft / "table.arrow", pl.DataFrame({"a": range(1000)}))
    index = faiss.IndexFlatIP(4)
    index.add(np.ones((100, 4), dtype=np.float32))
    faiss.write_index(index, str(draft / "index.faiss"))
    for path in draft.iterdir():
        fsync_path(path)
    fsync_path(draft)
    draft.rename(folder / "release")
    fsync_path(folder)
    say("release is kept")

    (folder / "unsynced").write_bytes(b"content")
    fsync_path(folder)
    with (folder / "grown").open("wb") as file:
        file.write(b"first")
        file.flush()
        os.fsync(file.fileno())
        fsync_path(folder)
        file.write(b" then")
        file.truncate(7)
    write_and_fsync(folder / "unnamed", b"content")
    shutil.copytree(folder / "release", folder / "copy", copy_function=_copy)
    shutil.rmtree(folder / "copy")
    (folder / "release").rename(folder / "renamed")


def _copy(source: str, target: str) -> None:
    Path(target).write_bytes(Path(source).read_bytes())
