"""The `[ranking]` section of vecall.toml: what orders the recalled items into the final list."""

from typing import Literal

from pydantic import Field

from vecall.settings_base import SettingsModel

RankerName = Literal["none", "lightgbm"]


class RankingSettings(SettingsModel):
    """What orders the recalled items into the final list."""

    ranker: RankerName = Field(
        "none",
        description="lightgbm: trained on what recall returns to the validation users, kept only if it gains on others "
        "of them; needs the extra vecall[ranking]",
    )
