"""The tables of a release's channels, built from interactions."""

import logging
import tempfile
import time
from pathlib import Path

from vecall.channels.channel_tables import ChannelTables
from vecall.channels.facts_builder import build_channel_facts
from vecall.channels.popular_builder import build_popular_items
from vecall.channels.settings import ChannelsSettings
from vecall.channels.similar_builder import build_similar_items, estimate_build_bytes
from vecall.channels.similar_items import SimilarItems
from vecall.data.dataset import Dataset
from vecall.data.interactions import Interactions
from vecall.data.ragged import RaggedArray
from vecall.release.file_io import translate_write_errors
from vecall.runtime.memory import available_memory_bytes

logger = logging.getLogger(__name__)


def build_channel_tables(
    settings: ChannelsSettings,
    dataset: Dataset,
    positives: Interactions,
    *,
    ends_with_positives: bool = False,
    scratch_dir: Path | None = None,
) -> ChannelTables:
    """Build what the channels read, as far as the settings want them and data and memory allow them.

    Args:
        settings: The channels; neighbours of neighbours do not count where their weight is "auto".
        dataset: Its items and users.
        positives: The positive interactions to build from: all of them for a release, those of the training part for
            an evaluation. Those of weight 0 are not counted.
        ends_with_positives: Whether the time of the data is that of the newest positive, as for an evaluation, even if
            items came later.
        scratch_dir: Where large tables lie, in files without a name; None for the system's directory of temporary
            files.

    Raises:
        StoreError: These files cannot be written.
    """
    catalogue, created = dataset.catalogue, dataset.schema.items.created
    counted = positives.counted_positives
    return ChannelTables(
        similar=None
        if settings.similar is False
        else _build_similar(settings.second_order, dataset, counted, scratch_dir),
        popular=None
        if settings.popular is False
        else build_popular_items(settings.popular, catalogue, counted, has_order=dataset.has_order),
        facts=build_channel_facts(
            settings,
            created,
            catalogue,
            positives,
            now_us=time.time_ns() // 1000,
            ends_with_positives=ends_with_positives,
        ),
    )


def _build_similar(
    second_order: float, dataset: Dataset, positives: Interactions, scratch_dir: Path | None
) -> SimilarItems | None:
    n_items, n_users = len(dataset.catalogue.items), len(dataset.catalogue.users)
    needed_bytes, free_bytes = estimate_build_bytes(len(positives.items), n_items), available_memory_bytes()
    if needed_bytes > free_bytes:
        logger.warning(
            "left out the channel similar: building it needs about %.1f GiB of memory, and %.1f GiB are free; give the "
            "process more memory, or set similar = false in [channels]",
            needed_bytes / 2**30,
            free_bytes / 2**30,
        )
        return None
    histories = RaggedArray.from_sorted_pairs(positives.users, positives.items, n_users)
    scratch_dir = scratch_dir or Path(tempfile.gettempdir())
    with translate_write_errors(scratch_dir):
        return build_similar_items(
            histories,
            n_items,
            has_order=dataset.has_order,
            second_order=second_order,
            scratch_dir=scratch_dir,
        )
