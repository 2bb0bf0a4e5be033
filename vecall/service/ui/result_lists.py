"""The lists of the explorer's result: what each channel recalled, how it was merged, and the final list."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from vecall.recall.recommend import RecommendTrace
from vecall.recall.trace import RecallTrace
from vecall.service.ui.presenters import ItemCard, build_item_cards

_MAX_CHANNEL_ATTRIBUTES = 2  # the columns of channels are narrow


@dataclass(frozen=True)
class ChannelList:
    """What a channel recalled.

    Attributes:
        name: of the channel.
        count: items that it returned.
        unique: items among them that no other channel returned.
        ms: milliseconds.
        cards: its first items.
    """

    name: str
    count: int
    unique: int
    ms: float
    cards: list[ItemCard]


def build_result_lists(recall: RecallTrace, final: RecommendTrace | None, k: int) -> dict[str, Any]:
    """The context of the lists: `result_cards`, `final_cards` and `channel_lists`.

    Args:
        recall: of the query.
        final: the final list; None without a ranker.
        k: items of each list.
    """
    search_result, snapshot = recall.search_result, recall.snapshot
    rows, has_channels = search_result.rows[:k], len(search_result.hits) > 1
    final_cards = None
    if final is not None:
        final_scores = np.array(final.answer.scores)
        final_channels = final.answer.channels if has_channels else None
        final_cards = build_item_cards(snapshot, final.rows, final_scores, channels=final_channels)
    result_channels = search_result.list_channels(np.arange(len(rows))) if has_channels else None
    return {
        "result_cards": build_item_cards(snapshot, rows, search_result.scores[:k], channels=result_channels),
        "final_cards": final_cards,
        "channel_lists": _build_channel_lists(recall, k) if has_channels else [],
    }


def _build_channel_lists(recall: RecallTrace, k: int) -> list[ChannelList]:
    described = recall.search_result.describe_channels()
    return [
        ChannelList(
            name=name,
            count=int(described[name]["count"]),
            unique=int(described[name]["unique"]),
            ms=described[name]["ms"],
            cards=build_item_cards(recall.snapshot, rows[:k], scores[:k], max_attributes=_MAX_CHANNEL_ATTRIBUTES),
        )
        for name, (rows, scores) in recall.search_result.hits.items()
    ]
