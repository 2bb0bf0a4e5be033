"""One spelling for one value, whatever type brings it: 1, 1.0, Decimal("1.00") and the CSV cell "1.0" are one category.

Tables, requests and upserts write categories, tags and string ids through these functions, so that a value learned from
a Float64 column is found again by a JSON integer.
"""

import math
from typing import Any

import numpy as np
import polars as pl

_ZERO_FRACTION_PATTERN = r"^(-?\d+)\.0+$"  # how pandas writes integers of a column with missing cells
_MAX_INTEGRAL_FLOAT = 2.0**126  # an Int128 holds every whole float below
_BOOLEAN_TEXTS = ["true", "false"]


def column_to_text(column: pl.Series) -> pl.Series:
    """Text of each cell: whole numbers without a fraction, flags as true and false, times as ISO 8601, text as it is.

    Args:
        column: [n] cells of any type but structs; of a list each element is spelled.

    Returns:
        [n] String, or List(String); null where the cell is null or NaN.
    """
    if isinstance(column.dtype, (pl.List, pl.Array)):
        lists = column.cast(pl.List(column.dtype.inner))
        return lists.list.eval(_to_text_expr(pl.element(), column.dtype.inner))
    return column.rename("cell").to_frame().select(_to_text_expr(pl.col("cell"), column.dtype)).to_series()


def _to_text_expr(cell: pl.Expr, dtype: Any) -> pl.Expr:  # noqa: ANN401 - polars types its inner types loosely
    if dtype.is_float():
        whole = (cell == cell.floor()) & (cell.abs() < _MAX_INTEGRAL_FLOAT)
        integers = cell.cast(pl.Int128, strict=False).cast(pl.String)
        return pl.when(whole).then(integers).otherwise(cell.fill_nan(None).cast(pl.String))
    text = cell.cast(pl.String)
    if isinstance(dtype, pl.Decimal):
        return text.str.strip_chars_end("0").str.strip_chars_end(".") if dtype.scale else text
    if isinstance(dtype, pl.Datetime):
        iso = cell.dt.to_string("iso:strict")
        return iso.str.replace(r"\.0+($|[+-])", "$1").str.replace(r"(\.\d*[1-9])0+($|[+-])", "$1$2")
    return text


def canonicalize_text(text: pl.Series) -> pl.Series:
    """Text of values that are compared, one for all spellings: "1.0" is "1", "True" is "true", "" is missing.

    Numbers that are not whole stay as they are: 1.10 and 1.1 may be two versions.

    Args:
        text: [n] String, or List(String).
    """
    if text.dtype == pl.List:
        return text.list.eval(_canonicalize_expr(pl.element()))
    return text.rename("cell").to_frame().select(_canonicalize_expr(pl.col("cell"))).to_series()


def _canonicalize_expr(text: pl.Expr) -> pl.Expr:
    folded = text.str.replace(_ZERO_FRACTION_PATTERN, "$1").replace({"-0": "0", "": None})
    flag = folded.str.to_lowercase()
    return pl.when(flag.is_in(_BOOLEAN_TEXTS)).then(flag).otherwise(folded)


def scalar_to_text(value: object) -> str:
    """As `spell`, for one scalar of Python or NumPy that is not NaN."""
    if isinstance(value, str):
        return value
    if isinstance(value, (bool, np.bool_)):
        return "true" if value else "false"
    if isinstance(value, (float, np.floating)):
        number = float(value)
        if math.isfinite(number) and number == math.floor(number) and abs(number) < _MAX_INTEGRAL_FLOAT:
            return str(int(number))
        narrow = isinstance(value, (np.float32, np.float16))
        return str(pl.Series([number]).cast(pl.Float32 if narrow else pl.Float64).cast(pl.String)[0])
    return str(value)
