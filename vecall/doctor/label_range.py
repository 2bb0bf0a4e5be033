"""Range of the label column of the interactions table."""

import polars as pl

from vecall.data.casting import cast_number
from vecall.data.frames import get_unnamed_column
from vecall.data.readers import scan_table
from vecall.data.settings import DataSettings
from vecall.doctor.context import LabelRange
from vecall.schema import InteractionSchema


def read_label_range(settings: DataSettings, schema: InteractionSchema) -> LabelRange | None:
    """Read the label column of all files; None without one, or if it has no number.

    Raises:
        DataError: A file cannot be read.
    """
    if schema.label is None:
        return None
    counts: dict[float, int] = {}  # of the lowest label of each batch
    maximum, total = float("-inf"), 0
    for path in settings.interactions:
        for batch in scan_table(path, settings.csv).iterate_batches([schema.label]):
            column = get_unnamed_column(batch, schema.label)
            labels = cast_number(column, is_optional=True, decimal=settings.csv.decimal).values.cast(pl.Float64)
            labels = labels.drop_nulls()
            if not len(labels):
                continue
            values = labels.to_numpy()
            lowest = float(values.min())
            counts[lowest] = counts.get(lowest, 0) + int((values == lowest).sum())
            maximum, total = max(maximum, float(values.max())), total + len(values)
    if not total:
        return None
    minimum = min(counts)
    return LabelRange(minimum, maximum, counts[minimum] / total)
