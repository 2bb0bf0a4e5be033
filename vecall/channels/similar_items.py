"""For each item the items that were taken near it, and how near: the table of the channel `similar`."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import Offsets, Rows
from vecall.data.ragged import locate_segments, offsets_from_lengths

SIMILARITY_SCALE = 64  # stored score of a similarity of 1: those of 9.6e-7 to 1,023 are normal numbers of float16
_MAX_MEASURED_LISTS = 4_096
_REMAPPED_LISTS = 2**17  # at a time, to bound memory


def weigh_seeds(*, has_order: bool) -> NDArray[np.float64]:
    """Return the weights of the newest items of a history, the newest first.

    Args:
        has_order: Whether what came last says most of what comes next: 0.9^age of the newest 10. Otherwise 1 of the
            newest 200.
    """
    return np.array([0.9**age for age in range(10)]) if has_order else np.ones(200)


@dataclass(frozen=True)
class SimilarItems:
    """The neighbours of N items, in one array (CSR layout): those of item i are `rows[offsets[i] : offsets[i + 1]]`.

    Attributes:
        offsets: [N + 1] Bounds of the lists, ascending from 0.
        rows: [total] int32 rows of neighbours, the nearest first; of equally near ones the lowest row first.
        scores: [total] float16 similarities times `SIMILARITY_SCALE`, above 0 and descending.
        later_shares: [total] uint8 share of the similarity, of `MAX_SHARE`, that is of histories in which the neighbour
            came later than the item.
        seed_weights: [S] Weights of the newest items of a history in a score, the newest first; older ones have none.
    """

    offsets: Offsets
    rows: NDArray[np.int32]
    scores: NDArray[np.float16]
    later_shares: NDArray[np.uint8]
    seed_weights: NDArray[np.float64] = field(default_factory=lambda: weigh_seeds(has_order=True))

    def __len__(self) -> int:
        """Return N."""
        return len(self.offsets) - 1

    def locate_lists(self, rows: Rows) -> tuple[Offsets, Offsets]:
        """Return where in the arrays the lists of items start and end; that of row -1 is empty."""
        starts = self.offsets[rows]
        return starts, np.maximum(self.offsets[rows + 1], starts)

    def get_neighbors(self, row: int) -> tuple[Rows, NDArray[np.float64]]:
        """Return rows and similarities of an item's neighbours, the nearest first."""
        return self.get_segment(*self.offsets[row : row + 2].tolist())

    def get_segment(self, start: int, end: int) -> tuple[Rows, NDArray[np.float64]]:
        """Return rows and similarities at the positions from `start` to `end` - 1."""
        return self.rows[start:end], self.scores[start:end].astype(np.float64) / SIMILARITY_SCALE

    @cached_property
    def mean_similarities(self) -> NDArray[np.float64]:
        """Mean similarity by rank, descending: of all items with neighbours, or of 4,096 of them, evenly spaced.

        A list counts 0 at the ranks that it does not have.
        """
        owners = np.flatnonzero(np.diff(self.offsets))
        if len(owners) > _MAX_MEASURED_LISTS:
            owners = owners[np.linspace(0, len(owners) - 1, _MAX_MEASURED_LISTS).astype(np.int64)]
        lengths = np.diff(self.offsets)[owners]
        positions = locate_segments(self.offsets[owners], lengths)
        ranks = positions - np.repeat(self.offsets[owners], lengths)
        return np.bincount(ranks, self.scores[positions]) / (SIMILARITY_SCALE * max(len(owners), 1))

    def remap(self, base_rows: Rows, new_rows: Rows) -> "SimilarItems":
        """Return the neighbours of the items of another release that exist here; new items have none.

        Args:
            base_rows: For each row of the new release, the item's row here; -1 for new items.
            new_rows: [N] For each row here, the item's row in the new release; -1 where it is not in it.
        """
        chunks = [
            self._remap_lists(base_rows[start : start + _REMAPPED_LISTS], new_rows)
            for start in range(0, len(base_rows), _REMAPPED_LISTS)
        ]
        lengths, rows, scores, later_shares = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
        return SimilarItems(offsets_from_lengths(lengths), rows, scores, later_shares, self.seed_weights)

    def _remap_lists(
        self, base_rows: Rows, new_rows: Rows
    ) -> tuple[Rows, NDArray[np.int32], NDArray[np.float16], NDArray[np.uint8]]:
        """Return lengths, rows, scores and later shares of the lists of some items, see `remap`."""
        lengths = np.where(base_rows >= 0, np.diff(self.offsets)[base_rows], 0)
        positions = locate_segments(self.offsets[:-1][base_rows], lengths)
        rows = new_rows[self.rows[positions]]
        is_kept = rows >= 0
        owners = np.repeat(np.arange(len(base_rows)), lengths)[is_kept]
        kept_lengths = np.bincount(owners, minlength=len(base_rows))
        kept = positions[is_kept]
        return kept_lengths, rows[is_kept].astype(np.int32), self.scores[kept], self.later_shares[kept]
