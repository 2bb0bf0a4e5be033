"""Tables read, checked, numbered, ordered and split: all that training and judging start from."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import Rows
from vecall.data.feature_encoder import FeatureEncoder
from vecall.data.interactions import Catalogue, Interactions, build_catalogue, build_interactions
from vecall.data.ragged import RaggedArray
from vecall.data.settings import DataSettings
from vecall.data.split import Split, split_interactions
from vecall.data.tables import read_tables
from vecall.schema import Schema


@dataclass(frozen=True)
class Dataset:
    """A reading of the tables.

    Attributes:
        schema: as configured.
        catalogue: items and users.
        interactions: all of them, ordered.
        dropped_counts: rows left out while reading, by reason.
        has_timestamps: whether the interactions have times; else the file's order stands for them.
    """

    schema: Schema
    catalogue: Catalogue
    interactions: Interactions
    dropped_counts: Mapping[str, int]
    has_timestamps: bool

    @property
    def histories(self) -> RaggedArray:
        """U histories of all positives, up to now: what a release stores."""
        positive = self.interactions.filter(self.interactions.is_positive)
        return RaggedArray.from_groups(positive.users, positive.items, len(self.catalogue.users))

    @property
    def popularity(self) -> NDArray[np.float32]:
        """[N] how often each item was taken."""
        taken = self.interactions.items[self.interactions.is_positive]
        return np.bincount(taken, minlength=len(self.catalogue.items)).astype(np.float32)

    def split(self, settings: DataSettings) -> Split:
        """Cut in time, see `vecall.data.split`."""
        return split_interactions(self.interactions, len(self.catalogue.users), settings)

    def fit_feature_encoders(self, item_rows: Rows, user_rows: Rows) -> tuple[FeatureEncoder, FeatureEncoder]:
        """Item and user encoders, fitted on the given rows alone."""
        return (
            FeatureEncoder.fit(self.schema.items.features, self.catalogue.item_features[np.unique(item_rows)]),
            FeatureEncoder.fit(self.schema.users.features, self.catalogue.user_features[np.unique(user_rows)]),
        )


def read_dataset(settings: DataSettings, schema: Schema) -> Dataset:
    """Read the tables that the settings name.

    Raises:
        DataError: see `vecall.data.tables.read_tables`.
    """
    tables = read_tables(settings, schema)
    catalogue = build_catalogue(tables, schema)
    timed = schema.interactions.time is not None
    return Dataset(schema, catalogue, build_interactions(tables, catalogue), tables.dropped_counts, timed)
