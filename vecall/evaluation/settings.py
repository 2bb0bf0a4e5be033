"""The `[evaluation]` section of vecall.toml."""

from itertools import pairwise

from pydantic import Field, field_validator

from vecall.schema import Schema
from vecall.settings_base import SettingsModel

USER_AGE, HISTORY_LENGTH, ITEM_POPULARITY = BUILT_IN_SEGMENTS = ("user_age", "history_length", "item_popularity")
GROUPED_FEATURE_KINDS = {"numeric", "category", "tags"}  # of features by whose values targets can be divided


class EvaluationSettings(SettingsModel):
    """Depths at which models are evaluated, parts of the users and items of which metrics are told, and baselines."""

    ks: tuple[int, ...] = Field((10, 50, 100, 200, 500), min_length=1, description="depths k of recall@k, ascending")
    segments: tuple[str, ...] = Field(
        BUILT_IN_SEGMENTS,
        description="evaluate gives metrics by user_age, history_length, item_popularity, or a feature or attribute: "
        "its name, or users.NAME or items.NAME",
    )
    baselines: bool = Field(
        True, description="whether fit evaluates popularity, EASE and co-occurrence beside the model, and compares"
    )

    @field_validator("ks")
    @classmethod
    def _validate_ks(cls, ks: tuple[int, ...]) -> tuple[int, ...]:
        if ks[0] < 1 or any(later <= earlier for earlier, later in pairwise(ks)):
            raise ValueError(f"expected ascending numbers of at least 1, such as [10, 100]; got {list(ks)}")
        return ks

    @field_validator("segments")
    @classmethod
    def _validate_segments(cls, segments: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(segments)) < len(segments):
            raise ValueError(f"names a segment twice: {list(segments)}")
        return segments

    def check_segments(self, schema: Schema) -> None:
        """Check that each segment is built in or a column that can be grouped.

        Raises:
            ValueError: As for `find_segment_column`.
        """
        for name in self.segments:
            if name not in BUILT_IN_SEGMENTS:
                find_segment_column(name, schema)


def find_segment_column(name: str, schema: Schema) -> tuple[str, str]:
    """Return the table, "users" or "items", and the column of a segment that is not built in.

    Args:
        name: A column, or users.COLUMN or items.COLUMN.
        schema: Its columns are numeric, category and tags features, and attributes.

    Raises:
        ValueError: There is no such column, both tables have it, or its values cannot be grouped.
    """
    columns = {
        "users": {column for column, feature in schema.users.features.items() if feature.kind in GROUPED_FEATURE_KINDS},
        "items": {column for column, feature in schema.items.features.items() if feature.kind in GROUPED_FEATURE_KINDS}
        | {*schema.items.attributes, *filter(None, (schema.items.title, schema.items.created))},
    }
    matches = [
        (table, column)
        for table, known in columns.items()
        for column in (name, name.removeprefix(f"{table}."))
        if column in known
    ]
    if len(set(matches)) == 1:
        return matches[0]
    if matches:
        raise ValueError(f"evaluation.segments: both tables have {name!r}; write 'users.{name}' or 'items.{name}'")
    available = [*BUILT_IN_SEGMENTS, *sorted(f"{table}.{column}" for table in columns for column in columns[table])]
    raise ValueError(
        f"evaluation.segments: {name!r} is neither built in nor an attribute, or a numeric, category or tags feature; "
        f"expected some of {available}"
    )
