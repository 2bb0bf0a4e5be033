"""Fields of a user or item given one by one, as in a request, made into the frame that encoders read."""

import math
from collections.abc import Callable, Mapping, Sequence

import polars as pl

from vecall.data.columns import cast_feature
from vecall.schema import Category, Feature, Features, Numeric, Tags, Text, Vector

Fields = Mapping[str, object]


# Half precision aside, all that is done with numbers is done in float32, and vectors are held in it.
_LARGEST = float(np.finfo(np.float32).max)


def is_number(value: object) -> bool:
    """A number that a float32 can hold; true and false are none."""
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and abs(value) <= _LARGEST


def is_text(value: object) -> bool:
    """A string, without the halves of surrogate pairs that JSON can bring and UTF-8 cannot hold."""
    return isinstance(value, str) and (value.isascii() or not _SURROGATES.search(value))


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
            ok, expected = _number(value), "a finite number"
        case Category():
            ok, expected = _scalar(value), "a string or number"
        case Tags():
            ok, expected = isinstance(value, str) or _list_of(_scalar, value), "a list of strings"
        case Text():
            ok, expected = isinstance(value, str), "a string"
        case Vector():
            ok = _list_of(_number, value) and len(value) == feature.size  # type: ignore[arg-type]
            expected = f"a list of {feature.size} finite numbers"
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
            plain = pl.Series(name, [None if value is None else str(value) for value in values], dtype=pl.String)
    return cast_feature(plain, feature).values


def _strings(part: object) -> list[str] | None:
    return None if part is None else [str(one) for one in part]  # type: ignore[attr-defined]
