"""Fields of a user or item given one by one, as in a request, made into the frame that encoders read."""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from vecall.data.canonical import spell_value
from vecall.data.casting import cast_feature, cast_tags
from vecall.data.frames import frame_from
from vecall.schema import Category, Feature, Features, Numeric, Tags, Text, Vector

Fields = Mapping[str, object]


_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)
_SURROGATES = re.compile("[\ud800-\udfff]")


def is_number(value: object, *, largest: float = sys.float_info.max) -> bool:
    """A finite number, of Python's or NumPy's; true and false are none, and neither is an integer beyond any float."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        return False
    plain = value.item() if isinstance(value, np.generic) else value  # NumPy would narrow `largest` to its own type
    return bool(-largest <= plain <= largest)


def is_text(value: object) -> bool:
    """A string; without the halves of surrogate pairs, which JSON can bring and UTF-8 cannot hold."""
    return isinstance(value, str) and not _SURROGATES.search(value)


def _component(value: object) -> bool:
    return is_number(value, largest=_LARGEST_FLOAT32)


def is_scalar(value: object) -> bool:
    """Text, true or false, or a finite number."""
    return is_text(value) or isinstance(value, (bool, np.bool_)) or is_number(value)


def _list_of(ok: Callable[[object], bool], value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(ok(one) for one in value)


def _is_tag_text(value: object, separator: str) -> bool:
    if not isinstance(value, str) or not is_text(value):
        return False
    return not value.lstrip().startswith("[") or bool(cast_tags(pl.Series([value]), separator).good[0])


def problem(value: object, feature: Feature) -> str | None:
    """What is wrong with one value, as the end of a sentence; None if nothing is. None means missing and is fine."""
    if value is None:
        return None
    match feature:
        case Numeric():
            ok, expected = is_number(value), "a finite number"
        case Category():
            ok, expected = is_scalar(value), "a string, a number, true or false"
        case Tags():
            ok = _list_of(is_scalar, value) or _is_tag_text(value, feature.separator)
            expected = "a list of strings"
        case Text():
            ok, expected = is_text(value), "a string"
        case Vector():
            ok = _list_of(_component, value) and len(value) == feature.size  # type: ignore[arg-type]
            expected = f"a list of {feature.size} float32 numbers"
    return None if ok else f"expected {expected} or null, got {value!r:.80}"


def frame_of(rows: Sequence[Fields], features: Features) -> pl.DataFrame:
    """[B] rows of checked fields as a frame with the features' columns; a field that is not given is missing."""
    columns = {name: feature_column([row.get(name) for row in rows], feature) for name, feature in features.items()}
    return frame_from(columns, len(rows))


def feature_column(values: Sequence[Any], feature: Feature) -> pl.Series:
    """[n] checked values of one feature, as `cast_feature` types them; None is missing."""
    match feature:
        case Tags():
            cells = tag_lists(values, feature.separator)
        case Vector():
            cells = pl.Series(values, dtype=pl.List(pl.Float64))
        case Numeric():
            cells = pl.Series(values, dtype=pl.Float64, strict=False)
        case _:
            cells = pl.Series([None if value is None else spell_value(value) for value in values], dtype=pl.String)
    return cast_feature(cells, feature).values


def tag_lists(values: Sequence[Any], separator: str) -> pl.Series:
    """[n] List(String) of checked tags: lists of scalars, or text that is cut as a table's cell is."""
    text = [value if isinstance(value, str) else None for value in values]
    cut = cast_tags(pl.Series(text, dtype=pl.String), separator).values.to_list()
    lists = [
        [spell_value(one) for one in value if one != ""] if isinstance(value, (list, tuple)) else parts
        for value, parts in zip(values, cut, strict=True)
    ]
    return pl.Series(lists, dtype=pl.List(pl.String))
