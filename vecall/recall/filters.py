"""Evaluation of `where` into masks over the items, with a cache of the masks."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from weakref import ref

import numpy as np
import polars as pl

from vecall.arrays import Mask
from vecall.data.request_features import to_plain_list
from vecall.index.bitmap import Bitmap
from vecall.index.filter_profile import FilterProfile
from vecall.live.snapshot import IdSlots, Snapshot
from vecall.recall.conditions import parse_condition
from vecall.recall.scan_limiter import UNLIMITED_SCANS, ScanLimiter
from vecall.release.release import Release

_MAX_CACHE_BYTES = 2**28
_ENTRY_OVERHEAD_BYTES = 1_024  # of a cache entry, beside its key and its arrays
_CHUNK_ROWS = 2**19  # rows evaluated at a time: takes some milliseconds, and bounds the memory
_EMPTY_MASK = np.empty(0, dtype=np.bool_)


def never_cancel() -> None:
    """Do nothing: the cancellation check of a request that cannot be cancelled."""


@dataclass(frozen=True)
class FilterMask:
    """Items whose attributes pass a filter, deleted items included: combine it with the snapshot's live items.

    Attributes:
        profile: Rows of the base that pass, whether live or not, and where they lie in the index.
        matching_slot_mask: [length of the delta] whether each slot passes, live or not.
    """

    profile: FilterProfile
    matching_slot_mask: Mask

    @property
    def matching_base_rows(self) -> Bitmap:
        """Rows of the base that pass, whether live or not."""
        return self.profile.allowed


@dataclass(frozen=True)
class _CacheEntry:
    """A filter's mask and what it is valid for. Weak references, so that the cache keeps no release in memory.

    Attributes:
        mask: The mask; its `matching_slot_mask` may be shorter than a snapshot's, since slots are only ever appended.
        release_ref: Release that `mask.matching_base_rows` belongs to.
        slots_ref: Slots that `mask.matching_slot_mask` belongs to; dropping superseded slots
            renumbers the others in a new `IdSlots`, so that this entry no longer applies.
        nbytes: Estimated memory of the entry.
    """

    mask: FilterMask
    release_ref: ref[Release]
    slots_ref: ref[IdSlots]
    nbytes: int


class FilterCache:
    """LRU cache of filter masks.

    The base is evaluated once per filter and release; of the delta, only slots appended since the last evaluation are.

    Thread-safe: two threads may evaluate the same filter at the same time, and the later mask is kept.

    Args:
        scan_limiter: Moves the evaluation of large bases out of the event loop's thread.
    """

    def __init__(self, scan_limiter: ScanLimiter = UNLIMITED_SCANS) -> None:
        self._scan_limiter = scan_limiter
        self._entries: OrderedDict[str, _CacheEntry] = OrderedDict()  # least recently used first
        self._total_bytes = 0
        self._lock = Lock()

    def get_mask(
        self,
        where: Sequence[Mapping[str, object]],
        snapshot: Snapshot,
        *,
        check_cancelled: Callable[[], object] = never_cancel,
    ) -> FilterMask | None:
        """Return the items of a snapshot that satisfy all conditions; None if there are no conditions.

        Args:
            where: Conditions.
            snapshot: Its items are evaluated.
            check_cancelled: Called between chunks of items; an exception that it raises ends the evaluation.

        Raises:
            QueryError: See `evaluate_filter`.
        """
        if not where:
            return None
        # As lists: the text of an array or a column leaves out values in the middle.
        plain = [{name: to_plain_list(part) for name, part in condition.items()} for condition in where]
        key = repr([sorted(condition.items(), key=repr) for condition in plain])
        profile, delta = self._look_up(key, snapshot) or (
            self._evaluate_base(where, snapshot.release, check_cancelled),
            _EMPTY_MASK,
        )
        if len(delta) < len(snapshot.delta):
            delta = np.concatenate([delta, evaluate_filter(where, snapshot.delta.attributes[len(delta) :])])
        self._insert(key, snapshot, FilterMask(profile, delta))
        return FilterMask(profile, delta[: len(snapshot.delta)])

    def _evaluate_base(
        self, where: Sequence[Mapping[str, object]], release: Release, check_cancelled: Callable[[], object]
    ) -> FilterProfile:
        with self._scan_limiter.offload_if_large(release.vectors.size):
            allowed = Bitmap.from_mask(evaluate_filter(where, release.attributes, check_cancelled=check_cancelled))
            return release.index.profile_filter(allowed)

    def _look_up(self, key: str, snapshot: Snapshot) -> tuple[FilterProfile, Mask] | None:
        """Return the cached profile of the base and mask of the delta, perhaps for fewer slots; None without them."""
        entry = self._entries.get(key)
        if entry is None or entry.release_ref() is not snapshot.release:
            return None
        return (
            entry.mask.profile,
            entry.mask.matching_slot_mask if entry.slots_ref() is snapshot.delta.slots else _EMPTY_MASK,
        )

    def _insert(self, key: str, snapshot: Snapshot, mask: FilterMask) -> None:
        nbytes = _ENTRY_OVERHEAD_BYTES + len(key) + mask.profile.nbytes + mask.matching_slot_mask.nbytes
        entry = _CacheEntry(mask, ref(snapshot.release), ref(snapshot.delta.slots), nbytes)
        with self._lock:
            if (previous := self._entries.pop(key, None)) is not None:
                self._total_bytes -= previous.nbytes
            self._entries[key] = entry
            self._total_bytes += nbytes
            while self._total_bytes > _MAX_CACHE_BYTES:
                self._total_bytes -= self._entries.popitem(last=False)[1].nbytes


def evaluate_filter(
    where: Sequence[Mapping[str, object]],
    attributes: pl.DataFrame,
    *,
    check_cancelled: Callable[[], object] = never_cancel,
) -> Mask:
    """Return which items satisfy all conditions.

    Null satisfies no condition, not even `ne`; NaN is treated as null. Dates and datetimes are compared with ISO 8601
    text, which is UTC if it has no offset. The cost of a condition is proportional to the items plus its values.

    Args:
        where: Conditions.
        attributes: [N] rows.
        check_cancelled: Called between conditions and chunks of items; an exception that it raises ends the evaluation.

    Returns:
        [N] booleans.

    Raises:
        QueryError: An attribute does not exist, or an operation or value does not fit its type; `field` is the path
            of the part to blame, such as `where[0].op`.
    """
    conditions = [
        parse_condition(f"where[{position}]", condition, attributes.schema) for position, condition in enumerate(where)
    ]
    mask = np.ones(len(attributes), dtype=np.bool_)
    for start in range(0, len(attributes), _CHUNK_ROWS):
        chunk = attributes[start : start + _CHUNK_ROWS]
        for condition in conditions:
            mask[start : start + _CHUNK_ROWS] &= condition.evaluate(chunk)
            check_cancelled()
    return mask
