"""How old items are, by the clock of the data."""

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import Rows, Scores
from vecall.data.frames import get_unnamed_column
from vecall.live.snapshot import Snapshot
from vecall.release.creation_times import UNKNOWN_TIME, to_creation_micros

MICROS_PER_DAY = 86_400 * 10**6


def compute_data_time(snapshot: Snapshot, now_ns: int) -> int:
    """Return the time that it is in the data, microseconds since 1970.

    That is the newest time of an interaction or a creation that was known at publishing, plus what has passed since, so
    that items of an old data set are as new as they were in it.

    Args:
        snapshot: What is searched.
        now_ns: The present time of the clock, nanoseconds since 1970.
    """
    return now_ns // 1000 + snapshot.release.channels.facts.clock_offset_us


def get_creation_micros(snapshot: Snapshot, rows: Rows) -> NDArray[np.int64]:
    """Return when the items at `rows` came, microseconds since 1970; `UNKNOWN_TIME` where it is not known."""
    times, created = snapshot.release.creation_times, snapshot.release.channels.facts.created
    if times is None or created is None:
        return np.full(len(rows), UNKNOWN_TIME)
    slots = rows - snapshot.release.vectors.size
    in_delta = slots >= 0
    micros = np.empty(len(rows), dtype=np.int64)
    micros[~in_delta] = times.micros[rows[~in_delta]]
    if in_delta.any():
        column = get_unnamed_column(snapshot.delta.attributes, created)
        micros[in_delta] = to_creation_micros(column.gather(slots[in_delta]))
    return micros


def compute_age_days(snapshot: Snapshot, rows: Rows, now_ns: int) -> Scores:
    """Return the age of the items at `rows` in days, at least 0; NaN where it is not known.

    Args:
        snapshot: What is searched.
        rows: [n] rows.
        now_ns: As for `compute_data_time`.
    """
    micros = get_creation_micros(snapshot, rows)
    is_known = micros != UNKNOWN_TIME
    ages = np.full(len(rows), np.nan, dtype=np.float32)
    ages[is_known] = np.maximum(compute_data_time(snapshot, now_ns) - micros[is_known], 0) / MICROS_PER_DAY
    return ages
