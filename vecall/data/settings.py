"""The `[data]` section of vecall.toml: the tables, and how their interactions are split."""

from datetime import datetime
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from vecall.settings_base import SettingsModel

Timestamp = int | float | str  # a number in the unit of the time column, or ISO 8601 text


class CsvSettings(SettingsModel):
    """Format of CSV and TSV tables."""

    separator: str | None = Field(
        None, min_length=1, max_length=1, description="between columns; if unset, a comma, or a tab in .tsv files"
    )
    quote: Literal['"', ""] = Field(
        '"', description="around cells that hold the separator or a line end; empty where a quote is part of the text"
    )
    decimal: Literal[".", ","] = Field(".", description="decimal separator")


class DataSettings(SettingsModel):
    """Paths of the tables, and the split into training, validation and test."""

    interactions: tuple[Path, ...] = Field(min_length=1, description="one table, or a list of them")
    items: Path | None = Field(None, description="items table; if unset, the items are those of the interactions")
    users: Path | None = Field(None, description="users table; if unset, the users are those of the interactions")
    bad_rows: Literal["error", "drop"] = Field(
        "error",
        description="drop: rows with an invalid id, time, label, impression, event or part are dropped, invalid "
        "features and attributes become missing values, and both are counted",
    )
    csv: CsvSettings = CsvSettings()
    split: Literal["leave_one_out", "global_time", "random", "given"] = Field(
        "leave_one_out",
        description="leave_one_out: the last positive of each user is the test, the last but one the validation; "
        "global_time: periods from valid_from and test_from on; random: 80, 10 and 10 % of each user's items, of users "
        "with at least 5; given: as split_column says",
    )
    split_seed: int = Field(0, ge=0, description="random: seed of the draw")
    split_column: str | None = Field(
        None,
        description="given: column that says train, valid or test; without valid, a tenth of train is it: the "
        "newest of each user if the test is later, else a random one",
    )
    repeats: Literal["keep", "first", "last"] = Field(
        "keep", description="which to keep of the interactions of the same user, item and kind; keep: all of them"
    )
    valid_from: Timestamp | None = Field(None, description="global_time: start of the validation period")
    test_from: Timestamp | None = Field(None, description="global_time: start of the test period")

    @field_validator("interactions", mode="before")
    @classmethod
    def _wrap_single_path(cls, value: object) -> object:
        return (value,) if isinstance(value, (str, Path)) else value

    @field_validator("valid_from", "test_from", mode="before")
    @classmethod
    def _validate_timestamp(cls, value: object) -> object:
        """Convert TOML dates to text, which JSON can hold too."""
        if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
            return value
        try:
            datetime.fromisoformat(str(value))
        except ValueError:
            raise ValueError("expected a number or an ISO 8601 time, such as 2018-06-01") from None
        return str(value)

    @model_validator(mode="after")
    def _validate_cutoffs(self) -> Self:
        has_cutoffs = (self.valid_from is not None, self.test_from is not None)
        if self.split == "global_time" and not all(has_cutoffs):
            raise ValueError("split = 'global_time' needs both valid_from and test_from")
        if self.split != "global_time" and any(has_cutoffs):
            raise ValueError("valid_from and test_from go with split = 'global_time'; leave them out")
        return self

    @model_validator(mode="after")
    def _validate_split_keys(self) -> Self:
        if self.split == "given" and self.split_column is None:
            raise ValueError(
                "split = 'given' needs split_column, the name of a column of the interactions with train, valid or test"
            )
        if self.split != "given" and self.split_column is not None:
            raise ValueError("split_column goes with split = 'given'; leave it out, or set split")
        if self.split != "random" and self.split_seed:
            raise ValueError("split_seed goes with split = 'random'; leave it out, or set split")
        return self

    def resolve_paths(self, base_directory: Path) -> Self:
        """Return the settings with relative paths resolved against `base_directory`."""
        return self.model_copy(
            update={
                "interactions": tuple(base_directory / path for path in self.interactions),
                "items": None if self.items is None else base_directory / self.items,
                "users": None if self.users is None else base_directory / self.users,
            }
        )
