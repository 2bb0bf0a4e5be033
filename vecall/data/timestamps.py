"""Times as text and as numbers, exact to the nanosecond and beyond the years that Python has."""

import re
from datetime import UTC, datetime

NS_PER_UNIT = {"ms": 10**6, "us": 10**3, "ns": 1}  # of Datetime columns
NS_PER_DAY = 86_400 * 10**9

# Digits of a fraction that Python's own parser leaves out.
_NANOSECONDS = re.compile(r"[.,]\d{6}(\d{1,3})")


def moment_to_microseconds(moment: datetime) -> int:
    """Microseconds since 1970; a moment without a zone is taken as UTC."""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def parse_time(text: object) -> int | None:
    """Nanoseconds since 1970 of ISO 8601 text, without a zone in UTC; None where it is no such text."""
    if not isinstance(text, str):
        return None
    try:
        microseconds = moment_to_microseconds(datetime.fromisoformat(text))
    except ValueError:
        return None
    beyond = _NANOSECONDS.search(text)
    return NS_PER_UNIT["us"] * microseconds + (int(beyond[1].ljust(3, "0")) if beyond else 0)
