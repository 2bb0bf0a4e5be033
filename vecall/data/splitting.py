"""Split of interactions into training, validation and test, as the settings say."""

from datetime import datetime

from vecall.data.interactions import Interactions
from vecall.data.settings import DataSettings, Timestamp
from vecall.data.split import ColumnTime, Split, add_train_columns, format_time
from vecall.data.time_splits import split_global_time, split_last_positives
from vecall.data.timestamps import to_unix_micros
from vecall.data.unordered_splits import split_at_random, split_by_column
from vecall.errors import DataError


def split_interactions(interactions: Interactions, n_users: int, settings: DataSettings) -> Split:
    """Split as `settings.split` says.

    Args:
        interactions: All interactions.
        n_users: U, number of users of the catalogue, those without interactions included.
        settings: The kind of split and its cutoffs.

    Raises:
        DataError: A part is empty, or a cutoff is not of the kind of the time column.
    """
    if settings.split == "leave_one_out":
        result = split_last_positives(interactions, n_users)
    elif settings.split == "random":
        result = split_at_random(interactions, n_users, settings.split_seed)
    elif settings.split == "given":
        result = split_by_column(interactions, n_users)
    else:
        valid_from = _parse_cutoff("data.valid_from", settings.valid_from, interactions)
        test_from = _parse_cutoff("data.test_from", settings.test_from, interactions)
        result = split_global_time(interactions, n_users, valid_from, test_from)
    result = add_train_columns(result, interactions)
    sizes = {"train": len(result.train.values), "validation": len(result.valid), "test": len(result.test)}
    for part, size in sizes.items():
        if size == 0:
            first, last = (
                format_time(bound.item(), interactions)
                for bound in (interactions.times.min(), interactions.times.max())
            )
            users = dict(result.user_counts_by_reason) or n_users
            raise DataError(
                f"{result.protocol}: the {part} part is empty. There are {int(interactions.is_positive.sum())} "
                f"positives, and times go from {first} to {last}; users: {users}"
            )
    return result


def _parse_cutoff(key: str, timestamp: Timestamp | None, interactions: Interactions) -> ColumnTime:
    """Convert a cutoff of the settings to the unit of the time column."""
    if timestamp is None:
        raise DataError(f"{key} is missing: split = 'global_time' needs valid_from and test_from")
    if isinstance(timestamp, str) != interactions.has_datetimes:
        actual, expected = (
            ("datetimes", "a date or datetime") if interactions.has_datetimes else ("numbers", "a number in their unit")
        )
        raise DataError(f"{key} is {timestamp!r}, but the interactions' times are {actual}: set it to {expected}")
    return to_unix_micros(datetime.fromisoformat(timestamp)) if isinstance(timestamp, str) else timestamp
