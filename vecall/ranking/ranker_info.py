"""Which ranker a run or a release has, and why: an entry of the manifest."""

from pydantic import Field

from vecall.ranking.settings import RankerName
from vecall.settings_base import SettingsModel


class RankerInfo(SettingsModel):
    """Which ranker a run or a release has, and why."""

    name: RankerName = Field("none", description="none: recall's order is the final order")
    reason: str = Field("none was trained", description="why it was kept, or why there is none, for people")


NO_RANKER = RankerInfo()
