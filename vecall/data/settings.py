"""The `[data]` section of vecall.toml: which tables, and how they are split."""

from datetime import datetime
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from vecall.settings_base import SettingsModel

Timestamp = int | float | str  # text is ISO 8601


class CsvSettings(SettingsModel):
    """How text tables are written."""

    separator: str | None = Field(None, min_length=1, max_length=1, description="a comma; of .tsv files a tab")
    decimal: Literal[".", ","] = Field(".", description="what stands before the fraction of a number")


class DataSettings(SettingsModel):
    """Where the tables lie and how time is cut."""

    interactions: tuple[Path, ...] = Field(min_length=1, description="one table, or a list of them")
    items: Path | None = None
    users: Path | None = None
    bad_rows: Literal["error", "drop"] = Field(
        "error", description="drop: rows without usable ids are left out, unreadable features are missing, both counted"
    )
    csv: CsvSettings = CsvSettings()
    split: Literal["leave_one_out", "global_time"] = "leave_one_out"
    valid_from: Timestamp | None = Field(None, description="global_time: where validation begins")
    test_from: Timestamp | None = Field(None, description="global_time: where the test begins")

    @field_validator("interactions", mode="before")
    @classmethod
    def _wrap_single_path(cls, value: object) -> object:
        return (value,) if isinstance(value, (str, Path)) else value

    @field_validator("valid_from", "test_from", mode="before")
    @classmethod
    def _validate_timestamp(cls, value: object) -> object:
        """TOML's own dates become text, as JSON would have them, so that settings survive both."""
        if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
            return value
        try:
            datetime.fromisoformat(str(value))
        except ValueError:
            raise ValueError("expected a number or an ISO 8601 time, such as 2018-06-01") from None
        return str(value)

    @model_validator(mode="after")
    def _validate_cutoffs(self) -> Self:
        cuts = (self.valid_from is not None, self.test_from is not None)
        if self.split == "global_time" and not all(cuts):
            raise ValueError("split = 'global_time' needs both valid_from and test_from")
        if self.split == "leave_one_out" and any(cuts):
            raise ValueError("valid_from and test_from go with split = 'global_time'; leave them out")
        return self

    def resolve_paths(self, base_directory: Path) -> Self:
        """The same settings with relative paths taken from `base_directory`."""
        return self.model_copy(
            update={
                "interactions": tuple(base_directory / path for path in self.interactions),
                "items": None if self.items is None else base_directory / self.items,
                "users": None if self.users is None else base_directory / self.users,
            }
        )
