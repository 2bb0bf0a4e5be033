"""The users that a release knows: their ids, features and histories."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from vecall.data.id_map import IdMap, build_id_map_from_arrays
from vecall.data.ragged import RaggedArray
from vecall.release.atomic_io import read_array, read_table, write_array, write_table

_ID_MAP_PREFIX = "users."
_FEATURES_FILE = "users.fields.arrow"
_HISTORY_OFFSETS_FILE, _HISTORY_ROWS_FILE = "users.history_offsets.npy", "users.history_rows.npy"


@dataclass(frozen=True)
class UserTable:
    """U users.

    Attributes:
        ids: their vocabulary.
        features: [U] rows with a column per user feature.
        histories: U lists of item rows, oldest first.
    """

    ids: IdMap
    features: pl.DataFrame
    histories: RaggedArray

    def save(self, directory: Path) -> None:
        """Write the files `users.*`."""
        save_id_map(self.ids, directory, _ID_MAP_PREFIX)
        write_table(directory / _FEATURES_FILE, self.features)
        write_array(directory / _HISTORY_OFFSETS_FILE, self.histories.offsets)
        write_array(directory / _HISTORY_ROWS_FILE, self.histories.values)

    @classmethod
    def load(cls, directory: Path) -> "UserTable | None":
        """Read them, once their sums were checked; None where a release has no users."""
        if not (directory / _HISTORY_ROWS_FILE).exists():
            return None
        histories = RaggedArray(
            read_array(directory / _HISTORY_OFFSETS_FILE), read_array(directory / _HISTORY_ROWS_FILE)
        )
        return cls(load_id_map(directory, _ID_MAP_PREFIX), read_table(directory / _FEATURES_FILE), histories)


def save_id_map(id_map: IdMap, directory: Path, prefix: str) -> None:
    """Write a vocabulary's arrays as `PREFIX NAME.npy`."""
    for name, array in id_map.to_arrays().items():
        write_array(directory / f"{prefix}{name}.npy", array)


def load_id_map(directory: Path, prefix: str) -> IdMap:
    """Read a vocabulary that `save_id_map` wrote."""
    names = [name for name in ("integers", "bytes", "offsets") if (directory / f"{prefix}{name}.npy").exists()]
    return build_id_map_from_arrays({name: read_array(directory / f"{prefix}{name}.npy") for name in names})
