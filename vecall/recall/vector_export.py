"""Export of the vectors that recall compares: those of items, or those of users, as a Parquet table."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import polars as pl

from vecall import progress
from vecall.arrays import Rows, Vectors
from vecall.data.casting import to_id_dtype
from vecall.data.frames import is_empty_row, select_columns
from vecall.errors import StoreError
from vecall.live.snapshot import Snapshot
from vecall.recall.parquet_output import stage_parquet
from vecall.recall.recaller import Recaller
from vecall.release.encoder import OnnxEncoder
from vecall.release.golden import UserTowerInputs
from vecall.release.users import UserTable
from vecall.runtime.paths import to_absolute_path

_CHUNK_NUMBERS = 2**24  # float32 numbers of item vectors, or of histories, that are in memory
_MAX_CHUNK_ROWS = 2**14


@dataclass(frozen=True)
class VectorExport:
    """Summary of an export.

    Attributes:
        rows: number of vectors.
        dim: D, their dimension.
        out: path of the table.
    """

    rows: int
    dim: int
    out: Path

    def as_json(self) -> dict[str, object]:
        """Return the summary as `vecall vectors --json` prints it."""
        return asdict(self) | {"out": str(self.out)}


def export_item_vectors(recaller: Recaller, output_path: Path) -> VectorExport:
    """Write the vectors of all live items, as they are stored.

    Args:
        recaller: Serves the items; live upserts are included and deleted items are not.
        output_path: Parquet table to write, with the columns `id` and `vector` (a list of D float32), ascending by id.
            It appears only when it is complete, and replaces an older file.

    Raises:
        StoreError: The table cannot be written.
    """
    snapshot = recaller.live_index.snapshot
    rows, dim = snapshot.list_live_rows(), snapshot.release.vectors.dim

    def build_part(part: Rows) -> pl.DataFrame:
        return _to_frame(snapshot.to_id_column(part), snapshot.get_vectors(part))

    _write_parts(output_path, rows, _CHUNK_NUMBERS // dim, "exporting items", build_part)
    return VectorExport(len(rows), dim, output_path)


def export_user_vectors(recaller: Recaller, output_path: Path) -> VectorExport:
    """Write the vectors of all known users, from their stored features and histories, as recall by user id uses them.

    Users without a history that the user tower reads, and without features, have no vector and are left out.

    Args:
        recaller: Serves the users; vectors of live upserts are used in histories.
        output_path: As for `export_item_vectors`.

    Raises:
        StoreError: The release has no users or no towers, or the table cannot be written.
    """
    snapshot = recaller.live_index.snapshot
    users, encoder = snapshot.release.users, snapshot.release.encoder
    if encoder is None or users is None:
        lacking = "towers" if encoder is None else "users"
        raise StoreError(
            f"release {snapshot.release.name!r} has no {lacking}, so there are no user vectors; export those of items "
            "(without --users), or publish with towers and users"
        )
    has_history = users.histories.lengths > 0 if encoder.history_length else np.zeros(len(users.ids), dtype=np.bool_)
    features = select_columns(users.features, encoder.state.users.features)
    rows = np.flatnonzero(has_history | ~is_empty_row(features))

    def build_part(part: Rows) -> pl.DataFrame:
        ids = pl.Series("id", users.ids.to_ids(part), dtype=to_id_dtype(users.ids.id_type))
        vectors = _encode_users(snapshot, users, encoder, part) if len(part) else np.empty((0, encoder.dim), np.float32)
        return _to_frame(ids, vectors)

    numbers_per_user = encoder.dim * max(1, encoder.history_length)
    _write_parts(output_path, rows, _CHUNK_NUMBERS // numbers_per_user, "encoding users", build_part)
    return VectorExport(len(rows), encoder.dim, output_path)


def _encode_users(snapshot: Snapshot, users: UserTable, encoder: OnnxEncoder, rows: Rows) -> Vectors:
    """Encode users as they are now: [B] rows -> [B, D] vectors."""
    features = select_columns(users.features[rows], encoder.state.users.features)
    inputs = UserTowerInputs(users.histories.take(rows), features)
    return inputs.encode(encoder, lambda item_rows: snapshot.get_vectors(snapshot.to_latest_rows(item_rows)))


def _write_parts(
    output_path: Path, rows: Rows, chunk_rows: int, task: str, build_part: Callable[[Rows], pl.DataFrame]
) -> None:
    """Write a table of many rows with few of them in memory.

    Args:
        output_path: The table.
        rows: Rows to write, in order.
        chunk_rows: Rows to build at a time, before bounds.
        task: Name of the progress bar.
        build_part: Builds the part of some rows.
    """
    chunk_rows = min(max(1, chunk_rows), _MAX_CHUNK_ROWS)
    with stage_parquet(to_absolute_path(output_path)) as directory, progress.track(task, len(rows)) as advance:
        for start in range(0, max(1, len(rows)), chunk_rows):
            part = rows[start : start + chunk_rows]
            build_part(part).write_parquet(directory / f"{start:012}.parquet")
            advance(len(part))


def _to_frame(ids: pl.Series, vectors: Vectors) -> pl.DataFrame:
    column = pl.Series("vector", np.ascontiguousarray(vectors, dtype=np.float32)).cast(pl.List(pl.Float32))
    return pl.DataFrame([ids, column])
