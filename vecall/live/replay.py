"""Replay of journal operations onto a release, which need not be the one that they were written for."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import polars as pl

from vecall.data.id_map import Id
from vecall.errors import VecallError
from vecall.live.gil import iterate_cooperatively
from vecall.live.item_columns import ColumnBuildError, ItemColumns
from vecall.live.item_parsing import encode_missing_vectors
from vecall.live.memtable import MemTable, PreparedBatch
from vecall.live.operations import Operation
from vecall.live.snapshot import Snapshot
from vecall.release.release import Release

logger = logging.getLogger(__name__)

_BATCH_OPERATIONS = 8_192
_MAX_EXAMPLES = 5  # rejected operations in a log line
# Errors that bad data of one operation may cause. That operation is rejected, and the release is served without it.
_DATA_ERRORS = (
    VecallError,
    ColumnBuildError,
    pl.exceptions.PolarsError,
    ArithmeticError,
    LookupError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class AdaptedOperation:
    """An operation as a release can take it.

    Attributes:
        operation: the operation, without a vector if the release's item tower must compute it; None if the release
            cannot take it.
        problem: why the release cannot take it, or which columns are left out; None if there is no problem.
    """

    operation: Operation | None
    problem: str | None = None


def replay(memtable: MemTable, operations: Iterable[Operation]) -> Snapshot:
    """Apply operations in the order of their `seq`.

    Vectors of another encoder are computed again from the fields. Operations that the release cannot take (a vector of
    another encoder that a user supplied, a value that a column does not take) are left out, logged, and listed in
    `Snapshot.rejected_seqs`. Columns that the release does not have, or has with another type, are left out and logged.

    Returns:
        The memtable's snapshot after the last operation.
    """
    release = memtable.snapshot.release
    adapter = OperationAdapter(release)
    problems_by_seq: dict[int, str] = {}
    lost_columns: dict[str, int] = {}  # number of operations by column
    for batch in _split_batches(operations, _BATCH_OPERATIONS):
        adapted = [(operation, adapter.adapt(operation)) for operation in iterate_cooperatively(batch)]
        rejected = {
            operation.seq: (operation.id, str(result.problem))
            for operation, result in adapted
            if result.operation is None
        }
        for operation, result in adapted:
            for name in _find_lost_columns(operation, result.operation):
                lost_columns[name] = lost_columns.get(name, 0) + 1
        prepared, failed = _encode_and_prepare_bisecting(
            memtable, adapter, [result.operation for _, result in adapted if result.operation]
        )
        rejected |= failed
        for part in prepared[:-1]:
            memtable.commit(part, seq=memtable.snapshot.seq)
        rejected_seqs: dict[Id, int] = {item_id: seq for seq, (item_id, _) in rejected.items()}
        memtable.commit(prepared[-1], seq=batch[-1].seq, rejected_seqs=rejected_seqs)
        problems_by_seq |= {seq: problem for seq, (_, problem) in rejected.items()}
    _log_rejections(release, problems_by_seq, lost_columns)
    return memtable.snapshot


def _log_rejections(release: Release, problems_by_seq: dict[int, str], lost_columns: dict[str, int]) -> None:
    if problems_by_seq:
        examples = "; ".join(
            f"seq {seq}: {problem}" for seq, problem in sorted(problems_by_seq.items())[:_MAX_EXAMPLES]
        )
        logger.warning(
            "release %s rejected %d journal operations and is served without them (the first: %s); upsert these items "
            "again; `vecall journal list` shows all",
            release.name,
            len(problems_by_seq),
            examples,
        )
    if lost_columns:
        logger.warning(
            "release %s lacks columns of the journal or has them with another type; their values are left out "
            "(column: operations): %s",
            release.name,
            dict(sorted(lost_columns.items())),
        )


def _split_batches(operations: Iterable[Operation], batch_size: int) -> Iterator[Sequence[Operation]]:
    iterator = iter(operations)
    while batch := list(islice(iterator, batch_size)):
        yield batch


def _encode_and_prepare_bisecting(
    memtable: MemTable, adapter: "OperationAdapter", operations: Sequence[Operation]
) -> tuple[list[PreparedBatch], dict[int, tuple[Id, str]]]:
    """Compute missing vectors and prepare operations; where that fails, find the operations at fault by bisection.

    Returns:
        The prepared parts, in order, at least one; and by `seq` the item id and the error of each failed operation.
    """
    try:
        return [memtable.prepare(adapter.encode(operations))], {}
    except _DATA_ERRORS as error:
        if len(operations) == 1:
            return [memtable.prepare([])], {operations[0].seq: (operations[0].id, str(error))}
    half = len(operations) // 2
    first, first_failed = _encode_and_prepare_bisecting(memtable, adapter, operations[:half])
    second, second_failed = _encode_and_prepare_bisecting(memtable, adapter, operations[half:])
    return first + second, first_failed | second_failed


def _find_lost_columns(before: Operation, after: Operation | None) -> set[str]:
    return set() if after is None else set(before.fields or ()) - set(after.fields or ())


class OperationAdapter:
    """Adapts operations to a release.

    Args:
        release: the release that the operations are replayed onto.
    """

    def __init__(self, release: Release) -> None:
        self._release, self._columns = release, ItemColumns.from_release(release)

    def adapt(self, operation: Operation) -> AdaptedOperation:
        """Return an operation as this release can take it, without a vector if the item tower must compute it."""
        if operation.kind == "delete":
            return AdaptedOperation(operation)
        release, vector = self._release, operation.vector
        if operation.encoder_hash != release.manifest.encoder or vector is None or len(vector) != release.vectors.dim:
            if operation.has_external_vector or release.encoder is None:
                return AdaptedOperation(None, self._explain_vector_mismatch(operation))
            vector = None
        fields = operation.fields or {}
        compatible_fields = self._columns.select_compatible_fields(fields)
        if vector is operation.vector and len(compatible_fields) == len(fields):
            return AdaptedOperation(operation)
        lost = sorted(fields.keys() - compatible_fields)
        problem = f"these columns are left out: {', '.join(lost)}" if lost else None
        return AdaptedOperation(replace(operation, fields=compatible_fields, vector=vector), problem)

    def _explain_vector_mismatch(self, operation: Operation) -> str:
        encoder, expected = operation.encoder_hash, self._release.manifest.encoder
        if encoder != expected:
            return f"its vector is of encoder {encoder}, and this release has {expected}"
        size = "no" if operation.vector is None else len(operation.vector)
        return f"its vector has {size} numbers, and this release's vectors have {self._release.vectors.dim}"

    def encode(self, operations: Sequence[Operation]) -> list[Operation]:
        """Compute the vectors of upserts that have none. See `encode_missing_vectors`."""
        return encode_missing_vectors(operations, self._release, self._columns)

    def diagnose(self, operation: Operation) -> AdaptedOperation:
        """Adapt an operation and try to apply it to this release alone: unlike `adapt`, all problems are found."""
        adapted = self.adapt(operation)
        if adapted.operation is None:
            return adapted
        _, failed = _encode_and_prepare_bisecting(MemTable(self._release), self, [adapted.operation])
        return AdaptedOperation(None, failed[operation.seq][1]) if failed else adapted
