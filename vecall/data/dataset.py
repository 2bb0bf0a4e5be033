"""The tables in the form that training and evaluation start from: as rows, ordered, and split."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.arrays import Rows
from vecall.data.feature_encoder import FeatureEncoder, is_fitted
from vecall.data.frames import select_columns
from vecall.data.interactions import Catalogue, Interactions, build_catalogue, build_interactions
from vecall.data.ragged import RaggedArray, count_rows
from vecall.data.settings import DataSettings
from vecall.data.split import Split
from vecall.data.splitting import split_interactions
from vecall.data.tables import Tables, read_tables
from vecall.schema import Features, Schema


@dataclass(frozen=True)
class Dataset:
    """The tables of N items, U users and their interactions.

    Attributes:
        schema: Columns of the tables, as configured.
        catalogue: Items and users.
        interactions: All interactions, ordered.
        dropped_counts: Rows dropped, and values replaced by missing ones, while reading, by reason; repeats left out.
        has_timestamps: Whether the interactions have times; otherwise their order in the file stands for them.
        has_order: Whether what a user took last may say most of what comes next. A random split of interactions
            without times says that it does not.
    """

    schema: Schema
    catalogue: Catalogue
    interactions: Interactions
    dropped_counts: Mapping[str, int]
    has_timestamps: bool
    has_order: bool = True

    @property
    def histories(self) -> RaggedArray:
        """U histories of all positives, as a release stores them."""
        positives = self.interactions.positives
        return RaggedArray.from_sorted_pairs(positives.users, positives.items, len(self.catalogue.users))

    @property
    def history_weights(self) -> NDArray[np.float32] | None:
        """Weight in the loss of each value of `histories`; None if all weigh the same."""
        return self.interactions.positives.weights

    @property
    def history_context(self) -> pl.DataFrame | None:
        """Context features of each value of `histories`; None without such."""
        return self.interactions.positives.context

    @property
    def popularity(self) -> NDArray[np.float32]:
        """Number of positives of a weight above 0 of each item, [N]."""
        return count_rows(self.interactions.counted_positives.items, len(self.catalogue.items)).astype(np.float32)

    def without_item_features(self) -> "Dataset":
        """Return the same without the columns of item features, which can be the largest part of the tables."""
        no_features = pl.DataFrame(height=len(self.catalogue.items))
        return replace(self, catalogue=replace(self.catalogue, item_features=no_features))

    def split(self, settings: DataSettings) -> Split:
        """Split into training, validation and test, see `split_interactions`."""
        return split_interactions(self.interactions, len(self.catalogue.users), settings)

    def fit_feature_encoders(
        self, item_rows: Rows, user_rows: Rows, context: pl.DataFrame | None = None
    ) -> tuple[FeatureEncoder, FeatureEncoder]:
        """Return the encoders of items and users, fitted on the given rows only.

        Args:
            item_rows: Rows of training items, with repeats.
            user_rows: Rows of training users, with repeats.
            context: Context features of the training positives, which the encoder of users encodes, too; None without.
        """
        items, users = self.catalogue.item_features, self.catalogue.user_features
        user_encoder = _fit_encoder(self.schema.users.features, users, user_rows)
        if context is not None:
            user_encoder = user_encoder.combine(FeatureEncoder.fit({**self.schema.interactions.context}, context))
        return _fit_encoder(self.schema.items.features, items, item_rows), user_encoder


def _fit_encoder(features: Features, frame: pl.DataFrame, rows: Rows) -> FeatureEncoder:
    """Fit on the given rows of a frame, with repeats; only the columns that are read are copied."""
    is_training_row = np.zeros(len(frame), dtype=np.bool_)
    is_training_row[rows] = True
    fitted = select_columns(frame, [name for name, feature in features.items() if is_fitted(feature)])
    return FeatureEncoder.fit(features, fitted.filter(pl.Series(is_training_row)))


def read_dataset(settings: DataSettings, schema: Schema) -> Dataset:
    """Read the tables that the settings name.

    Raises:
        DataError: As for `read_tables`.
    """
    dataset = build_dataset(read_tables(settings, schema), schema, settings.repeats)
    return replace(dataset, has_order=dataset.has_timestamps or settings.split != "random")


def build_dataset(tables: Tables, schema: Schema, repeats: Literal["keep", "first", "last"] = "keep") -> Dataset:
    """Give the items and users of validated tables their rows, and order the interactions.

    Args:
        tables: The tables.
        schema: Their columns.
        repeats: As in `[data]`; interactions that are left out are counted.
    """
    catalogue = build_catalogue(tables, schema)
    interactions = build_interactions(tables, catalogue, schema.interactions, repeats)
    dropped_counts = dict(tables.dropped_counts)
    if n_repeats := len(tables.interactions) - len(interactions.users):
        dropped_counts[f"repeats of the same user, item and kind (data.repeats = {repeats!r})"] = n_repeats
    return Dataset(schema, catalogue, interactions, dropped_counts, schema.interactions.time is not None)
