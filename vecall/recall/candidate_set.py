"""The items that may be answers to a request: live, matching the filter, not excluded."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vecall.arrays import Mask, Rows
from vecall.index.bitmap import Bitmap
from vecall.index.filter_profile import FilterProfile
from vecall.index.row_filter import RowFilter
from vecall.live.snapshot import Snapshot
from vecall.recall.filters import FilterMask

_NO_ROWS: Rows = np.empty(0, dtype=np.int64)
_NO_SLOTS: Mask = np.empty(0, dtype=np.bool_)


@dataclass(frozen=True)
class CandidateSet:
    """Items that may be answers. An eligible item matches the filter and is not excluded.

    Attributes:
        base_bitmap: Matching rows of the base, including excluded ones; None for all rows.
        base_size: Rows of the base.
        excluded_base_rows: Matching rows of the base that are excluded, ascending.
        slot_mask: [S] whether each slot of the delta is eligible.
        delta_slots: Eligible slots of the delta, ascending.
        match_count: Matching items of base and delta.
        filter_profile: Where the rows that pass the filter lie in the index; None without a filter.
    """

    base_bitmap: Bitmap | None
    base_size: int
    excluded_base_rows: Rows
    slot_mask: Mask
    delta_slots: Rows
    match_count: int
    filter_profile: FilterProfile | None = None

    @property
    def eligible_base_count(self) -> int:
        """Number of eligible rows of the base."""
        return (self.base_size if self.base_bitmap is None else self.base_bitmap.count) - len(self.excluded_base_rows)

    @property
    def eligible_count(self) -> int:
        """Number of eligible items of base and delta."""
        return self.eligible_base_count + len(self.delta_slots)

    def build_eligible_bitmap(self) -> Bitmap | None:
        """Return the eligible rows of the base; None for all rows."""
        if not len(self.excluded_base_rows):
            return self.base_bitmap
        return (Bitmap.full(self.base_size) if self.base_bitmap is None else self.base_bitmap).exclude(
            self.excluded_base_rows
        )

    @cached_property
    def row_filter(self) -> RowFilter:
        """Tells which rows of the snapshot are eligible."""
        return RowFilter(self.base_bitmap, self.excluded_base_rows, self.base_size, self.slot_mask)


def build_candidate_set(snapshot: Snapshot, excluded_rows: Rows, filter_mask: FilterMask | None) -> CandidateSet:
    """Return the items of a snapshot that may be answers.

    Args:
        snapshot: What is searched.
        excluded_rows: Distinct rows that must not be returned, ascending.
        filter_mask: Items that pass `where`; None for all.
    """
    base_size, delta = snapshot.release.vectors.size, snapshot.delta
    bitmap = snapshot.live_base_rows
    profile = None if filter_mask is None else filter_mask.profile
    if filter_mask is not None:
        bitmap = filter_mask.matching_base_rows if bitmap is None else bitmap & filter_mask.matching_base_rows
    excluded_base_rows = excluded_rows
    if len(excluded_rows):
        excluded_base_rows = excluded_rows[excluded_rows < base_size]
        if bitmap is not None:
            excluded_base_rows = excluded_base_rows[bitmap.contains(excluded_base_rows)]
    match_count = base_size if bitmap is None else bitmap.count
    if not len(delta):
        return CandidateSet(bitmap, base_size, excluded_base_rows, _NO_SLOTS, _NO_ROWS, match_count, profile)
    is_match = delta.live_mask if filter_mask is None else delta.live_mask & filter_mask.matching_slot_mask
    is_eligible = is_match.copy()
    is_eligible[excluded_rows[excluded_rows >= base_size] - base_size] = False
    match_count += int(np.count_nonzero(is_match))
    slots = np.flatnonzero(is_eligible)
    return CandidateSet(bitmap, base_size, excluded_base_rows, is_eligible, slots, match_count, profile)


def is_in_sorted(rows: Rows, sorted_rows: Rows) -> Mask:
    """Return [len(rows)] whether each row is in `sorted_rows`, which is ascending."""
    if not len(sorted_rows):
        return np.zeros(len(rows), dtype=np.bool_)
    indices = np.minimum(np.searchsorted(sorted_rows, rows), len(sorted_rows) - 1)
    is_member: Mask = sorted_rows[indices] == rows
    return is_member
