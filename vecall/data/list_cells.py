"""Parsing of cells that hold several values: typed lists, delimited text, and lists written as text."""

import ast
import json
import re

import numpy as np
import polars as pl

from vecall.data.canonical import UNPAIRED_SURROGATE_PATTERN, column_to_text, scalar_to_text

_MAX_INTEGER_BITS = 1_024  # of an element; Python refuses to write out integers of more than 4,300 digits
_BRACKETED_PATTERN = r"(?s)^\s*\[.*\]\s*$"
# NumPy writes a list as ['a' 'b'], which Python reads as the one string 'ab'.
_ADJACENT_STRINGS_PATTERN = re.compile(r"""["']\s+["']""")


def split_tags(column: pl.Series, separator: str) -> pl.Series:
    """Split each cell into its values; empty values and nulls are dropped.

    Text in brackets is read as a list in JSON or Python syntax; other text is split at the separator.

    Args:
        column: [n] Lists of scalars, or scalars.
        separator: Separates the values of a text cell.

    Returns:
        [n] List(String); null where the cell is null, or is in brackets and not a list of scalars.
    """
    values = column_to_text(column)
    if values.dtype == pl.String:
        values = _split_text(values, separator)
    return values.list.eval(pl.element().filter(pl.element() != ""))  # drops nulls, too


def _split_text(text: pl.Series, separator: str) -> pl.Series:
    lists = text.str.split(separator)
    is_bracketed = text.str.contains(_BRACKETED_PATTERN).fill_null(value=False)
    if not is_bracketed.any():
        return lists
    parsed = pl.Series([_parse_list(cell) for cell in text.filter(is_bracketed)], dtype=pl.List(pl.String))
    return replace_where(is_bracketed, lists, parsed)


def _parse_list(text: str) -> list[str] | None:
    """Return the elements of a list of scalars as text; None where `text` is anything else."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = _parse_python_list(text)
    if not isinstance(values, list) or not all(map(_is_scalar, values)):
        return None
    return [scalar_to_text(value) for value in values if value is not None and value == value]


def _is_scalar(value: object) -> bool:
    if isinstance(value, str):
        return not UNPAIRED_SURROGATE_PATTERN.search(value)  # from an escape such as \ud800: no column can hold it
    if isinstance(value, int):
        return value.bit_length() <= _MAX_INTEGER_BITS
    return value is None or isinstance(value, float)


def _parse_python_list(text: str) -> object:
    if _ADJACENT_STRINGS_PATTERN.search(text):
        return None
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def split_numbers(text: pl.Series, separator: str) -> pl.Series:
    """Split text cells that hold vectors of numbers.

    Args:
        text: [n] String.
        separator: Separates the numbers. Text in brackets is split at commas and blanks instead.

    Returns:
        [n] List(String); null where the cell is null.
    """
    is_bracketed = text.str.contains(_BRACKETED_PATTERN).fill_null(value=False)
    parts = text.str.split(separator)
    if not is_bracketed.any():
        return parts
    numbers = text.filter(is_bracketed).str.strip_chars().str.strip_chars("[]").str.replace_all(r"[\s,]+", " ")
    return replace_where(is_bracketed, parts, numbers.str.strip_chars().str.split(" "))


def replace_where(mask: pl.Series, lists: pl.Series, replacements: pl.Series) -> pl.Series:
    """Return `lists` [n] with `replacements`, in order, where the mask [n] is true."""
    indices = np.arange(len(lists))
    indices[mask.to_numpy()] = len(lists) + np.arange(len(replacements))
    return pl.concat([lists, replacements]).gather(indices)
