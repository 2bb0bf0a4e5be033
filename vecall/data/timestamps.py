"""Conversion of datetimes and ISO 8601 text to integers since 1970, exact to the nanosecond."""

import re
from datetime import UTC, datetime

NS_PER_UNIT = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}  # a Polars Datetime has all units but the first
NS_PER_DAY = 86_400 * 10**9

# The 7th to 9th digit of a fraction, which datetime.fromisoformat ignores.
_SUBMICROSECOND_PATTERN = re.compile(r"[.,]\d{6}(\d{1,3})")


def to_unix_micros(timestamp: datetime) -> int:
    """Return microseconds since 1970; a datetime without a time zone is in UTC."""
    if timestamp.tzinfo is None:
        timestamp = timestamp.replace(tzinfo=UTC)
    since_epoch = timestamp - datetime(1970, 1, 1, tzinfo=UTC)
    return (since_epoch.days * 86_400 + since_epoch.seconds) * 1_000_000 + since_epoch.microseconds


# The range of Python's datetime, in which results and pages show times.
MIN_UNIX_MICROS = to_unix_micros(datetime.min)
MAX_UNIX_MICROS = to_unix_micros(datetime.max)


def parse_iso8601_ns(text: object) -> int | None:
    """Return nanoseconds since 1970 of ISO 8601 text, in UTC if it has no time zone; None for anything else."""
    if not isinstance(text, str):
        return None
    try:
        microseconds = to_unix_micros(datetime.fromisoformat(text))
    except ValueError:
        return None
    digits = _SUBMICROSECOND_PATTERN.search(text)
    return NS_PER_UNIT["us"] * microseconds + (int(digits[1].ljust(3, "0")) if digits else 0)
