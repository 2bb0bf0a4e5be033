"""What the data of a release say of its channels: whether users take items again, and what time it is in them."""

from vecall.channels.channel_facts import ChannelFacts
from vecall.channels.settings import ChannelsSettings
from vecall.data.frames import get_unnamed_column
from vecall.data.interactions import Catalogue, Interactions
from vecall.data.ragged import RaggedArray
from vecall.data.repeats import MIN_REPEAT_SHARE, measure_repeat_share
from vecall.data.timestamps import NS_PER_UNIT


def build_channel_facts(
    settings: ChannelsSettings,
    created: str | None,
    catalogue: Catalogue,
    positives: Interactions,
    *,
    now_us: int,
    ends_with_positives: bool = False,
) -> ChannelFacts:
    """Measure what the channels need beside their tables.

    Args:
        settings: The channels.
        created: Attribute with the time that an item came; None without one.
        catalogue: Items and users.
        positives: The positive interactions, ordered by user.
        now_us: Time of publishing, microseconds since 1970.
        ends_with_positives: Whether creations after the newest positive do not count, if its time is known.
    """
    counted = positives.counted_positives
    share = measure_repeat_share(RaggedArray.from_sorted_pairs(counted.users, counted.items, len(catalogue.users)))
    if created not in catalogue.item_attributes.columns:  # there is no items table
        created = None
    is_end_known = ends_with_positives and positives.time_unit is not None and len(positives.times) > 0
    return ChannelFacts(
        second_order=settings.second_order,
        popular=settings.popular is not False,
        repeat=settings.repeat is not False and share >= MIN_REPEAT_SHARE,
        repeat_share=round(share, 4),
        fresh_days=None if settings.fresh is False else settings.fresh.days,
        created=created,
        clock_offset_us=_find_newest_time(None if is_end_known else created, catalogue, positives, now_us) - now_us,
    )


def _find_newest_time(created: str | None, catalogue: Catalogue, positives: Interactions, now_us: int) -> int:
    """Return the newest time of interactions and of creations, microseconds since 1970; `now_us` where none is known.

    Creations after `now_us` do not count: they are planned ones, or stand for an unknown time.
    """
    newest: list[int] = []
    if positives.time_unit is not None and len(positives.times):
        micros = int(positives.times.max() * (NS_PER_UNIT[positives.time_unit] / NS_PER_UNIT["us"]))
        newest.append(min(micros, now_us))
    if created is not None:
        times = get_unnamed_column(catalogue.item_attributes, created).to_physical()
        if len(times := times.filter(times <= now_us)):
            newest.append(int(times.to_numpy().max()))
    return max(newest, default=now_us)
