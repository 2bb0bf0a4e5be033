"""Validation of features in requests, and their conversion to the frames that feature encoders read."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from vecall.data.canonical import UNPAIRED_SURROGATE_PATTERN, scalar_to_text
from vecall.data.casting import cast_feature, cast_tags
from vecall.data.frames import build_frame
from vecall.schema import CategoryFeature, Feature, Features, NumericFeature, TagsFeature, TextFeature, VectorFeature

Fields = Mapping[str, object]

_MAX_FLOAT32 = float(np.finfo(np.float32).max)


def to_plain_list(value: object) -> object:
    """Convert an array, a column or a tensor to a list of Python's own types; return anything else unchanged."""
    if isinstance(value, pl.Series):
        return value.to_list()
    if isinstance(value, np.generic) or not hasattr(value, "__array__"):
        return value
    try:
        return np.asarray(value).tolist()
    except (TypeError, ValueError, RuntimeError):  # such as of a tensor with a gradient
        return value


def is_number(value: object, *, max_magnitude: float = sys.float_info.max) -> bool:
    """Return whether a value is a finite Python or NumPy number, not a boolean, and not beyond `max_magnitude`."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        return False
    number = value.item() if isinstance(value, np.generic) else value  # NumPy would narrow the bound to its own type
    return bool(-max_magnitude <= number <= max_magnitude)


def is_text(value: object) -> bool:
    """Return whether a value is a string without unpaired surrogates."""
    return isinstance(value, str) and not UNPAIRED_SURROGATE_PATTERN.search(value)


def _is_float32(value: object) -> bool:
    return is_number(value, max_magnitude=_MAX_FLOAT32)


def is_scalar(value: object) -> bool:
    """Return whether a value is text, a boolean or a finite number."""
    return is_text(value) or isinstance(value, (bool, np.bool_)) or is_number(value)


def _is_list_of(is_element: Callable[[object], bool], value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(map(is_element, value))


def _is_tag_text(value: object, separator: str) -> bool:
    if not isinstance(value, str) or not is_text(value):
        return False
    return not value.lstrip().startswith("[") or bool(cast_tags(pl.Series([value]), separator).is_valid[0])


def describe_feature_error(value: object, feature: Feature) -> str | None:
    """Return what is wrong with a value of a feature.

    Args:
        value: The value as it came in a request; None stands for missing and is valid.
        feature: The feature.

    Returns:
        The end of a sentence, "expected ..., got ..."; None for a valid value.
    """
    if value is None:
        return None
    match feature:
        case NumericFeature():
            is_valid, expected = is_number(value), "a finite number"
        case CategoryFeature():
            is_valid, expected = is_scalar(value), "a string, a number, true or false"
        case TagsFeature():
            is_valid = _is_list_of(is_scalar, value) or _is_tag_text(value, feature.separator)
            expected = "a list of strings"
        case TextFeature():
            is_valid, expected = is_text(value), "a string"
        case VectorFeature():
            is_valid = _is_list_of(_is_float32, value) and len(value) == feature.size  # type: ignore[arg-type]
            expected = f"a list of {feature.size} float32 numbers"
    return None if is_valid else f"expected {expected} or null, got {value!r:.80}"


def to_feature_frame(rows: Sequence[Fields], features: Features) -> pl.DataFrame:
    """Convert B rows of valid fields to a frame with a column per feature; absent fields are missing values."""
    columns = {name: to_feature_column([row.get(name) for row in rows], feature) for name, feature in features.items()}
    return build_frame(columns, len(rows))


def to_feature_column(values: Sequence[Any], feature: Feature) -> pl.Series:
    """Convert n valid values of a feature to a column of the type that `cast_feature` returns; None is missing."""
    match feature:
        case TagsFeature():
            cells = to_tag_lists(values, feature.separator)
        case VectorFeature():
            cells = pl.Series(values, dtype=pl.List(pl.Float64))
        case NumericFeature():
            cells = pl.Series(values, dtype=pl.Float64, strict=False)
        case _:
            cells = pl.Series([None if value is None else scalar_to_text(value) for value in values], dtype=pl.String)
    return cast_feature(cells, feature).values


def to_tag_lists(values: Sequence[Any], separator: str) -> pl.Series:
    """Convert n valid values of tags to a column of List(String).

    Args:
        values: [n] Lists of scalars, or text that is split as in a table; None is missing.
        separator: Separates the tags of text.
    """
    texts = [value if isinstance(value, str) else None for value in values]
    tags_of_texts = cast_tags(pl.Series(texts, dtype=pl.String), separator).values.to_list()
    lists = [
        [scalar_to_text(tag) for tag in value if tag != ""] if isinstance(value, (list, tuple)) else tags_of_text
        for value, tags_of_text in zip(values, tags_of_texts, strict=True)
    ]
    return pl.Series(lists, dtype=pl.List(pl.String))
