"""Cells that hold several values: typed lists, text cut at a separator, and lists that were written out as text."""

import ast
import json
import re

import numpy as np
import polars as pl

from vecall.data.canonical import column_to_text, scalar_to_text

_BRACKETED_PATTERN = r"^\s*\[.*\]\s*$"
_SCALAR_TYPES = (str, int, float, bool, type(None))
_ADJACENT_STRINGS_PATTERN = re.compile(
    r"""["']\s+["']"""
)  # ['a' 'b'], as NumPy writes a list, is the one string 'ab' to Python


def split_tags(column: pl.Series, separator: str) -> pl.Series:
    """Each cell's values as text; empty ones and nulls are left out.

    A text cell in brackets is a list that was written out, as JSON or Python writes it; other text is cut at the
    separator.

    Args:
        column: [n] lists of scalars, or scalars.
        separator: between the values of a text cell.

    Returns:
        [n] List(String); null where the cell is null, or in brackets and not such a list.
    """
    values = column_to_text(column)
    if values.dtype == pl.String:
        values = _split_text(values, separator)
    return values.list.eval(pl.element().filter(pl.element() != ""))  # drops nulls too


def _split_text(text: pl.Series, separator: str) -> pl.Series:
    lists = text.str.split(separator)
    bracketed = text.str.contains(f"(?s){_BRACKETED_PATTERN}").fill_null(value=False)
    if not bracketed.any():
        return lists
    parsed = pl.Series([_parse_list(cell) for cell in text.filter(bracketed)], dtype=pl.List(pl.String))
    return _replace_where(bracketed, lists, parsed)


def _parse_list(text: str) -> list[str] | None:
    """The elements of a list of scalars, None where `text` is something else."""
    try:
        values = json.loads(text)
    except ValueError:
        values = _parse_python_list(text)
    if not isinstance(values, list) or not all(isinstance(value, _SCALAR_TYPES) for value in values):
        return None
    return [scalar_to_text(value) for value in values if value is not None and value == value]


def _parse_python_list(text: str) -> object:
    if _ADJACENT_STRINGS_PATTERN.search(text):
        return None
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def split_numbers(text: pl.Series, separator: str) -> pl.Series:
    """[n] List(String) of text cells that hold a vector: cut at the separator; in brackets, at commas and blanks."""
    bracketed = text.str.contains(f"(?s){_BRACKETED_PATTERN}").fill_null(value=False)
    parts = text.str.split(separator)
    if not bracketed.any():
        return parts
    plain = text.filter(bracketed).str.strip_chars().str.strip_chars("[]").str.replace_all(r"[\s,]+", " ")
    return _replace_where(bracketed, parts, plain.str.strip_chars().str.split(" "))


def _replace_where(mask: pl.Series, lists: pl.Series, replacements: pl.Series) -> pl.Series:
    """`lists` [n] with those at the mask's true places exchanged for `replacements`, in order."""
    places = np.arange(len(lists))
    places[mask.to_numpy()] = len(lists) + np.arange(len(replacements))
    return pl.concat([lists, replacements]).gather(places)
