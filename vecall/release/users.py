"""The users of a release: ids, features and histories, in the files `users.*`."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from vecall.data.id_map import IdMap
from vecall.data.ragged import RaggedArray
from vecall.release.file_io import read_table, write_table
from vecall.release.history_io import load_histories, save_histories
from vecall.release.id_map_io import load_id_map, save_id_map

_FILE_PREFIX = "users."
_FEATURES_FILE = "users.features.arrow"


@dataclass(frozen=True)
class UserTable:
    """U users; their rows ascend with their ids.

    Attributes:
        ids: maps user ids to rows and back.
        features: [U] rows with a column per user feature; null where a value is missing.
        histories: U lists of item rows, oldest first.
    """

    ids: IdMap
    features: pl.DataFrame
    histories: RaggedArray

    def save(self, directory: Path) -> None:
        """Write the files `users.*`."""
        save_id_map(self.ids, directory, _FILE_PREFIX)
        write_table(directory / _FEATURES_FILE, self.features)
        save_histories(self.histories, directory, _FILE_PREFIX)

    @classmethod
    def load(cls, directory: Path) -> "UserTable | None":
        """Read the files `users.*` of a verified release; None where it has no users.

        Raises:
            InvalidReleaseError: a file is missing or cannot be read.
        """
        histories = load_histories(directory, _FILE_PREFIX)
        if histories is None:
            return None
        return cls(load_id_map(directory, _FILE_PREFIX), read_table(directory / _FEATURES_FILE), histories)
