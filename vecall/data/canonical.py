"""Canonical text of values of any type: 1, 1.0, Decimal("1.00") and the CSV cell "1.0" are the same category.

Tables, requests and upserts all convert categories, tags and string ids by these functions, so a value that was learned
from a Float64 column is recognized when it comes as a JSON integer.
"""

import math
import re
from typing import Any

import numpy as np
import polars as pl

UNPAIRED_SURROGATE_PATTERN = re.compile("[\ud800-\udfff]")  # JSON can contain them, UTF-8 and so Polars cannot

_ZERO_FRACTION_PATTERN = r"^(-?\d+)\.0+$"  # pandas writes integers so if the column has missing cells
_MAX_INTEGRAL_FLOAT = 2.0**126  # an Int128 holds every integral float below this bound
_BOOLEAN_TEXTS = ["true", "false"]


def column_to_text(column: pl.Series) -> pl.Series:
    """Convert a column to text.

    Integral numbers have no fraction, booleans are true and false, times are ISO 8601; text stays as it is.

    Args:
        column: [n] Cells of any type but structs; of lists each element is converted.

    Returns:
        [n] String, or List(String) for lists; null where the cell is null or NaN.
    """
    if isinstance(column.dtype, (pl.List, pl.Array)):
        lists = column.cast(pl.List(column.dtype.inner))
        return lists.list.eval(_to_text_expr(pl.element(), column.dtype.inner))
    return column.rename("cell").to_frame().select(_to_text_expr(pl.col("cell"), column.dtype)).to_series()


def _to_text_expr(cell: pl.Expr, dtype: Any) -> pl.Expr:  # noqa: ANN401 - polars types its inner types loosely
    if dtype.is_float():
        is_integral = (cell == cell.floor()) & (cell.abs() < _MAX_INTEGRAL_FLOAT)
        integers = cell.cast(pl.Int128, strict=False).cast(pl.String)
        return pl.when(is_integral).then(integers).otherwise(cell.fill_nan(None).cast(pl.String))
    text = cell.cast(pl.String)
    if isinstance(dtype, pl.Decimal):
        return text.str.strip_chars_end("0").str.strip_chars_end(".") if dtype.scale else text
    if isinstance(dtype, pl.Datetime):
        iso = cell.dt.to_string("iso:strict")
        return iso.str.replace(r"\.0+($|[+-])", "$1").str.replace(r"(\.\d*[1-9])0+($|[+-])", "$1$2")
    return text


def canonicalize_text(text: pl.Series) -> pl.Series:
    """Map texts that stand for the same value to the same text: "1.0" to "1", "True" to "true", "" to null.

    Other fractions stay as they are: 1.10 and 1.1 may be two versions of a product.

    Args:
        text: [n] String or List(String).

    Returns:
        [n] of the same type.
    """
    if text.dtype == pl.List:
        return text.list.eval(_canonicalize_expr(pl.element()))
    return text.rename("cell").to_frame().select(_canonicalize_expr(pl.col("cell"))).to_series()


def _canonicalize_expr(text: pl.Expr) -> pl.Expr:
    number = text.str.replace(_ZERO_FRACTION_PATTERN, "$1").replace({"-0": "0", "": None})
    boolean = number.str.to_lowercase()
    return pl.when(boolean.is_in(_BOOLEAN_TEXTS)).then(boolean).otherwise(number)


def scalar_to_text(value: object) -> str:
    """Convert a Python or NumPy scalar other than NaN to the text that `column_to_text` gives a cell of it."""
    if isinstance(value, str):
        return value
    if isinstance(value, (bool, np.bool_)):
        return "true" if value else "false"
    if isinstance(value, (float, np.floating)):
        number = float(value)
        if math.isfinite(number) and number == math.floor(number) and abs(number) < _MAX_INTEGRAL_FLOAT:
            return str(int(number))
        is_narrow = isinstance(value, (np.float32, np.float16))
        return str(pl.Series([number]).cast(pl.Float32 if is_narrow else pl.Float64).cast(pl.String)[0])
    return str(value)
