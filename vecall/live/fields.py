"""Fields of items that come one by one, as a release has them: its item features and its attributes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Self

import numpy as np
import polars as pl

from vecall.data.columns import moment_to_microseconds
from vecall.data.fields import frame_of, is_number, is_text
from vecall.data.fields import problem as feature_problem
from vecall.release.bundle import Release
from vecall.schema import Features

Fields = Mapping[str, object]


@dataclass(frozen=True)
class ItemFields:
    """The columns that an item may bring.

    Attributes:
        features: what the item tower reads; none without towers.
        attributes: what `where` and ranking look at, with their types.
    """

    features: Features
    attributes: pl.Schema
    _rules: Mapping[str, Callable[[object], str | None]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        rules = {name: rule_of(dtype).problem for name, dtype in self.attributes.items()}
        rules |= {name: partial(feature_problem, feature=feature) for name, feature in self.features.items()}
        object.__setattr__(self, "_rules", rules)

    @classmethod
    def of(cls, release: Release) -> Self:
        """Those of a release."""
        features = {} if release.encoder is None else release.encoder.state.items.features
        return cls(features, release.attributes.schema)

    def problem(self, name: str, value: object) -> str | None:
        """What is wrong with one value, as the end of a sentence; None if nothing is."""
        rule = self._rules.get(name)
        return f"no such column; expected some of {list(self._rules)}" if rule is None else rule(value)

    def fitting(self, fields: Fields) -> dict[str, Any]:
        """What of fields that were checked against another release goes with this one."""
        rules = self._rules
        return {name: value for name, value in fields.items() if name in rules and rules[name](value) is None}

    def feature_frame(self, rows: Sequence[Fields]) -> pl.DataFrame:
        """[B] rows with a column per feature; what is not given is missing."""
        return frame_of(rows, self.features)

    def attribute_frame(self, rows: Sequence[Fields]) -> pl.DataFrame:
        """[B] rows of checked fields with the columns and types of the release's attributes."""
        shared = {name: feature for name, feature in self.features.items() if name in self.attributes}
        read = frame_of(rows, shared)  # a feature is cast as tables are
        columns = [
            read[name].cast(dtype) if name in shared else _column(name, [row.get(name) for row in rows], dtype)
            for name, dtype in self.attributes.items()
        ]
        return pl.DataFrame(columns) if columns else pl.DataFrame(height=len(rows))


@dataclass(frozen=True)
class Rule:
    """What values a column takes.

    Attributes:
        takes: whether a value that is not None is one of them.
        expected: what they are, for the error.
    """

    takes: Callable[[Any], bool]
    expected: str

    def problem(self, value: object) -> str | None:
        """As `vecall.data.fields.problem`."""
        if value is None or self.takes(value):
            return None
        return f"expected {self.expected} or null, got {value!r:.80}"


def rule_of(dtype: Any) -> Rule:  # noqa: ANN401 - polars types its inner types loosely
    """The rule of an attribute of this type; times are ISO 8601 text."""
    if isinstance(dtype, (pl.List, pl.Array)):
        return _list_rule(dtype)
    if isinstance(dtype, pl.Enum):
        names = set(dtype.categories)
        return Rule(lambda value: isinstance(value, str) and value in names, f"one of {sorted(names)}")
    if isinstance(dtype, (pl.String, pl.Categorical)):
        return Rule(is_text, "a string")
    if isinstance(dtype, pl.Boolean):
        return Rule(lambda value: isinstance(value, bool), "true or false")
    if isinstance(dtype, (pl.Date, pl.Datetime)):
        return Rule(lambda value: _microseconds(value) is not None, "an ISO 8601 time, such as 2018-06-01")
    if dtype.is_integer():
        least, most = _bounds(dtype)
        return Rule(
            lambda value: is_number(value) and value == int(value) and least <= value <= most,
            f"an integer from {least} to {most}",
        )
    if dtype.is_numeric():
        largest = float(np.finfo(np.float32 if dtype == pl.Float32 else np.float64).max)
        return Rule(lambda value: is_number(value, largest=largest), "a finite number")
    return Rule(lambda _: False, f"nothing (this column holds {dtype})")


def _list_rule(dtype: pl.List | pl.Array) -> Rule:
    takes = rule_of(dtype.inner).takes
    size = dtype.size if isinstance(dtype, pl.Array) else None

    def listed(value: object) -> bool:
        return (
            isinstance(value, (list, tuple))
            and (size is None or len(value) == size)
            and all(one is not None and takes(one) for one in value)
        )

    return Rule(listed, f"a list of {'' if size is None else f'{size} '}{dtype.inner}")


def _bounds(dtype: pl.DataType) -> tuple[int, int]:
    bits = min(64, int(str(dtype).lower().removeprefix("u").removeprefix("int")))
    return (0, 2**bits - 1) if dtype.is_unsigned_integer() else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _microseconds(value: object) -> int | None:
    try:
        return moment_to_microseconds(datetime.fromisoformat(value)) if isinstance(value, str) else None
    except ValueError:
        return None


def _column(name: str, values: Sequence[Any], dtype: Any) -> pl.Series:  # noqa: ANN401 - as above
    """Checked values as a column of this type."""
    if isinstance(dtype, (pl.List, pl.Array)):
        return _list_column(name, values, dtype)
    if isinstance(dtype, (pl.Date, pl.Datetime)):
        return pl.Series(name, [_microseconds(value) for value in values], dtype=pl.Datetime("us")).cast(dtype)
    if dtype.is_integer():
        held = pl.UInt64 if dtype.is_unsigned_integer() else pl.Int64
        return pl.Series(name, [None if value is None else int(value) for value in values], dtype=held).cast(dtype)
    if dtype.is_numeric():
        return pl.Series(name, values, dtype=pl.Float64, strict=False).cast(dtype)
    if isinstance(dtype, (pl.Categorical, pl.Enum)):
        return pl.Series(name, values, dtype=pl.String).cast(dtype)
    return pl.Series(name, values, dtype=dtype)


def _list_column(name: str, values: Sequence[Any], dtype: pl.List | pl.Array) -> pl.Series:
    """All lists' values as one column, then cut apart: list by list, Polars takes ten times as long."""
    rows = np.repeat(np.arange(len(values)), [1 + len(one or ()) for one in values])
    flat = _column(
        name, [inner for one in values for inner in (None, *(one or ()))], dtype.inner
    )  # None: empty ones too
    lists = pl.DataFrame({"row": rows, name: flat}).group_by("row", maintain_order=True).agg(name)[name].list.slice(1)
    given = pl.Series([one is not None for one in values], dtype=pl.Boolean)
    return lists.zip_with(given, pl.repeat(None, len(values), dtype=lists.dtype, eager=True)).cast(dtype)
