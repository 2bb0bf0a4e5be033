"""Fields of a user or item given one by one, as in a request, made into the frame that encoders read."""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from vecall.data.canonical import scalar_to_text
from vecall.data.casting import cast_feature, cast_tags
from vecall.data.frames import build_frame
from vecall.schema import CategoryFeature, Feature, Features, NumericFeature, TagsFeature, TextFeature, VectorFeature

Fields = Mapping[str, object]


_MAX_FLOAT32 = float(np.finfo(np.float32).max)
_SURROGATE_PATTERN = re.compile("[\ud800-\udfff]")


def is_number(value: object, *, max_magnitude: float = sys.float_info.max) -> bool:
    """A finite number, of Python's or NumPy's; true and false are none, and neither is an integer beyond any float."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        return False
    plain = value.item() if isinstance(value, np.generic) else value  # NumPy would narrow `largest` to its own type
    return bool(-max_magnitude <= plain <= max_magnitude)


def is_text(value: object) -> bool:
    """A string; without the halves of surrogate pairs, which JSON can bring and UTF-8 cannot hold."""
    return isinstance(value, str) and not _SURROGATE_PATTERN.search(value)


def _is_float32(value: object) -> bool:
    return is_number(value, max_magnitude=_MAX_FLOAT32)


def is_scalar(value: object) -> bool:
    """Text, true or false, or a finite number."""
    return is_text(value) or isinstance(value, (bool, np.bool_)) or is_number(value)


def _is_list_of(is_element: Callable[[object], bool], value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(is_element(one) for one in value)


def _is_tag_text(value: object, separator: str) -> bool:
    if not isinstance(value, str) or not is_text(value):
        return False
    return not value.lstrip().startswith("[") or bool(cast_tags(pl.Series([value]), separator).is_valid[0])


def describe_feature_error(value: object, feature: Feature) -> str | None:
    """What is wrong with one value, as the end of a sentence; None if nothing is. None means missing and is fine."""
    if value is None:
        return None
    match feature:
        case NumericFeature():
            ok, expected = is_number(value), "a finite number"
        case CategoryFeature():
            ok, expected = is_scalar(value), "a string, a number, true or false"
        case TagsFeature():
            ok = _is_list_of(is_scalar, value) or _is_tag_text(value, feature.separator)
            expected = "a list of strings"
        case TextFeature():
            ok, expected = is_text(value), "a string"
        case VectorFeature():
            ok = _is_list_of(_is_float32, value) and len(value) == feature.size  # type: ignore[arg-type]
            expected = f"a list of {feature.size} float32 numbers"
    return None if ok else f"expected {expected} or null, got {value!r:.80}"


def to_feature_frame(rows: Sequence[Fields], features: Features) -> pl.DataFrame:
    """[B] rows of checked fields as a frame with the features' columns; a field that is not given is missing."""
    columns = {name: to_feature_column([row.get(name) for row in rows], feature) for name, feature in features.items()}
    return build_frame(columns, len(rows))


def to_feature_column(values: Sequence[Any], feature: Feature) -> pl.Series:
    """[n] checked values of one feature, as `cast_feature` types them; None is missing."""
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
    """[n] List(String) of checked tags: lists of scalars, or text that is cut as a table's cell is."""
    text = [value if isinstance(value, str) else None for value in values]
    cut = cast_tags(pl.Series(text, dtype=pl.String), separator).values.to_list()
    lists = [
        [scalar_to_text(one) for one in value if one != ""] if isinstance(value, (list, tuple)) else parts
        for value, parts in zip(values, cut, strict=True)
    ]
    return pl.Series(lists, dtype=pl.List(pl.String))
