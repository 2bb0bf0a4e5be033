"""Item attributes as the filter form explains them: type, operations, and examples of values."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl

from vecall.data.frames import get_unnamed_column
from vecall.recall.conditions import BOOLEAN_OPS, LIST_VALUE_OPS, SCALAR_OPS, TAG_OPS

AttributeKind = Literal["text", "boolean", "integer", "number", "date", "datetime", "tags"]

_SAMPLE_SIZE = 1_000  # rows that examples are taken from
_MAX_EXAMPLES = 8
_MAX_HINT_EXAMPLES = 3
_MAX_EXAMPLE_LENGTH = 30  # characters; longer values are no use as suggestions


@dataclass(frozen=True)
class AttributeInfo:
    """An attribute that filters may name.

    Attributes:
        name: name of the attribute.
        kind: how its values are typed into the form.
        ops: operations that it supports.
        examples: values as text: frequent ones of text and tags; minimum, median and maximum of numbers and dates.
    """

    name: str
    kind: AttributeKind
    ops: tuple[str, ...]
    examples: tuple[str, ...]

    def to_hint(self, texts: Mapping[str, str], op: str = "") -> str:
        """What to type as the value of an operation, in the language of `texts`."""
        parts = [texts[f"kind_{self.kind}"]]
        if self.examples and self.kind != "boolean":
            parts.append(texts["such_as"].format(texts["separator"].join(self.examples[:_MAX_HINT_EXAMPLES])))
        if op in LIST_VALUE_OPS:
            parts.append(texts["several_values"])
        return "; ".join(parts) if texts["lang_tag"] == "en" else "；".join(parts)


def describe_attributes(attributes: pl.DataFrame) -> list[AttributeInfo]:
    """Describe the columns that filters support, from a sample of their rows."""
    rows = np.unique(np.linspace(0, max(attributes.height - 1, 0), _SAMPLE_SIZE).astype(np.int64))
    described = []
    for name, dtype in attributes.schema.items():
        kind = _to_kind(dtype)
        if kind is not None:
            cells = get_unnamed_column(attributes, name)
            sample = cells.gather(rows) if attributes.height else cells
            described.append(AttributeInfo(name, kind, _to_ops(kind), _choose_examples(sample, kind)))
    return described


def _to_kind(dtype: Any) -> AttributeKind | None:  # noqa: ANN401 - Polars types its inner types loosely
    """The kind of a column's values; None if filters do not support them (see `vecall.recall.conditions`)."""
    match dtype:
        case pl.List() | pl.Array():
            return None if _to_kind(dtype.inner) in (None, "tags") else "tags"
        case pl.String() | pl.Categorical() | pl.Enum() | pl.Null():
            return "text"
        case pl.Boolean():
            return "boolean"
        case pl.Date():
            return "date"
        case pl.Datetime():
            return "datetime"
    return "integer" if dtype.is_integer() else "number" if dtype.is_numeric() else None


def _to_ops(kind: AttributeKind) -> tuple[str, ...]:
    return TAG_OPS if kind == "tags" else BOOLEAN_OPS if kind == "boolean" else SCALAR_OPS


def _choose_examples(sample: pl.Series, kind: AttributeKind) -> tuple[str, ...]:
    if kind == "boolean":
        return ("true", "false")
    if kind == "tags":
        sample = sample.explode()
    values = sample.drop_nulls()
    if kind == "number" and values.dtype.is_float():
        values = values.filter(values.is_finite())
    if not len(values):
        return ()
    if kind in ("text", "tags"):
        counts = values.cast(pl.String).value_counts(sort=True, name="count")
        texts = counts.sort("count", counts.columns[0], descending=[True, False]).get_column(counts.columns[0])
        short = [text for text in texts if text and len(text) <= _MAX_EXAMPLE_LENGTH and "," not in text]
        return tuple(short[:_MAX_EXAMPLES])
    ordered = values.sort()
    return tuple(dict.fromkeys(_format_example(ordered[index]) for index in (0, len(ordered) // 2, -1)))


def _format_example(value: object) -> str:
    isoformat = getattr(value, "isoformat", None)
    if isoformat is not None:
        return str(isoformat(timespec="seconds") if hasattr(value, "hour") else isoformat())
    return f"{value:.6g}" if isinstance(value, float) else str(value)
