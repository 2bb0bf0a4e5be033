"""A journal's operations brought onto a release, which may be another one than they were given to."""

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
_MAX_EXAMPLES = 5
# What the data of an operation may raise; whatever it is, the release is served without that operation.
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
    """An operation as a release takes it.

    Attributes:
        operation: without a vector where the release's tower has to make one; None where the release cannot take it.
        problem: why it cannot, or what is left out; None where nothing is.
    """

    operation: Operation | None
    problem: str | None = None


def replay(memtable: MemTable, operations: Iterable[Operation]) -> Snapshot:
    """Apply operations in the order of their `seq`; vectors of another encoder are made again from fields.

    What the release cannot take is left out, logged, and listed in `View.refused`: a vector that was given for another
    encoder, or a value that a column does not hold. Columns that the release does not have, or has with another
    meaning, are left out and counted.
    """
    release = memtable.snapshot.release
    adapter = OperationAdapter(release)
    refused: dict[int, str] = {}
    lost_columns: dict[str, int] = {}
    for batch in _split_batches(operations, _BATCH_OPERATIONS):
        adapted = [(operation, adapter.adapt(operation)) for operation in iterate_cooperatively(batch)]
        rejected = {one.seq: (one.id, str(made.problem)) for one, made in adapted if made.operation is None}
        for one, made in adapted:
            for name in _find_lost_columns(one, made.operation):
                lost_columns[name] = lost_columns.get(name, 0) + 1
        prepared, failed = _prepare_bisecting(
            memtable, adapter, [made.operation for _, made in adapted if made.operation]
        )
        rejected |= failed
        for part in prepared[:-1]:
            memtable.commit(part, seq=memtable.snapshot.seq)
        last_refused: dict[Id, int] = {one: seq for seq, (one, _) in rejected.items()}
        memtable.commit(prepared[-1], seq=batch[-1].seq, rejected_seqs=last_refused)
        refused |= {seq: problem for seq, (_, problem) in rejected.items()}
    _log_rejections(release, refused, lost_columns)
    return memtable.snapshot


def _log_rejections(release: Release, problems_by_seq: dict[int, str], lost_columns: dict[str, int]) -> None:
    if problems_by_seq:
        examples = "; ".join(f"{seq}: {problem}" for seq, problem in sorted(problems_by_seq.items())[:_MAX_EXAMPLES])
        logger.warning(
            "release %s cannot take %d operations of the journal, and is served without them: give these items again, "
            "or see `vecall journal list` (%s)",
            release.name,
            len(problems_by_seq),
            examples,
        )
    if lost_columns:
        logger.warning(
            "release %s has no place for values of the journal, by column: %s",
            release.name,
            dict(sorted(lost_columns.items())),
        )


def _split_batches(operations: Iterable[Operation], batch_size: int) -> Iterator[Sequence[Operation]]:
    rest = iter(operations)
    while batch := list(islice(rest, batch_size)):
        yield batch


def _prepare_bisecting(
    memtable: MemTable, adapter: "OperationAdapter", operations: Sequence[Operation]
) -> tuple[list[PreparedBatch], dict[int, tuple[Id, str]]]:
    """Operations in parts that can be applied, and by number those that cannot: halved until these stand alone."""
    try:
        return [memtable.prepare(adapter.encode(operations))], {}
    except _DATA_ERRORS as error:
        if len(operations) == 1:
            return [memtable.prepare([])], {operations[0].seq: (operations[0].id, str(error))}
    half = len(operations) // 2
    (first, failed), (second, failed_too) = (
        _prepare_bisecting(memtable, adapter, part) for part in (operations[:half], operations[half:])
    )
    return first + second, failed | failed_too


def _find_lost_columns(before: Operation, after: Operation | None) -> set[str]:
    return set() if after is None else set(before.fields or ()) - set(after.fields or ())


class OperationAdapter:
    """Makes operations what a release takes.

    Args:
        release: the one.
    """

    def __init__(self, release: Release) -> None:
        self._release, self._columns = release, ItemColumns.from_release(release)

    def adapt(self, operation: Operation) -> AdaptedOperation:
        """The operation as this release takes it, without a vector where that is to be made."""
        if operation.kind == "delete":
            return AdaptedOperation(operation)
        release, vector = self._release, operation.vector
        if operation.encoder_hash != release.manifest.encoder or vector is None or len(vector) != release.index.dim:
            if operation.has_external_vector or release.encoder is None:
                return AdaptedOperation(None, self._explain_vector_mismatch(operation))
            vector = None
        given = operation.fields or {}
        columns = self._columns.select_compatible_fields(given)
        if vector is operation.vector and len(columns) == len(given):
            return AdaptedOperation(operation)
        lost = sorted(given.keys() - columns)
        problem = f"these columns are left out: {', '.join(lost)}" if lost else None
        return AdaptedOperation(replace(operation, fields=columns, vector=vector), problem)

    def _explain_vector_mismatch(self, operation: Operation) -> str:
        encoder, expected = operation.encoder_hash, self._release.manifest.encoder
        if encoder != expected:
            return f"its vector was made by encoder {encoder}, and this release has {expected}"
        size = "no" if operation.vector is None else len(operation.vector)
        return f"its vector has {size} numbers, and this release's have {self._release.index.dim}"

    def encode(self, operations: Sequence[Operation]) -> list[Operation]:
        """The same with vectors from the item tower where upserts have none."""
        return encode_missing_vectors(operations, self._release, self._columns)

    def check_applicable(self, operation: Operation) -> tuple[bool, str | None]:
        """Whether this release can take an operation, and what is wrong with it or left out of it."""
        adapted = self.adapt(operation)
        if adapted.operation is None:
            return False, adapted.problem
        _, failed = _prepare_bisecting(MemTable(self._release), self, [adapted.operation])
        return (False, failed[operation.seq][1]) if failed else (True, adapted.problem)
