"""Fields of a user or item given one by one, as in a request, made into the frame that encoders read."""

import re
import sys
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import polars as pl

from vecall.data.columns import cast_feature
from vecall.schema import Category, Feature, Features, Numeric, Tags, Text, Vector

Fields = Mapping[str, object]


_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)
_SURROGATES = re.compile("[\ud800-\udfff]")


def is_number(value: object, *, largest: float = sys.float_info.max) -> bool:
    """A finite number, of Python's or NumPy's; true and false are none, and neither is an integer beyond any float."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        return False
    plain = value.item() if isinstance(value, np.generic) else value  # NumPy would narrow `largest` to its own type
    return bool(-largest <= plain <= largest)


def is_text(value: object) -> bool:
    """A string; without the halves of surrogate pairs, which JSON can bring and UTF-8 cannot hold."""
    return isinstance(value, str) and not _SURROGATES.search(value)


def _component(value: object) -> bool:
    return is_number(value, largest=_LARGEST_FLOAT32)


def _scalar(value: object) -> bool:
    return is_text(value) or isinstance(value, bool) or is_number(value)


def _list_of(ok: Callable[[object], bool], value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(ok(one) for one in value)


def problem(value: object, feature: Feature) -> str | None:
    """What is wrong with one value, as the end of a sentence; None if nothing is. None means missing and is fine."""
    if value is None:
        return None
    match feature:
        case Numeric():
            ok, expected = is_number(value), "a finite number"
        case Category():
            ok, expected = _scalar(value), "a string, a number, true or false"
        case Tags():
            ok, expected = is_text(value) or _list_of(_scalar, value), "a list of strings"
        case Text():
            ok, expected = is_text(value), "a string"
        case Vector():
            ok = _list_of(_component, value) and len(value) == feature.size  # type: ignore[arg-type]
            expected = f"a list of {feature.size} float32 numbers"
    return None if ok else f"expected {expected} or null, got {value!r:.80}"


def frame_of(rows: Sequence[Fields], features: Features) -> pl.DataFrame:
    """[B] rows of checked fields as a frame with the features' columns; a field that is not given is missing."""
    columns = [_column(name, [row.get(name) for row in rows], feature) for name, feature in features.items()]
    return pl.DataFrame(columns) if columns else pl.DataFrame(height=len(rows))


def _column(name: str, values: list[object], feature: Feature) -> pl.Series:
    match feature:
        case Tags() if any(isinstance(value, (list, tuple)) for value in values):
            parts = [value.split(feature.separator) if isinstance(value, str) else value for value in values]
            plain = pl.Series(name, [_strings(part) for part in parts], dtype=pl.List(pl.String))
        case Vector():
            plain = pl.Series(name, values, dtype=pl.List(pl.Float64))
        case Numeric():
            plain = pl.Series(name, values, dtype=pl.Float64, strict=False)
        case _:
            plain = pl.Series(name, [None if value is None else _as_text(value) for value in values], dtype=pl.String)
    return cast_feature(plain, feature).values


def _strings(part: object) -> list[str] | None:
    return None if part is None else [_as_text(one) for one in part]  # type: ignore[attr-defined]


def _as_text(value: object) -> str:
    """As `cast_feature` writes the value out of a table: 1e-07 is 1e-7 there, and True is true."""
    if isinstance(value, (bool, float)):
        return str(pl.Series([value]).cast(pl.String)[0])
    return str(value)
