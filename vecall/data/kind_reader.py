"""Reading of the column of kinds of interactions, in batches."""

import logging
from collections import Counter

import polars as pl

from vecall.data.events import canonicalize_kinds, cast_kind, list_kinds
from vecall.data.id_numbering import IdNumbering
from vecall.data.table_source import TableSource
from vecall.data.table_validator import MAX_EXAMPLES, BadRowHandler, TableBatch
from vecall.errors import DataError
from vecall.schema import InteractionSchema

logger = logging.getLogger(__name__)

_MAX_KINDS = 1000


class KindReader:
    """Reader of kinds, which numbers them and drops those that the schema does not list.

    Args:
        schema: Columns of the interactions table, with one of kinds.
    """

    def __init__(self, schema: InteractionSchema) -> None:
        self._schema = schema
        self._numbering = IdNumbering("string")
        self._listed = list_kinds(schema)
        self._negatives = canonicalize_kinds(schema.negatives)
        self._unlisted: Counter[str] = Counter()

    @property
    def names(self) -> list[str]:
        """The kinds by number."""
        names: list[str] = self._numbering.ids.to_list()
        return names

    def start_file(self) -> None:
        """Forget what was counted since the end of the last file."""
        self._unlisted.clear()

    def read(self, batch: TableBatch) -> None:
        """Add the column `kind`, of numbers, to the interactions of a batch, and `is_negative_kind` to its labels."""
        column = self._schema.event
        assert column is not None  # noqa: S101 - for mypy
        batch.cast("interaction", column, cast_kind, is_required=True, name="kind")
        if self._listed is not None:
            kinds = batch.typed_columns["interaction", "kind"]
            is_unlisted = ~kinds.is_in(self._listed)
            self._unlisted.update(kinds.filter(is_unlisted).to_list())
            batch.drop(is_unlisted)
        kinds = batch.typed_columns["interaction", "kind"]
        batch.typed_columns["label", "is_negative_kind"] = kinds.is_in(self._negatives)
        batch.typed_columns["interaction", "kind"] = pl.Series(self._numbering.number(kinds))

    def finish_file(self, source: TableSource, bad_rows: BadRowHandler) -> None:
        """Report the rows of the file that were dropped because their kind is not listed."""
        if self._unlisted:
            examples = [kind for kind, _ in self._unlisted.most_common(MAX_EXAMPLES)]
            reason = f"{self._schema.event}: kinds in neither weights nor negatives, such as {examples}"
            bad_rows.count(source, reason, self._unlisted.total())

    def check(self) -> None:
        """Raise if there are too many kinds, and warn of kinds that only the settings know, after all files.

        Raises:
            DataError: There are so many that the column is one of something else, or none of the targets.
        """
        found = self.names
        if len(found) > _MAX_KINDS:
            raise DataError(
                f"schema.interactions.event: column {self._schema.event!r} has {len(found):,} kinds such as "
                f"{found[:MAX_EXAMPLES]}, expected at most {_MAX_KINDS:,}: name a column of kinds such as view and "
                "buy, or list the kinds to read in schema.interactions.weights"
            )
        listed = canonicalize_kinds([*(self._schema.weights or ()), *self._negatives, *self._schema.targets])
        if found and self._schema.targets and not set(canonicalize_kinds(self._schema.targets)) & set(found):
            raise DataError(
                f"schema.interactions.targets: no row is of kind {' or '.join(self._schema.targets)}; those of column "
                f"{self._schema.event!r} are {found}"
            )
        if missing := sorted(set(listed) - set(found)):
            logger.warning(
                "schema.interactions: no row is of kind %s; those of column %r are %s",
                missing,
                self._schema.event,
                found,
            )
