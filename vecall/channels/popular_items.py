"""How often each item was taken lately, and the most popular items per value: the table of the channel `popular`."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.arrays import Offsets, Rows, Scores
from vecall.data.canonical import column_to_text
from vecall.data.ragged import RaggedArray, offsets_from_lengths

_CHUNK_ROWS = 2**18  # cells that are encoded at a time
_SORTED_ROWS = 2**15  # rows of the overall ranking that are kept in memory


@dataclass(frozen=True)
class PopularLists:
    """The most popular items per value of a column, in one array (CSR layout).

    The list of value i is `rows[offsets[i] : offsets[i + 1]]`.

    Attributes:
        column: Name of the attribute of items, or of the feature of users.
        values: [V] distinct values as text, ascending.
        offsets: [V + 1] Bounds of the lists, ascending from 0.
        rows: [total] int32 rows of items, the most popular first.
        scores: [total] Counts like those of `PopularItems`, above 0.
    """

    column: str
    values: pl.Series
    offsets: Offsets
    rows: NDArray[np.int32]
    scores: Scores

    def __len__(self) -> int:
        """Return V."""
        return len(self.offsets) - 1

    @cached_property
    def codes(self) -> dict[str, int]:
        """Index of each value."""
        return {value: code for code, value in enumerate(self.values.to_list())}

    @cached_property
    def totals(self) -> NDArray[np.float64]:
        """Sum of the scores of each list, [V]."""
        totals: NDArray[np.float64] = np.bincount(self._owners, self.scores, minlength=len(self)).astype(np.float64)
        return totals

    @property
    def _owners(self) -> Rows:
        """Index of the list of each row, [total]."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def locate_lists(
        self, codes: NDArray[np.int64], weights: NDArray[np.float64]
    ) -> tuple[tuple[Offsets, Offsets], NDArray[np.float64]]:
        """Return where the lists of values start and end, and the factors that turn their scores into shares.

        Args:
            codes: [n] Indices of values.
            weights: [n] What the shares of each list sum to.
        """
        totals = self.totals[codes]
        return (self.offsets[codes], self.offsets[codes + 1]), weights / np.where(totals == 0, 1.0, totals)

    def encode(self, column: pl.Series) -> RaggedArray:
        """Return for each cell of a column the indices of its values that have a list, int32, ascending."""
        known = pl.Enum(self.values)
        parts = []
        for start in range(0, len(column), _CHUNK_ROWS):
            texts = column_to_text(column.slice(start, _CHUNK_ROWS))
            frame = pl.DataFrame({"row": np.arange(start, start + len(texts), dtype=np.int32), "value": texts})
            if isinstance(texts.dtype, pl.List):
                frame = frame.explode("value")
            codes = frame["value"].cast(known, strict=False).to_physical().cast(pl.Int32)
            parts.append(frame.select("row", codes.alias("code")).drop_nulls().unique().sort("row", "code"))
        pairs = pl.concat(parts) if parts else pl.DataFrame(schema={"row": pl.Int32, "code": pl.Int32})
        return RaggedArray.from_sorted_pairs(pairs["row"].to_numpy(), pairs["code"].to_numpy(), len(column))

    def remap(self, new_rows: Rows) -> "PopularLists":
        """Return the lists for another release; items that are not in it are left out.

        Args:
            new_rows: [N] For each row here, the item's row in the new release; -1 where it is not in it.
        """
        rows = new_rows[self.rows]
        is_kept = rows >= 0
        offsets = offsets_from_lengths(np.bincount(self._owners[is_kept], minlength=len(self)))
        return PopularLists(
            self.column, self.values, offsets, rows[is_kept].astype(np.int32), np.asarray(self.scores)[is_kept]
        )


@dataclass(frozen=True)
class PopularItems:
    """How often each of N items was taken lately.

    Attributes:
        counts: [N] Number of interactions in the window, each weighted by its age, see `popular_builder`.
        by: The most popular items of each value of an attribute; None without one.
        by_user: The most popular items among the users with each value of a feature; None without one.
    """

    counts: Scores
    by: PopularLists | None = None
    by_user: PopularLists | None = None

    def __len__(self) -> int:
        """Return N."""
        return len(self.counts)

    @cached_property
    def total(self) -> float:
        """Sum of all counts."""
        return float(self.counts.sum(dtype=np.float64))

    @cached_property
    def sorted_rows(self) -> Rows:
        """Up to 32,768 rows, count descending, then row ascending."""
        n = len(self.counts)
        if n <= _SORTED_ROWS:
            rows = np.arange(n)
        else:
            threshold = np.partition(self.counts, n - _SORTED_ROWS)[n - _SORTED_ROWS]
            above, tied = np.flatnonzero(self.counts > threshold), np.flatnonzero(self.counts == threshold)
            rows = np.sort(np.concatenate([above, tied[: _SORTED_ROWS - len(above)]]))
        return rows[np.argsort(-self.counts[rows], kind="stable")]

    def compute_scores(self, rows: Rows, lifts: NDArray[np.float64]) -> Scores:
        """Return the counts of items [n] plus the shares `lifts` [n] of the sum of all counts."""
        scores: Scores = (self.counts[rows] + self.total * lifts).astype(np.float32)
        return scores

    def remap(self, base_rows: Rows, new_rows: Rows) -> "PopularItems":
        """Return the table for the items of another release; new items have count 0.

        Args:
            base_rows: For each row of the new release, the item's row here; -1 for new items.
            new_rows: [N] For each row here, the item's row in the new release; -1 where it is not in it.
        """
        return PopularItems(
            counts=np.where(base_rows >= 0, self.counts[base_rows], 0).astype(np.float32),
            by=None if self.by is None else self.by.remap(new_rows),
            by_user=None if self.by_user is None else self.by_user.remap(new_rows),
        )
