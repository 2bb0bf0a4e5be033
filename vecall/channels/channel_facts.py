"""What a release knows of its channels beside their tables: which were turned off, and what its data showed."""

from pydantic import Field

from vecall.settings_base import SettingsModel


class ChannelFacts(SettingsModel):
    """Settings of the channels that serving needs, and facts of the data; the defaults hold where none were stored."""

    second_order: float = Field(0.0, ge=0, description="weight of neighbours of neighbours in the table of `similar`")
    popular: bool = Field(True, description="false: turned off in the settings")
    repeat: bool = Field(True, description="false: turned off in the settings, or users hardly take an item again")
    repeat_share: float | None = Field(
        None, ge=0, le=1, description="share of positives that repeat an earlier one of the user; None: not measured"
    )
    fresh_days: float | None = Field(None, gt=0, description="an item is new for so long; None: turned off")
    created: str | None = Field(None, description="attribute with the time that an item came; None without one")
    clock_offset_us: int = Field(
        0, le=0, description="newest time of the data at publishing minus the time of publishing, microseconds"
    )


NO_FACTS = ChannelFacts()
