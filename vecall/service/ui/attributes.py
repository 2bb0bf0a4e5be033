"""Item attributes as the filter form explains them: type, operations, and examples of values."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import polars as pl

from vecall.data.frames import get_unnamed_column
from vecall.index.sampling import evenly_spaced_rows
from vecall.recall.conditions import LIST_VALUE_OPS, get_supported_ops

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
    rows = evenly_spaced_rows(attributes.height, _SAMPLE_SIZE)
    described = []
    for name, dtype in attributes.schema.items():
        if ops := get_supported_ops(dtype):
            kind, sample = _to_kind(dtype), get_unnamed_column(attributes, name).gather(rows)
            described.append(AttributeInfo(name, kind, ops, _choose_examples(sample, kind)))
    return described


def _to_kind(dtype: pl.DataType) -> AttributeKind:
    """The kind of the values of a column that filters support."""
    match dtype:
        case pl.List() | pl.Array():
            return "tags"
        case pl.String() | pl.Categorical() | pl.Enum() | pl.Null():
            return "text"
        case pl.Boolean():
            return "boolean"
        case pl.Date():
            return "date"
        case pl.Datetime():
            return "datetime"
    return "integer" if dtype.is_integer() else "number"


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
