"""Checks of the fields of a request; an error names the field to blame."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vecall.errors import QueryError


def check(field: str, is_valid: bool, value: object, expected: str) -> None:
    """Check one field.

    Args:
        field: Path of the field, for the error.
        is_valid: Whether it is as it should be.
        value: What came.
        expected: What was expected, in words.

    Raises:
        QueryError: It is not.
    """
    if not is_valid:
        raise QueryError(f"{field}: expected {expected}, got {value!r:.80}", field=field)


def check_object(request: object, known_keys: Iterable[str]) -> dict[str, Any]:
    """Return a decoded JSON object after checking its keys.

    Raises:
        QueryError: It is not an object, or has an unknown key.
    """
    if not isinstance(request, dict):
        raise QueryError(f"expected an object, got {type(request).__name__}")
    known = set(known_keys)
    for key in request:
        if key not in known:
            raise QueryError(f"unknown key {key!r}; expected some of {sorted(known)}", field=str(key))
    return request


def check_each(field: str, values: object, predicate: Callable[[object], bool], expected: str) -> None:
    """Check a list and each of its elements; the error names the first wrong element, such as `where[2]`."""
    is_sequence = isinstance(values, (Sequence, np.ndarray)) and not isinstance(values, (str, bytes))
    check(field, is_sequence, values, f"a list of {expected}")
    elements: Iterable[object] = values  # type: ignore[assignment]
    if not all(map(predicate, elements)):  # of a valid list nothing more is computed
        index, value = next((index, value) for index, value in enumerate(elements) if not predicate(value))
        check(f"{field}[{index}]", False, value, f"a list of {expected}")


def is_integer(value: object) -> bool:
    """Return whether a value is a Python or NumPy integer, not a boolean."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_bool(value: object) -> bool:
    """Return whether a value is a Python or NumPy boolean."""
    return isinstance(value, (bool, np.bool_))


def is_text(value: object) -> bool:
    """Return whether a value is a string."""
    return isinstance(value, str)


def is_mapping(value: object) -> bool:
    """Return whether a value is a mapping, as a JSON object is."""
    return isinstance(value, Mapping)
