"""The channels by name, and which of them a release can answer by."""

from collections.abc import Mapping

from vecall.channels.settings import CHANNEL_NAMES, ChannelName
from vecall.recall.channels.base import Channel
from vecall.recall.channels.repeat import recall_repeats
from vecall.recall.channels.similar import recall_similar
from vecall.release.release import Release

# All but the channel of vectors, which `vecall.recall.search` is.
CHANNELS: Mapping[ChannelName, Channel] = {"similar": recall_similar, "repeat": recall_repeats}

VECTOR_CHANNELS = frozenset({"vector", "fresh"})  # those that read the user's vector


def list_available_channels(release: Release) -> tuple[ChannelName, ...]:
    """Return the names of the channels that can answer queries to a release."""
    has_data = {
        "vector": True,
        "similar": release.channels.similar is not None,
        "repeat": release.users is not None,
    }
    return tuple(name for name in CHANNEL_NAMES if has_data.get(name, False))
