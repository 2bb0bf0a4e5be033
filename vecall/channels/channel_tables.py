"""What the channels of a release read beside its vectors, popularity and users."""

from dataclasses import dataclass

import numpy as np

from vecall.arrays import Rows
from vecall.channels.channel_facts import NO_FACTS, ChannelFacts
from vecall.channels.popular_items import PopularItems
from vecall.channels.similar_items import SimilarItems


@dataclass(frozen=True)
class ChannelTables:
    """Tables of channels over the N items of a release; None where the release does not have the channel.

    Attributes:
        similar: Neighbours of each item.
        popular: How often each item was taken lately.
        facts: What is known beside the tables.
    """

    similar: SimilarItems | None = None
    popular: PopularItems | None = None
    facts: ChannelFacts = NO_FACTS

    @property
    def is_empty(self) -> bool:
        """Whether no channel has a table, and nothing is known beside them."""
        return self.similar is None and self.popular is None and self.facts == NO_FACTS

    def remap(self, base_rows: Rows, base_size: int) -> "ChannelTables":
        """Return the tables for a release of other items, as compaction writes it.

        Args:
            base_rows: For each row of the new release, the item's row here; -1 for new items.
            base_size: N.
        """
        new_rows = invert_rows(base_rows, base_size)
        return ChannelTables(
            similar=None if self.similar is None else self.similar.remap(base_rows, new_rows),
            popular=None if self.popular is None else self.popular.remap(base_rows, new_rows),
            facts=self.facts,
        )


def invert_rows(base_rows: Rows, base_size: int) -> Rows:
    """Return [base_size] the row of each base row in the new release; -1 where it is not in it.

    Args:
        base_rows: For each row of the new release, the item's row in the base; -1 for new items.
        base_size: Number of items in the base.
    """
    new_rows = np.full(base_size, -1, dtype=np.int64)
    new_rows[base_rows[base_rows >= 0]] = np.flatnonzero(base_rows >= 0)
    return new_rows
