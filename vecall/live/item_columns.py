"""Fields of items that come one by one, as a release has them: its item features and its attributes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

import numpy as np
import polars as pl

from vecall.data.canonical import scalar_to_text
from vecall.data.casting import cast_feature
from vecall.data.frames import build_frame
from vecall.data.request_features import describe_feature_error as feature_problem
from vecall.data.request_features import is_scalar, to_feature_column, to_tag_lists
from vecall.live.column_validation import ColumnValidator, build_column, make_column_validator
from vecall.release.release import Release
from vecall.schema import Feature, Features, NumericFeature, TagsFeature

Fields = Mapping[str, object]


class ColumnBuildError(Exception):
    """A checked value that its column does not take all the same, such as one category too many.

    Attributes:
        row: place of the item among those given.
        column: name of the column.
        reason: what Polars says.
    """

    def __init__(self, row: int, column: str, reason: str) -> None:
        super().__init__(f"{column}: {reason}")
        self.row, self.column, self.reason = row, column, reason


@dataclass(frozen=True)
class ItemColumns:
    """The columns that an item may bring. A name may be that of a feature and of an attribute at once.

    Attributes:
        features: what the item tower reads; none without towers.
        attributes: what `where` and ranking look at, with their types.
    """

    features: Features
    attributes: pl.Schema
    _value_checks: Mapping[str, Callable[[object], str | None]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        rules = {name: self._make_value_check(name) for name in dict.fromkeys([*self.attributes, *self.features])}
        object.__setattr__(self, "_value_checks", rules)

    @classmethod
    def from_release(cls, release: Release) -> Self:
        """Those of a release."""
        features = {} if release.encoder is None else release.encoder.state.items.features
        return cls(features, release.attributes.schema)

    def _make_value_check(self, name: str) -> Callable[[object], str | None]:
        feature, dtype = self.features.get(name), self.attributes.get(name)
        if feature is None:
            return make_column_validator(dtype).describe_error
        if dtype is None or _is_tag_list(feature, dtype):
            return partial(feature_problem, feature=feature)
        return partial(
            _describe_shared_error,
            feature=feature,
            validator=_make_shared_validator(feature, dtype),
            text=dtype == pl.String,
        )

    def describe_error(self, name: str, value: object) -> str | None:
        """What is wrong with one value, as the end of a sentence; None if nothing is."""
        rule = self._value_checks.get(name)
        return f"no such column; expected some of {list(self._value_checks)}" if rule is None else rule(value)

    def select_compatible_fields(self, fields: Fields) -> dict[str, Any]:
        """What of fields that were checked against another release goes with this one."""
        rules = self._value_checks
        return {name: value for name, value in fields.items() if name in rules and rules[name](value) is None}

    def build_feature_frame(self, rows: Sequence[Fields]) -> pl.DataFrame:
        """[B] rows with a column per feature; what is not given is missing."""
        columns = {name: self._build_feature_column(name, [row.get(name) for row in rows]) for name in self.features}
        return build_frame(columns, len(rows))

    def _build_feature_column(self, name: str, values: Sequence[Any]) -> pl.Series:
        feature = self.features[name]
        if self.attributes.get(name) != pl.String or isinstance(feature, TagsFeature):
            if isinstance(feature, NumericFeature):  # an attribute of flags
                values = [float(value) if isinstance(value, (bool, np.bool_)) else value for value in values]
            return to_feature_column(values, feature)
        text = [value if isinstance(value, str) else None for value in values]
        cells = cast_feature(pl.Series(text, dtype=pl.String), feature).values  # as a table's cell is read
        others = to_feature_column([None if isinstance(value, str) else value for value in values], feature)
        return cells.zip_with(cells.is_not_null(), others)

    def build_attribute_frame(self, rows: Sequence[Fields]) -> pl.DataFrame:
        """[B] rows of checked fields with the columns and types of the release's attributes.

        Raises:
            UnfitValueError: a column does not take a value.
        """
        columns = {}
        for name, dtype in self.attributes.items():
            values = [row.get(name) for row in rows]
            try:
                columns[name] = self._build_attribute_column(name, values, dtype)
            except (pl.exceptions.PolarsError, OverflowError, TypeError, ValueError) as error:
                build = partial(self._build_attribute_column, name, dtype=dtype)
                raise ColumnBuildError(_find_first_failing(values, build), name, str(error)) from error
        return build_frame(columns, len(rows))

    def _build_attribute_column(self, name: str, values: Sequence[Any], dtype: Any) -> pl.Series:  # noqa: ANN401 - Polars'
        feature = self.features.get(name)
        if isinstance(feature, TagsFeature) and dtype == pl.List(pl.String):
            return to_tag_lists(values, feature.separator)
        if feature is not None and dtype == pl.String:
            values = [None if value is None else scalar_to_text(value) for value in values]
        return build_column(values, dtype)


def _is_tag_list(feature: Feature, dtype: Any) -> bool:  # noqa: ANN401 - as above
    """Whether an attribute is the feature's tags, which come as lists or as text that is cut."""
    return isinstance(feature, TagsFeature) and dtype == pl.List(pl.String)


def _make_shared_validator(feature: Feature, dtype: Any) -> ColumnValidator:  # noqa: ANN401 - as above
    """Of an attribute that is a feature too: text takes numbers and flags, which are spelled."""
    if dtype == pl.String and not isinstance(feature, TagsFeature):
        return ColumnValidator(is_scalar, "a string, a number, true or false")
    return make_column_validator(dtype)


def _describe_shared_error(value: object, *, feature: Feature, validator: ColumnValidator, text: bool) -> str | None:
    """What is wrong with a value of an attribute that is a feature too."""
    if (wrong := validator.describe_error(value)) is not None:
        return wrong
    if text and isinstance(value, str):
        cast = cast_feature(pl.Series([value]), feature)
        return None if cast.is_valid[0] else f"expected {cast.expected}, got {value!r:.80}"
    if isinstance(feature, NumericFeature) and isinstance(value, (bool, np.bool_)):
        return None  # as in a table: 1 and 0
    return feature_problem(value, feature)


def _find_first_failing(values: Sequence[Any], build: Callable[[Sequence[Any]], pl.Series]) -> int:
    """Place of the value with which the values begin to fail; they do."""
    good, bad = 0, len(values)  # lengths: so many can be built, so many cannot
    while good + 1 < bad:
        middle = (good + bad) // 2
        try:
            build(values[:middle])
            good = middle
        except (pl.exceptions.PolarsError, OverflowError, TypeError, ValueError):
            bad = middle
    return bad - 1
