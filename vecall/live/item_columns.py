"""Item columns of a release, which are its item features and attributes: check fields, and build frames from them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

import numpy as np
import polars as pl

from vecall.data.canonical import scalar_to_text
from vecall.data.casting import cast_feature
from vecall.data.frames import build_frame
from vecall.data.request_features import (
    Fields,
    describe_feature_error,
    is_scalar,
    to_feature_column,
    to_tag_lists,
)
from vecall.live.column_validation import ColumnValidator, build_column, make_column_validator
from vecall.release.release import Release
from vecall.schema import Feature, Features, NumericFeature, TagsFeature

# What building a column from checked values may raise.
_BUILD_ERRORS = (pl.exceptions.PolarsError, OverflowError, TypeError, ValueError)


class ColumnBuildError(Exception):
    """A column does not take a checked value, such as one category more than fit into it.

    Attributes:
        row: position of the item in the batch.
        column: name of the column.
        reason: Polars' message.
    """

    def __init__(self, row: int, column: str, reason: str) -> None:
        super().__init__(f"{column}: {reason}")
        self.row, self.column, self.reason = row, column, reason


@dataclass(frozen=True)
class ItemColumns:
    """The columns that an item may have. A name may be that of a feature and of an attribute at the same time.

    Attributes:
        features: columns that the item tower reads; empty for a release without towers.
        attributes: columns for `where` and for ranking, and their types.
    """

    features: Features
    attributes: pl.Schema
    _value_checks: Mapping[str, Callable[[object], str | None]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        checks = {name: self._make_value_check(name) for name in dict.fromkeys([*self.attributes, *self.features])}
        object.__setattr__(self, "_value_checks", checks)

    @classmethod
    def from_release(cls, release: Release) -> Self:
        """Return the columns of a release."""
        features = {} if release.encoder is None else release.encoder.state.items.features
        return cls(features, release.attributes.schema)

    def _make_value_check(self, name: str) -> Callable[[object], str | None]:
        feature, dtype = self.features.get(name), self.attributes.get(name)
        if feature is None:
            return make_column_validator(dtype).describe_error
        if dtype is None or _is_tag_list(feature, dtype):
            return partial(describe_feature_error, feature=feature)
        return partial(
            _describe_shared_error,
            feature=feature,
            validator=_make_shared_validator(feature, dtype),
            text=dtype == pl.String,
        )

    def describe_error(self, name: str, value: object) -> str | None:
        """Return what is wrong with a value of a column, as the end of a sentence; None if it is valid."""
        check = self._value_checks.get(name)
        return f"no such column; expected one of {list(self._value_checks)}" if check is None else check(value)

    def select_compatible_fields(self, fields: Fields) -> dict[str, Any]:
        """Return those of the fields, which were checked against another release, that are valid for this one."""
        checks = self._value_checks
        return {name: value for name, value in fields.items() if name in checks and checks[name](value) is None}

    def build_feature_frame(self, rows: Sequence[Fields]) -> pl.DataFrame:
        """Build the frame of the item features from the checked fields of B items.

        Returns:
            Frame of B rows with a column per feature; null where an item lacks a field.
        """
        columns = {name: self._build_feature_column(name, [row.get(name) for row in rows]) for name in self.features}
        return build_frame(columns, len(rows))

    def _build_feature_column(self, name: str, values: Sequence[Any]) -> pl.Series:
        feature = self.features[name]
        if self.attributes.get(name) != pl.String or isinstance(feature, TagsFeature):
            if isinstance(feature, NumericFeature):  # the attribute of this name may be boolean or decimal
                values = [float(value) if isinstance(value, (bool, np.bool_, str)) else value for value in values]
            return to_feature_column(values, feature)
        texts = [value if isinstance(value, str) else None for value in values]
        from_text = cast_feature(pl.Series(texts, dtype=pl.String), feature).values  # as cells of a table are cast
        others = to_feature_column([None if isinstance(value, str) else value for value in values], feature)
        return from_text.zip_with(from_text.is_not_null(), others)

    def build_attribute_frame(self, rows: Sequence[Fields]) -> pl.DataFrame:
        """Build the frame of the attributes from the checked fields of B items.

        Returns:
            Frame of B rows with the columns and types of the release's attributes.

        Raises:
            ColumnBuildError: a column does not take a value.
        """
        columns = {}
        for name, dtype in self.attributes.items():
            values = [row.get(name) for row in rows]
            try:
                columns[name] = self._build_attribute_column(name, values, dtype)
            except _BUILD_ERRORS as error:
                build = partial(self._build_attribute_column, name, dtype=dtype)
                raise ColumnBuildError(_find_first_failing(values, build), name, str(error)) from error
        return build_frame(columns, len(rows))

    def _build_attribute_column(self, name: str, values: Sequence[Any], dtype: Any) -> pl.Series:  # noqa: ANN401 - a Polars type
        feature = self.features.get(name)
        if isinstance(feature, TagsFeature) and dtype == pl.List(pl.String):
            return to_tag_lists(values, feature.separator)
        if feature is not None and dtype == pl.String:
            values = [None if value is None else scalar_to_text(value) for value in values]
        return build_column(values, dtype)


def _is_tag_list(feature: Feature, dtype: Any) -> bool:  # noqa: ANN401 - a Polars type
    """Return whether an attribute holds the feature's tags, which come as lists or as separated text."""
    return isinstance(feature, TagsFeature) and dtype == pl.List(pl.String)


def _make_shared_validator(feature: Feature, dtype: Any) -> ColumnValidator:  # noqa: ANN401 - a Polars type
    """Return the validator of an attribute that is also a feature: text takes numbers and booleans as well."""
    if dtype == pl.String and not isinstance(feature, TagsFeature):
        return ColumnValidator(is_scalar, "a string, a number, true or false")
    return make_column_validator(dtype)


def _describe_shared_error(value: object, *, feature: Feature, validator: ColumnValidator, text: bool) -> str | None:
    """Return what is wrong with a value of an attribute that is also a feature; None if it is valid."""
    if (error := validator.describe_error(value)) is not None:
        return error
    if text and isinstance(value, str):
        cast = cast_feature(pl.Series([value]), feature)
        return None if cast.is_valid[0] else f"expected {cast.expected}, got {value!r:.80}"
    if isinstance(feature, NumericFeature) and isinstance(value, (bool, np.bool_, str)):
        return None  # read as 1 and 0, or as a decimal, as in a table
    return describe_feature_error(value, feature)


def _find_first_failing(values: Sequence[Any], build: Callable[[Sequence[Any]], pl.Series]) -> int:
    """Return the position of the first value with which building fails, by bisection. All values together must fail."""
    good, bad = 0, len(values)  # a prefix of `good` values can be built, one of `bad` values cannot
    while good + 1 < bad:
        middle = (good + bad) // 2
        try:
            build(values[:middle])
            good = middle
        except _BUILD_ERRORS:
            bad = middle
    return bad - 1
