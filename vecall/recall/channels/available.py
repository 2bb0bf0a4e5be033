"""The channels by name, and which of them a release can answer by."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vecall.channels.channel_tables import ChannelTables
from vecall.channels.settings import CHANNEL_NAMES, ChannelName
from vecall.recall.channels.base import Channel
from vecall.recall.channels.fresh import recall_fresh
from vecall.recall.channels.popular import recall_popular
from vecall.recall.channels.repeat import recall_repeats
from vecall.recall.channels.similar import recall_similar
from vecall.release.users import UserTable

# All but the channel of vectors, which `vecall.recall.search` is.
CHANNELS: Mapping[ChannelName, Channel] = {
    "similar": recall_similar,
    "popular": recall_popular,
    "fresh": recall_fresh,
    "repeat": recall_repeats,
}

VECTOR_CHANNELS = frozenset({"vector", "fresh"})  # those that read the user's vector


class ChannelSource(Protocol):
    """What says which channels there are: a release, or the contents that one is written from."""

    @property
    def channels(self) -> ChannelTables:
        """What the channels read."""

    @property
    def popularity(self) -> NDArray[np.float32] | None:
        """[N] number of positive interactions per item; None where it is not known."""

    @property
    def users(self) -> UserTable | None:
        """Known users; None where there are none."""


def list_available_channels(release: ChannelSource) -> tuple[ChannelName, ...]:
    """Return the names of the channels that can answer queries to a release, as far as its settings want them."""
    tables, facts = release.channels, release.channels.facts
    has_data = {
        "vector": True,
        "similar": tables.similar is not None,
        "popular": facts.popular and (tables.popular is not None or release.popularity is not None),
        "fresh": facts.fresh_days is not None,
        "repeat": facts.repeat and release.users is not None,
    }
    return tuple(name for name in CHANNEL_NAMES if has_data.get(name, False))
