"""How the table of similar items is built: kept in the summary of a run, found on validation."""

from pydantic import Field

from vecall.settings_base import SettingsModel


class SimilarPlan(SettingsModel):
    """What the table of similar items counts beside pairs of items in one history."""

    second_order: float = Field(0.0, ge=0, description="weight of neighbours of neighbours; 0: they do not count")
    reason: str = Field("", description="why so, for people")
