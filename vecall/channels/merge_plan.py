"""How the rankings of several channels become one: kept in a release's manifest, found on validation."""

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import Field

from vecall.channels.settings import ChannelName
from vecall.settings_base import SettingsModel

DEFAULT_WEIGHT = 1.0  # of a channel that a request names and the plan does not


class MergePlan(SettingsModel):
    """Method of merging, and the part of each channel in it."""

    method: Literal["rrf", "quota"] = Field("rrf", description="see `vecall.recall.merging`")
    weights: dict[ChannelName, Annotated[float, Field(gt=0)]] = Field(
        {"vector": 1.0}, description="by channel: weight of its reciprocal rank, or its quota; others are not used"
    )
    depth: int = Field(
        0, ge=0, description="items that each of several channels is asked for, if that is more than the request's k"
    )
    reason: str = Field("", description="why so, for people")

    @property
    def channels(self) -> tuple[ChannelName, ...]:
        """The channels that a request uses if it names none."""
        return tuple(self.weights)

    def select(self, channels: tuple[ChannelName, ...]) -> "MergePlan":
        """Return the plan for the channels that a request names."""
        weights = {name: self.weights.get(name, DEFAULT_WEIGHT) for name in channels}
        return self.model_copy(update={"weights": weights})

    def get_channel_k(self, k: int) -> int:
        """Return how many items a request for k asks each channel for; k itself where a single channel answers."""
        return k if len(self.weights) == 1 else max(k, self.depth)

    def restrict(self, available: Collection[ChannelName]) -> "MergePlan":
        """Return the plan without the channels that a release does not have; vectors alone if none remains."""
        weights = {name: weight for name, weight in self.weights.items() if name in available}
        return self.model_copy(update={"weights": weights}) if weights else VECTORS_ALONE

    def __str__(self) -> str:
        """Return method and weights, such as "rrf of vector 1, similar 0.5"."""
        if len(self.weights) == 1:
            return f"{self.channels[0]} alone"
        return f"{self.method} of " + ", ".join(f"{name} {weight:g}" for name, weight in self.weights.items())


VECTORS_ALONE = MergePlan()
