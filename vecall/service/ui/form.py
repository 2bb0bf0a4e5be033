"""The explorer's form: what a person typed, as a query."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from vecall.data.id_map import Id
from vecall.errors import QueryError
from vecall.live.snapshot import Snapshot
from vecall.recall.conditions import FILTER_OPS, LIST_OPS
from vecall.recall.query import Query, parse_id
from vecall.service.settings import Limits

_USUAL_K = 20


@dataclass(frozen=True)
class Filter:
    """One row of the form."""

    field: str = ""
    op: str = "eq"
    value: str = ""


@dataclass(frozen=True)
class Form:
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
    k: str = str(_USUAL_K)
    exclude: str = ""
    exclude_seen: bool = True
    filters: tuple[Filter, ...] = ()

    @classmethod
    def of(cls, given: Mapping[str, Sequence[str]]) -> "Form":
        """Of a query string's values by name."""

        def one(name: str, usual: str = "") -> str:
            return (given.get(name) or [usual])[0].strip()

        names, ops, values = (given.get(part, []) for part in ("field", "op", "value"))
        filters = tuple(
            Filter(name, op, value.strip()) for name, op, value in zip(names, ops, values, strict=False) if name
        )
        return cls(
            user=one("user"),
            history=one("history"),
            k=one("k", str(_USUAL_K)),
            exclude=one("exclude"),
            exclude_seen=one("sent") == "" or one("exclude_seen") != "",
            filters=filters,
        )

    @property
    def asks(self) -> bool:
        """Whether there is anything to recall for."""
        return bool(self.user or self.history)

    def query(self, view: Snapshot, limits: Limits) -> Query:
        """The query.

        Raises:
            QueryError: something that was typed is not of the kind that is needed.
        """
        if not self.k.isdecimal() or not 1 <= int(self.k[:9]) <= limits.k:
            raise QueryError(f"k: expected a number from 1 to {limits.k:,}, got {self.k!r:.80}", field="k")
        if len(self.filters) > limits.conditions:
            raise QueryError(f"where: at most {limits.conditions} conditions are allowed", field="where")
        return Query(
            user_id=user_id(view, self.user) if self.user else None,
            history=item_ids(view, "history", self.history) if self.history else None,
            k=int(self.k),
            where=[self._condition(f"where[{place}]", row, view) for place, row in enumerate(self.filters)],
            exclude=item_ids(view, "exclude", self.exclude),
            exclude_seen=self.exclude_seen,
            explain=True,
        )

    def _condition(self, place: str, row: Filter, view: Snapshot) -> dict[str, Any]:
        attributes = view.release.attributes
        if row.field not in attributes.columns or row.op not in FILTER_OPS:
            raise QueryError(f"{place}: expected an attribute and an operation, got {row.field!r:.80}", field=place)
        kind = attributes.schema[row.field]
        inner = kind.inner if isinstance(kind, (pl.List, pl.Array)) else kind
        listed = [_typed(f"{place}.value", one.strip(), inner) for one in row.value.split(",")]
        whole = listed if row.op in LIST_OPS else _typed(f"{place}.value", row.value, inner)
        return {"field": row.field, "op": row.op, "value": whole}


def user_id(view: Snapshot, text: str) -> Id:
    """A user id that was typed, of the release's type."""
    users = view.release.users
    return parse_id("user_id", text, "string" if users is None else users.ids.id_type)


def item_ids(view: Snapshot, field: str, text: str) -> list[Id]:
    """Item ids that were typed, with commas between them."""
    return [parse_id(field, one.strip(), view.release.items.id_type) for one in text.split(",") if one.strip()]


def _typed(place: str, text: str, kind: Any) -> object:  # noqa: ANN401 - a Polars type, loosely typed there
    if kind == pl.Boolean:
        return {"true": True, "false": False}.get(text.lower(), text)
    if not kind.is_numeric():
        return text
    try:
        return float(text) if any(sign in text for sign in ".eE") else int(text)
    except ValueError:
        raise QueryError(f"{place}: expected a number, got {text!r:.80}", field=place) from None
