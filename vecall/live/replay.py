"""A journal's operations brought onto a release, which may be another one than they were given to."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

from vecall.live.fields import ItemFields
from vecall.live.items import encoded
from vecall.live.operations import Operation
from vecall.live.overlay import Overlay
from vecall.live.turns import in_turns
from vecall.live.view import View
from vecall.release.bundle import Release

logger = logging.getLogger(__name__)

_AT_ONCE = 8_192  # operations


def replay(overlay: Overlay, operations: Iterable[Operation]) -> View:
    """Apply operations in the order of their `seq`; vectors of another encoder are made again from fields.

    A vector that a caller gave for another encoder cannot be made again: such an operation is left out and counted
    in `View.refused`. Columns that the release does not have, or has with another meaning, are left out too.
    """
    release = overlay.view.release
    fields = ItemFields.of(release)
    refused = overlay.view.refused
    for batch in _batches(operations, _AT_ONCE):
        fitting = [_fitted(operation, release, fields) for operation in in_turns(batch)]
        taken = encoded([operation for operation in fitting if operation is not None], release, fields)
        overlay.apply(taken, seq=batch[-1].seq, refused=len(batch) - len(taken))
    if refused < overlay.view.refused:
        logger.warning(
            "%d upserts of the journal were left out: their vectors were given for another encoder than that of "
            "release %s; give these items again",
            overlay.view.refused - refused,
            release.name,
        )
    return overlay.view


def _batches(operations: Iterable[Operation], size: int) -> Iterator[Sequence[Operation]]:
    rest = iter(operations)
    while batch := list(islice(rest, size)):
        yield batch


def _fitted(operation: Operation, release: Release, fields: ItemFields) -> Operation | None:
    """The operation as this release takes it, without a vector where that is to be made; None if it cannot be."""
    if operation.kind == "delete":
        return operation
    vector = operation.vector
    if operation.encoder != release.manifest.encoder or vector is None or len(vector) != release.index.dim:
        if operation.given or release.encoder is None:
            return None
        vector = None
    given = operation.fields or {}
    columns = fields.fitting(given)
    unchanged = vector is operation.vector and len(columns) == len(given)
    return operation if unchanged else replace(operation, fields=columns, vector=vector)
