"""`where`: conditions on attributes, made into masks over the items and remembered."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from weakref import ref

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.index.bitmap import Bitmap
from vecall.live.snapshot import IdSlots, Snapshot
from vecall.recall.conditions import parse_condition
from vecall.recall.scan_limiter import UNLIMITED_SCANS, ScanLimiter
from vecall.release.release import Release

_MAX_CACHE_BYTES = 2**28  # of filters and their answers that are kept
_ENTRY_OVERHEAD_BYTES = 1_024  # that one takes beside its text and its arrays
_CHUNK_ROWS = 2**19  # tested at a time: some milliseconds, and bounded memory
_EMPTY_MASK = np.empty(0, dtype=np.bool_)


def _noop() -> None:
    """Between chunks."""


@dataclass(frozen=True)
class FilterMask:
    """What passes a filter.

    Attributes:
        base: rows of the base, deleted ones among them.
        delta: [length] slots of the delta likewise.
    """

    base: Bitmap
    delta: NDArray[np.bool_]


@dataclass(frozen=True)
class _CacheEntry:
    """A filter's answer, and what it is of: slots only ever grow, or are others. It keeps no release in memory."""

    mask: FilterMask
    release_ref: ref[Release]
    slots_ref: ref[IdSlots]
    nbytes: int


class FilterCache:
    """What passes which filter: evaluated once for a release's items, and for each slot of the delta.

    Safe to call from several threads: a filter may then be evaluated twice, and the last answer is kept.

    Args:
        scan_limiter: says where many items are looked at.
    """

    def __init__(self, scan_limiter: ScanLimiter = UNLIMITED_SCANS) -> None:
        self._scan_limiter = scan_limiter
        self._entries: OrderedDict[str, _CacheEntry] = OrderedDict()  # the one asked for last stands last
        self._total_bytes = 0
        self._lock = Lock()

    def get_mask(
        self,
        where: Sequence[Mapping[str, object]],
        snapshot: Snapshot,
        *,
        check_cancelled: Callable[[], object] = _noop,
    ) -> FilterMask | None:
        """What of a view passes all conditions; None where there are none.

        Args:
            where: the conditions.
            snapshot: of whose items.
            check_cancelled: called now and then while many items are looked at; what it raises ends that.

        Raises:
            QueryError: see `evaluate_filter`.
        """
        if not where:
            return None
        key = repr([sorted(condition.items(), key=repr) for condition in where])
        base, mask = self._look_up(key, snapshot) or (
            self._evaluate_base(where, snapshot.release, check_cancelled),
            _EMPTY_MASK,
        )
        if len(mask) < len(snapshot.delta):
            mask = np.concatenate([mask, evaluate_filter(where, snapshot.delta.attributes[len(mask) :])])
        self._insert(key, snapshot, FilterMask(base, mask))
        return FilterMask(base, mask[: len(snapshot.delta)])

    def _evaluate_base(
        self, where: Sequence[Mapping[str, object]], release: Release, check_cancelled: Callable[[], object]
    ) -> Bitmap:
        with self._scan_limiter.offload_if_large(release.index.size):
            return Bitmap.from_mask(evaluate_filter(where, release.attributes, check_cancelled=check_cancelled))

    def _look_up(self, key: str, snapshot: Snapshot) -> tuple[Bitmap, NDArray[np.bool_]] | None:
        kept = self._entries.get(key)
        if kept is None or kept.release_ref() is not snapshot.release:
            return None
        return kept.mask.base, kept.mask.delta if kept.slots_ref() is snapshot.delta.slots else _EMPTY_MASK

    def _insert(self, key: str, snapshot: Snapshot, mask: FilterMask) -> None:
        nbytes = _ENTRY_OVERHEAD_BYTES + len(key) + mask.base.bits.nbytes + mask.delta.nbytes
        kept = _CacheEntry(mask, ref(snapshot.release), ref(snapshot.delta.slots), nbytes)
        with self._lock:
            if (before := self._entries.pop(key, None)) is not None:
                self._total_bytes -= before.nbytes
            self._entries[key] = kept
            self._total_bytes += nbytes
            while self._total_bytes > _MAX_CACHE_BYTES:
                self._total_bytes -= self._entries.popitem(last=False)[1].nbytes


def evaluate_filter(
    where: Sequence[Mapping[str, object]], attributes: pl.DataFrame, *, check_cancelled: Callable[[], object] = _noop
) -> NDArray[np.bool_]:
    """[N] which items satisfy all conditions. Null satisfies none, not even `ne`; NaN is null.

    Dates and datetimes are compared with ISO 8601 text; without a zone it is UTC. The cost is that of the items and
    values, for each condition.

    Args:
        where: the conditions.
        attributes: [N] rows.
        check_cancelled: called between conditions and chunks of the items.

    Raises:
        QueryError: a condition names no attribute, or an operation or value that does not go with it; `field`
            is such as `where[0].op`.
    """
    conditions = [parse_condition(f"where[{place}]", one, attributes.schema) for place, one in enumerate(where)]
    mask = np.ones(len(attributes), dtype=np.bool_)
    for start in range(0, len(attributes), _CHUNK_ROWS):
        part = attributes[start : start + _CHUNK_ROWS]
        for condition in conditions:
            mask[start : start + _CHUNK_ROWS] &= condition.evaluate(part)
            check_cancelled()
    return mask
