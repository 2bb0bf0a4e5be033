"""The tables of a release's channels, built from interactions."""

import time

from vecall.channels.channel_tables import ChannelTables
from vecall.channels.facts_builder import build_channel_facts
from vecall.channels.popular_builder import build_popular_items
from vecall.channels.settings import ChannelsSettings
from vecall.data.dataset import Dataset
from vecall.data.interactions import Interactions


def build_channel_tables(settings: ChannelsSettings, dataset: Dataset, positives: Interactions) -> ChannelTables:
    """Build what the channels read, as far as the settings want them and the data allow them.

    Args:
        settings: The channels.
        dataset: Its items and users.
        positives: The positive interactions to build from: all of them for a release, those of the training part for
            an evaluation.
    """
    catalogue, created = dataset.catalogue, dataset.schema.items.created
    return ChannelTables(
        popular=None if settings.popular is False else build_popular_items(settings.popular, catalogue, positives),
        facts=build_channel_facts(settings, created, catalogue, positives, now_us=time.time_ns() // 1000),
    )
