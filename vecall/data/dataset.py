"""Tables read, checked, numbered, ordered and split: all that training and judging start from."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vecall.data.feature_encoder import Encoders
from vecall.data.interactions import Catalogue, Interactions, build_catalogue, order_interactions
from vecall.data.ragged import Rows, Sequences
from vecall.data.settings import DataSettings
from vecall.data.split import Split, split
from vecall.data.tables import read_tables
from vecall.schema import Schema


@dataclass(frozen=True)
class Dataset:
    """A reading of the tables.

    Attributes:
        schema: as configured.
        catalogue: items and users.
        interactions: all of them, ordered.
        dropped: rows left out while reading, by reason.
        timed: whether the interactions have times; else the file's order stands for them.
    """

    schema: Schema
    catalogue: Catalogue
    interactions: Interactions
    dropped: Mapping[str, int]
    timed: bool

    @property
    def histories(self) -> Sequences:
        """U histories of all positives, up to now: what a release stores."""
        positive = self.interactions.where(self.interactions.positive)
        return Sequences.grouped(positive.users, positive.items, len(self.catalogue.users))

    @property
    def popularity(self) -> NDArray[np.float32]:
        """[N] how often each item was taken."""
        taken = self.interactions.items[self.interactions.positive]
        return np.bincount(taken, minlength=len(self.catalogue.items)).astype(np.float32)

    def split(self, settings: DataSettings) -> Split:
        """Cut in time, see `vecall.data.split`."""
        return split(self.interactions, len(self.catalogue.users), settings)

    def fit_encoders(self, items: Rows, users: Rows) -> tuple[Encoders, Encoders]:
        """Item and user encoders, fitted on the given rows alone."""
        return (
            Encoders.fit(self.schema.items.features, self.catalogue.item_features[np.unique(items)]),
            Encoders.fit(self.schema.users.features, self.catalogue.user_features[np.unique(users)]),
        )


def read_dataset(settings: DataSettings, schema: Schema) -> Dataset:
    """Read the tables that the settings name.

    Raises:
        DataError: see `vecall.data.tables.read_tables`.
    """
    tables = read_tables(settings, schema)
    catalogue = build_catalogue(tables, schema)
    timed = schema.interactions.time is not None
    return Dataset(schema, catalogue, order_interactions(tables, catalogue), tables.dropped, timed)
