"""The tables in the form that training and evaluation start from: as rows, ordered, and split."""

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
from vecall.data.tables import Tables, read_tables
from vecall.schema import Schema


@dataclass(frozen=True)
class Dataset:
    """The tables of N items, U users and their interactions.

    Attributes:
        schema: Columns of the tables, as configured.
        catalogue: Items and users.
        interactions: All interactions, ordered.
        dropped_counts: Rows dropped, and values replaced by missing ones, while reading, by reason.
        has_timestamps: Whether the interactions have times; otherwise their order in the file stands for them.
    """

    schema: Schema
    catalogue: Catalogue
    interactions: Interactions
    dropped_counts: Mapping[str, int]
    has_timestamps: bool

    @property
    def histories(self) -> RaggedArray:
        """U histories of all positives, as a release stores them."""
        positives = self.interactions.filter(self.interactions.is_positive)
        return RaggedArray.from_sorted_pairs(positives.users, positives.items, len(self.catalogue.users))

    @property
    def popularity(self) -> NDArray[np.float32]:
        """Number of positives of each item, [N]."""
        items = self.interactions.items[self.interactions.is_positive]
        return np.bincount(items, minlength=len(self.catalogue.items)).astype(np.float32)

    def split(self, settings: DataSettings) -> Split:
        """Split into training, validation and test, see `split_interactions`."""
        return split_interactions(self.interactions, len(self.catalogue.users), settings)

    def fit_feature_encoders(self, item_rows: Rows, user_rows: Rows) -> tuple[FeatureEncoder, FeatureEncoder]:
        """Return the encoders of items and users, fitted on the given rows only.

        Args:
            item_rows: Rows of training items, with repeats.
            user_rows: Rows of training users, with repeats.
        """
        return (
            FeatureEncoder.fit(self.schema.items.features, self.catalogue.item_features[np.unique(item_rows)]),
            FeatureEncoder.fit(self.schema.users.features, self.catalogue.user_features[np.unique(user_rows)]),
        )


def read_dataset(settings: DataSettings, schema: Schema) -> Dataset:
    """Read the tables that the settings name.

    Raises:
        DataError: As for `read_tables`.
    """
    return build_dataset(read_tables(settings, schema), schema)


def build_dataset(tables: Tables, schema: Schema) -> Dataset:
    """Give the items and users of validated tables their rows, and order the interactions."""
    catalogue = build_catalogue(tables, schema)
    has_timestamps = schema.interactions.time is not None
    return Dataset(schema, catalogue, build_interactions(tables, catalogue), tables.dropped_counts, has_timestamps)
