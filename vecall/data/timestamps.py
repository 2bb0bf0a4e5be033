"""Times as text and as numbers, exact to the nanosecond and beyond the years that Python has."""

import re
from datetime import UTC, datetime

NS_PER_UNIT = {"ms": 10**6, "us": 10**3, "ns": 1}  # of Datetime columns
NS_PER_DAY = 86_400 * 10**9

# Digits of a fraction that Python's own parser leaves out.
_SUBMICROSECOND_PATTERN = re.compile(r"[.,]\d{6}(\d{1,3})")


def to_unix_micros(timestamp: datetime) -> int:
    """Microseconds since 1970; a moment without a zone is taken as UTC."""
    if timestamp.tzinfo is None:
        timestamp = timestamp.replace(tzinfo=UTC)
    since = timestamp - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def parse_iso8601_ns(text: object) -> int | None:
    """Nanoseconds since 1970 of ISO 8601 text, without a zone in UTC; None where it is no such text."""
    if not isinstance(text, str):
        return None
    try:
        microseconds = to_unix_micros(datetime.fromisoformat(text))
    except ValueError:
        return None
    beyond = _SUBMICROSECOND_PATTERN.search(text)
    return NS_PER_UNIT["us"] * microseconds + (int(beyond[1].ljust(3, "0")) if beyond else 0)
