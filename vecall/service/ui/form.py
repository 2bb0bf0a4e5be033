"""The explorer's form: what a person typed, as a query."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from vecall.data.id_map import Id
from vecall.errors import QueryError
from vecall.live.snapshot import Snapshot
from vecall.recall.conditions import FILTER_OPS, LIST_VALUE_OPS
from vecall.recall.query import Query, parse_id
from vecall.service.settings import Limits

_DEFAULT_K = 20


@dataclass(frozen=True)
class FilterRow:
    """One row of the form."""

    field: str = ""
    op: str = "eq"
    value: str = ""


@dataclass(frozen=True)
class ExploreForm:
    """The form as it was sent, all of it text, to be shown again.

    Attributes:
        user: a user id.
        history: item ids with commas.
        k: how many.
        exclude: item ids with commas.
        exclude_seen: whether to leave out what was taken.
        filters: rows; those without a field count for nothing.
    """

    user: str = ""
    history: str = ""
    k: str = str(_DEFAULT_K)
    exclude: str = ""
    exclude_seen: bool = True
    filters: tuple[FilterRow, ...] = ()

    @classmethod
    def from_query_params(cls, query_params: Mapping[str, Sequence[str]]) -> "ExploreForm":
        """Of a query string's values by name."""

        def get_first(name: str, default: str = "") -> str:
            return (query_params.get(name) or [default])[0].strip()

        names, ops, values = (query_params.get(part, []) for part in ("field", "op", "value"))
        filters = tuple(
            FilterRow(name, op, value.strip()) for name, op, value in zip(names, ops, values, strict=False) if name
        )
        return cls(
            user=get_first("user"),
            history=get_first("history"),
            k=get_first("k", str(_DEFAULT_K)),
            exclude=get_first("exclude"),
            exclude_seen=get_first("sent") == "" or get_first("exclude_seen") != "",
            filters=filters,
        )

    @property
    def has_query(self) -> bool:
        """Whether there is anything to recall for."""
        return bool(self.user or self.history)

    def to_query(self, snapshot: Snapshot, limits: Limits) -> Query:
        """The query.

        Raises:
            QueryError: something that was typed is not of the kind that is needed.
        """
        if not self.k.isdecimal() or not 1 <= int(self.k[:9]) <= limits.max_k:
            raise QueryError(f"k: expected a number from 1 to {limits.max_k:,}, got {self.k!r:.80}", field="k")
        if len(self.filters) > limits.max_conditions:
            raise QueryError(f"where: at most {limits.max_conditions} conditions are allowed", field="where")
        return Query(
            user_id=parse_user_id(snapshot, self.user) if self.user else None,
            history=parse_item_ids(snapshot, "history", self.history) if self.history else None,
            k=int(self.k),
            where=[self._parse_condition(f"where[{place}]", row, snapshot) for place, row in enumerate(self.filters)],
            exclude=parse_item_ids(snapshot, "exclude", self.exclude),
            exclude_seen=self.exclude_seen,
            explain=True,
        )

    def _parse_condition(self, location: str, row: FilterRow, snapshot: Snapshot) -> dict[str, Any]:
        attributes = snapshot.release.attributes
        if row.field not in attributes.columns or row.op not in FILTER_OPS:
            raise QueryError(
                f"{location}: expected an attribute and an operation, got {row.field!r:.80}", field=location
            )
        kind = attributes.schema[row.field]
        inner = kind.inner if isinstance(kind, (pl.List, pl.Array)) else kind
        listed = [_parse_value(f"{location}.value", one.strip(), inner) for one in row.value.split(",")]
        whole = listed if row.op in LIST_VALUE_OPS else _parse_value(f"{location}.value", row.value, inner)
        return {"field": row.field, "op": row.op, "value": whole}


def parse_user_id(snapshot: Snapshot, text: str) -> Id:
    """A user id that was typed, of the release's type."""
    return parse_id("user_id", text, snapshot.release.user_id_type)


def parse_item_ids(snapshot: Snapshot, field: str, text: str) -> list[Id]:
    """Item ids that were typed, with commas between them."""
    return [parse_id(field, one.strip(), snapshot.release.item_ids.id_type) for one in text.split(",") if one.strip()]


def _parse_value(location: str, text: str, dtype: Any) -> object:  # noqa: ANN401 - a Polars type, loosely typed there
    if dtype == pl.Boolean:
        return {"true": True, "false": False}.get(text.lower(), text)
    if not dtype.is_numeric():
        return text
    try:
        return float(text) if any(sign in text for sign in ".eE") else int(text)
    except ValueError:
        raise QueryError(f"{location}: expected a number, got {text!r:.80}", field=location) from None
