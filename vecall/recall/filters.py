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
from vecall.live.snapshot import Slots, Snapshot
from vecall.recall.conditions import parse_condition
from vecall.recall.scan_limiter import NO_LIMIT, ScanLimit
from vecall.release.release import Release

_MOST_BYTES = 2**28  # of filters and their answers that are kept
_BYTES_EACH = 1_024  # that one takes beside its text and its arrays
_CHUNK_ROWS = 2**19  # tested at a time: some milliseconds, and bounded memory
_NOTHING = np.empty(0, dtype=np.bool_)


def _noop() -> None:
    """Between chunks."""


@dataclass(frozen=True)
class Passing:
    """What passes a filter.

    Attributes:
        base: rows of the base, deleted ones among them.
        delta: [length] slots of the delta likewise.
    """

    base: Bitmap
    delta: NDArray[np.bool_]


@dataclass(frozen=True)
class _Kept:
    """A filter's answer, and what it is of: slots only ever grow, or are others. It keeps no release in memory."""

    passing: Passing
    release: ref[Release]
    slots: ref[Slots]
    nbytes: int


class Filters:
    """What passes which filter: evaluated once for a release's items, and for each slot of the delta.

    Safe to call from several threads: a filter may then be evaluated twice, and the last answer is kept.

    Args:
        scans: says where many items are looked at.
    """

    def __init__(self, scans: ScanLimit = NO_LIMIT) -> None:
        self._scans = scans
        self._kept: OrderedDict[str, _Kept] = OrderedDict()  # the one asked for last stands last
        self._nbytes = 0
        self._keeping = Lock()

    def passing(
        self, where: Sequence[Mapping[str, object]], view: Snapshot, *, checkpoint: Callable[[], object] = _noop
    ) -> Passing | None:
        """What of a view passes all conditions; None where there are none.

        Args:
            where: the conditions.
            view: of whose items.
            checkpoint: called now and then while many items are looked at; what it raises ends that.

        Raises:
            QueryError: see `mask_of`.
        """
        if not where:
            return None
        key = repr([sorted(condition.items(), key=repr) for condition in where])
        base, mask = self._known(key, view) or (self._of_base(where, view.release, checkpoint), _NOTHING)
        if len(mask) < len(view.delta):
            mask = np.concatenate([mask, mask_of(where, view.delta.attributes[len(mask) :])])
        self._keep(key, view, Passing(base, mask))
        return Passing(base, mask[: len(view.delta)])

    def _of_base(
        self, where: Sequence[Mapping[str, object]], release: Release, checkpoint: Callable[[], object]
    ) -> Bitmap:
        with self._scans.aside(release.index.size):
            return Bitmap.of(mask_of(where, release.attributes, checkpoint=checkpoint))

    def _known(self, key: str, view: Snapshot) -> tuple[Bitmap, NDArray[np.bool_]] | None:
        kept = self._kept.get(key)
        if kept is None or kept.release() is not view.release:
            return None
        return kept.passing.base, kept.passing.delta if kept.slots() is view.delta.slots else _NOTHING

    def _keep(self, key: str, view: Snapshot, passing: Passing) -> None:
        nbytes = _BYTES_EACH + len(key) + passing.base.bits.nbytes + passing.delta.nbytes
        kept = _Kept(passing, ref(view.release), ref(view.delta.slots), nbytes)
        with self._keeping:
            if (before := self._kept.pop(key, None)) is not None:
                self._nbytes -= before.nbytes
            self._kept[key] = kept
            self._nbytes += nbytes
            while self._nbytes > _MOST_BYTES:
                self._nbytes -= self._kept.popitem(last=False)[1].nbytes


def mask_of(
    where: Sequence[Mapping[str, object]], attributes: pl.DataFrame, *, checkpoint: Callable[[], object] = _noop
) -> NDArray[np.bool_]:
    """[N] which items satisfy all conditions. Null satisfies none, not even `ne`; NaN is null.

    Dates and datetimes are compared with ISO 8601 text; without a zone it is UTC. The cost is that of the items and
    values, for each condition.

    Args:
        where: the conditions.
        attributes: [N] rows.
        checkpoint: called between conditions and chunks of the items.

    Raises:
        QueryError: a condition names no attribute, or an operation or value that does not go with it; `field`
            is such as `where[0].op`.
    """
    conditions = [parse_condition(f"where[{place}]", one, attributes.schema) for place, one in enumerate(where)]
    mask = np.ones(len(attributes), dtype=np.bool_)
    for start in range(0, len(attributes), _CHUNK_ROWS):
        part = attributes[start : start + _CHUNK_ROWS]
        for condition in conditions:
            mask[start : start + _CHUNK_ROWS] &= condition.holds(part)
            checkpoint()
    return mask
