"""The `[channels]` section of vecall.toml: what is recalled beside the vectors, and how it is merged."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from vecall.schema import CategoryFeature, Schema
from vecall.settings_base import SettingsModel

ChannelName = Literal["vector", "similar", "popular", "fresh", "repeat"]
CHANNEL_NAMES: tuple[ChannelName, ...] = ("vector", "similar", "popular", "fresh", "repeat")


class SimilarChannelSettings(SettingsModel):
    """Items that the same users took near in time to the newest items of the history."""

    second_order: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        "auto",
        description="weight of neighbours of neighbours in the similarity of two items; auto: 1 if validation finds "
        "that they gain, else 0",
    )


class PopularChannelSettings(SettingsModel):
    """Items that many users took lately."""

    days: float = Field(30.0, gt=0, description="window that ends with the newest interaction; needs times with a unit")
    by: str | None = Field(None, description="attribute of items: popular within the values that the history has")
    by_user: str | None = Field(
        None, description="category feature of users: popular among the users with the same value"
    )


class FreshChannelSettings(SettingsModel):
    """New items, by the user's vector."""

    days: float = Field(7.0, gt=0, description="an item is new for so long after schema.items.created")


class RepeatChannelSettings(SettingsModel):
    """Items of the user's own history, for requests with exclude_seen = false."""


class ChannelsSettings(SettingsModel):
    """What is recalled beside the vectors, and how it is merged. A channel that the data do not allow is left out."""

    similar: SimilarChannelSettings | Literal[False] = Field(
        SimilarChannelSettings(), description="items that were taken near those of the history; false: without"
    )
    popular: PopularChannelSettings | Literal[False] = Field(
        PopularChannelSettings(), description="items that many took lately; false: without"
    )
    fresh: FreshChannelSettings | Literal[False] = Field(
        False, description="new items by content; {} or { days = 7 } turns it on"
    )
    repeat: RepeatChannelSettings | Literal[False] = Field(
        RepeatChannelSettings(), description="what the user takes again; false: without"
    )
    merge: Literal["auto", "rrf", "quota"] = Field(
        "auto",
        description="auto: as validation finds best, perhaps vectors alone; rrf: sum of weighted reciprocal ranks; "
        "quota: each channel gets a share of the answer",
    )
    weights: dict[ChannelName, Annotated[float, Field(gt=0)]] | None = Field(
        None,
        description="by channel, vector among them: rrf: factor of its reciprocal rank; quota: its share; channels "
        "that are not listed are not merged; if unset, found on validation",
    )

    @model_validator(mode="after")
    def _validate_weights(self) -> "ChannelsSettings":
        if self.weights is None:
            return self
        if self.merge == "auto":
            raise ValueError("weights go with merge = 'rrf' or 'quota'; set merge, or leave them out to be found")
        if "vector" not in self.weights:
            raise ValueError(
                f"weights: expected 'vector' among them, got {list(self.weights)}; without it a request may get fewer "
                "than k items. Requests that want other channels alone name them"
            )
        if off := [name for name in self.weights if getattr(self, name, None) is False]:
            raise ValueError(f"weights: {off} are turned off; turn them on, or leave their weights out")
        return self

    @property
    def second_order(self) -> float:
        """Weight of neighbours of neighbours in the table of similar items; 0 while it is "auto", and without it."""
        return 0.0 if self.similar is False or self.similar.second_order == "auto" else self.similar.second_order

    def resolve_second_order(self, weight: float) -> "ChannelsSettings":
        """Return the settings with this weight of neighbours of neighbours where they have "auto"."""
        if self.similar is False or self.similar.second_order != "auto":
            return self
        similar = self.similar.model_copy(update={"second_order": weight})
        return self.model_copy(update={"similar": similar})

    def check_columns(self, schema: Schema) -> None:
        """Check that the columns that the channels name exist, and have values to group by.

        Raises:
            ValueError: `popular.by` is not an attribute of items, or of times or fractions; or `popular.by_user` is not
                a category feature of users.
        """
        if self.popular is False:
            return
        attributes, by, by_user = schema.items.attributes, self.popular.by, self.popular.by_user
        if by is not None and (by not in attributes or attributes[by] in ("number", "datetime")):
            grouped = sorted(name for name, kind in attributes.items() if kind not in ("number", "datetime"))
            raise ValueError(f"channels.popular.by: expected an attribute of items of {grouped}, got {by!r}")
        categories = sorted(
            name for name, feature in schema.users.features.items() if isinstance(feature, CategoryFeature)
        )
        if by_user is not None and by_user not in categories:
            raise ValueError(
                f"channels.popular.by_user: expected a category feature of users of {categories}, got {by_user!r}"
            )
