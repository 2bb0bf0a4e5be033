"""Feature encoders for one's own training code: they read tables as they are. Loads no torch."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import ValidationError

from vecall.data.casting import cast_feature
from vecall.data.feature_encoder import FeatureEncoder, FeatureEncoderState, FeatureSpec, TowerInputs, to_tower_inputs
from vecall.data.settings import CsvSettings
from vecall.data.table_source import TableSource
from vecall.data.table_validator import BadRowHandler, TableValidator
from vecall.errors import ConfigError, DataError
from vecall.runtime.fork_safety import check_not_forked
from vecall.schema import Features, Schema
from vecall.settings_base import describe_validation_error


class TableEncoder:
    """Encoder of the features of items or of users, from a table to the arrays that the tower gets in production.

    Args:
        state: Features and what was fitted, as stored in the `encoders.json` of a release.
    """

    def __init__(self, state: FeatureEncoderState) -> None:
        self.state = state
        self._encoder = FeatureEncoder(state)

    @classmethod
    def fit(cls, features: Features, table: str | Path | pl.DataFrame, *, label: str = "table") -> "TableEncoder":
        """Fit an encoder on the rows of a table.

        Args:
            features: The features, by column.
            table: Path of a Parquet or CSV table, or a frame.
            label: What error texts call a frame.

        Raises:
            DataError: The table cannot be read, lacks a column or holds an invalid value.
        """
        return cls(FeatureEncoder.fit(features, _read_features(features, table, label)).state)

    @classmethod
    def from_json(cls, text: str) -> "TableEncoder":
        """Return the encoder that `to_json` stored.

        Raises:
            ConfigError: The text is not the JSON of an encoder.
        """
        try:
            return cls(FeatureEncoderState.model_validate_json(text))
        except ValidationError as error:
            raise ConfigError(f"not the JSON of a TableEncoder: {error}") from error

    def to_json(self) -> str:
        """Return the encoder as JSON, to be stored beside the weights of the towers."""
        return self.state.model_dump_json()

    @property
    def specs(self) -> dict[str, FeatureSpec]:
        """Kind and size of each encoded feature, by name, in the schema's order."""
        return self._encoder.specs

    @property
    def dense_dim(self) -> int:
        """F, the number of columns of `encode_dense`."""
        return sum(spec.size for spec in self.specs.values() if spec.kind == "dense")

    def encode(self, table: str | Path | pl.DataFrame) -> TowerInputs:
        """Encode the B rows of a table, in their order.

        Args:
            table: Path of a Parquet or CSV table, or a frame; needs the features' columns only.

        Returns:
            By feature, in the schema's order: float32 [B, size] of a numeric (z-score, and 1 where there is a number)
            or vector feature, int64 [B] of a category, int64 [B, T] padded with 0 of tags and text.

        Raises:
            DataError: The table cannot be read, lacks a column or holds an invalid value.
        """
        encoded = self._encoder.encode(_read_features(self.state.features, table, "table"))
        return to_tower_inputs(encoded)

    def encode_dense(self, table: str | Path | pl.DataFrame) -> NDArray[np.float32]:
        """Encode the numeric and vector features of B rows to one matrix [B, F], as `DenseTower` concatenates them.

        Raises:
            DataError: As for `encode`; or no feature is numeric or a vector.
        """
        encoded = self.encode(table)
        dense = [encoded[name] for name, spec in self.specs.items() if spec.kind == "dense"]
        if not dense:
            raise DataError(f"no feature is numeric or a vector; the schema names {list(self.specs)}")
        return np.concatenate(dense, axis=1).astype(np.float32, copy=False)


def fit_encoders(
    schema: Schema | Mapping[str, Any], items: str | Path | pl.DataFrame, users: str | Path | pl.DataFrame | None = None
) -> tuple[TableEncoder, TableEncoder]:
    """Fit the feature encoders of items and users, to train one's own towers on what they get in production.

    Means, deviations and vocabularies are those of the rows given: leave out rows that only validation or test may
    know. Pass the encoders on to `publish_towers`, which otherwise fits them on the tables that it is given.

    Args:
        schema: A `vecall.schema.Schema`, or a mapping such as the `[schema]` section of vecall.toml; `interactions`,
            and without user features `users`, may be missing.
        items: The items table: path of a Parquet or CSV file, or a Polars frame.
        users: The users table, likewise; needed if the schema names user features.

    Returns:
        The encoder of items and that of users; their `encode` takes tables like these.

    Raises:
        ConfigError: The schema is invalid, or names user features and there is no users table.
        DataError: A table cannot be read, lacks a column or holds an invalid value.
    """
    parsed_schema = parse_schema(schema)
    require_users_table(parsed_schema, users)
    item_encoder = TableEncoder.fit(parsed_schema.items.features, items, label="items")
    user_table = pl.DataFrame() if users is None else users
    user_encoder = TableEncoder.fit(parsed_schema.users.features, user_table, label="users")
    return item_encoder, user_encoder


def parse_schema(schema: Schema | Mapping[str, Any]) -> Schema:
    """Validate a schema that is given in Python.

    Sections that no table needs may be missing: without `interactions` there is no such table, and without `users`
    the ids of users are text and users have no features.

    Raises:
        ConfigError: An unknown key or an invalid value; the message starts with the key's path.
    """
    if isinstance(schema, Schema):
        return schema
    if not isinstance(schema, Mapping):
        raise ConfigError(
            f"schema: expected a vecall.schema.Schema or a mapping of its sections, got {type(schema).__name__}"
        )
    sections = {"interactions": {"user": "user", "item": "item"}, "users": {"id": "user", "id_type": "string"}}
    try:
        return Schema.model_validate(sections | dict(schema))
    except ValidationError as error:
        problems = describe_validation_error(error, Schema, dict(schema))
        raise ConfigError("\n".join(f"schema.{problem}" for problem in problems)) from error


def require_users_table(schema: Schema, users: object) -> None:
    """Check that there is a users table if the schema names user features.

    Raises:
        ConfigError: There is none.
    """
    if users is None and schema.users.features:
        raise ConfigError(
            f"schema.users.features: names {list(schema.users.features)}, but there is no users table; pass users=..."
        )


def _read_features(features: Features, table: str | Path | pl.DataFrame, label: str) -> pl.DataFrame:
    """Read the features' columns of a table, of the types that `cast_feature` returns."""
    check_not_forked()  # such as by a worker of a DataLoader
    columns = {f"features.{name}": name for name in features}
    csv = CsvSettings()
    validator = TableValidator(TableSource.from_argument(label, table), columns, csv, BadRowHandler(should_drop=False))
    frames = []
    for batch in validator.iterate_batches():
        for name, feature in features.items():
            batch.cast("feature", name, partial(cast_feature, feature=feature, decimal=csv.decimal), is_required=False)
        frames.append(batch.to_frame("feature"))
    validator.handle_invalid_cells()
    return pl.concat(frames)
