"""Validation of arguments that the publishing functions share. Loads no torch."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vecall.errors import ConfigError, DataError
from vecall.index.scan import MAX_QUERY_VALUE
from vecall.index.settings import IndexSettings


def require_index_settings(index: object) -> IndexSettings:
    """Return index settings; the defaults for None.

    Raises:
        ConfigError: `index` is not an `IndexSettings`.
    """
    if index is None:
        return IndexSettings()
    if not isinstance(index, IndexSettings):
        raise ConfigError(
            f"index: expected IndexSettings, got {index!r:.80}; construct it as IndexSettings(engine=...)"
        )
    return index


def to_array(name: str, values: Any) -> NDArray[Any]:  # noqa: ANN401 - input of any type, to be validated
    """Convert values to an array of real numbers; an array is not copied.

    Raises:
        DataError: The values are not real numbers.
    """
    try:
        array = values if isinstance(values, np.ndarray) else np.asarray(values)
        if array.dtype == object:
            array = array.astype(np.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise DataError(f"{name}: expected an array of numbers, got {type(values).__name__}: {error}") from error
    if np.ma.is_masked(values) or array.dtype.kind not in "fiu":
        received = "a masked array" if np.ma.is_masked(values) else f"{array.dtype}"
        raise DataError(f"{name}: expected an array of real numbers, got {received}")
    return array


def check_queries(queries: NDArray[Any], dim: int) -> None:
    """Check user vectors to tune an index on.

    Raises:
        DataError: They are not [Q, dim], or not finite.
    """
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise DataError(f"queries must be [Q, {dim}], got shape {list(queries.shape)}")
    if not (np.abs(queries) <= np.float64(MAX_QUERY_VALUE)).all():  # a Python float becomes inf beside float16
        raise DataError(f"queries must be finite numbers within ±{MAX_QUERY_VALUE:g}, but some are not")
