"""The users that a release knows: their ids, features and histories."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from vecall.data.id_map import Vocabulary, vocabulary_from_arrays
from vecall.data.ragged import Sequences
from vecall.release.atomic_io import read_array, read_table, write_array, write_table

_PREFIX = "users."
_FIELDS = "users.fields.arrow"
_OFFSETS, _ROWS = "users.history_offsets.npy", "users.history_rows.npy"


@dataclass(frozen=True)
class Users:
    """U users.

    Attributes:
        ids: their vocabulary.
        fields: [U] rows with a column per user feature.
        histories: U lists of item rows, oldest first.
    """

    ids: Vocabulary
    fields: pl.DataFrame
    histories: Sequences

    def save(self, folder: Path) -> None:
        """Write the files `users.*`."""
        save_vocabulary(self.ids, folder, _PREFIX)
        write_table(folder / _FIELDS, self.fields)
        write_array(folder / _OFFSETS, self.histories.offsets)
        write_array(folder / _ROWS, self.histories.rows)

    @classmethod
    def load(cls, folder: Path) -> "Users | None":
        """Read them, once their sums were checked; None where a release has no users."""
        if not (folder / _ROWS).exists():
            return None
        histories = Sequences(read_array(folder / _OFFSETS), read_array(folder / _ROWS))
        return cls(load_vocabulary(folder, _PREFIX), read_table(folder / _FIELDS), histories)


def save_vocabulary(ids: Vocabulary, folder: Path, prefix: str) -> None:
    """Write a vocabulary's arrays as `PREFIX NAME.npy`."""
    for name, array in ids.arrays().items():
        write_array(folder / f"{prefix}{name}.npy", array)


def load_vocabulary(folder: Path, prefix: str) -> Vocabulary:
    """Read a vocabulary that `save_vocabulary` wrote."""
    names = [name for name in ("integers", "bytes", "offsets") if (folder / f"{prefix}{name}.npy").exists()]
    return vocabulary_from_arrays({name: read_array(folder / f"{prefix}{name}.npy") for name in names})
