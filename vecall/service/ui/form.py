"""The explorer's form: query parameters as a form, and a form as a query."""

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
_MAX_DIGITS = 9  # of a number of items
_ROW_PARAMS = ("field", "op", "value")  # of the filters; the i-th values of all three are row i
_ROW_BUTTONS = ("add", "remove")

QueryParams = Mapping[str, list[str]]


@dataclass(frozen=True)
class FilterRow:
    """One filter of the form, as text."""

    field: str = ""
    op: str = "eq"
    value: str = ""


@dataclass(frozen=True)
class ExploreForm:
    """The form as it was sent, all text, so that it can be shown again.

    Attributes:
        user: user id.
        history: item ids, separated by commas.
        k: number of items.
        exclude: item ids, separated by commas.
        exclude_seen: leave out items that the user has seen.
        filters: filters with an attribute.
    """

    user: str = ""
    history: str = ""
    k: str = str(_DEFAULT_K)
    exclude: str = ""
    exclude_seen: bool = True
    filters: tuple[FilterRow, ...] = ()

    @classmethod
    def from_query_params(cls, query_params: Mapping[str, Sequence[str]]) -> "ExploreForm":
        """The form of a query string's values by name."""

        def get_first_raw(name: str, default: str = "") -> str:
            return (query_params.get(name) or [default])[0]

        def get_first(name: str, default: str = "") -> str:
            return get_first_raw(name, default).strip()

        names, ops, values = (query_params.get(name, []) for name in _ROW_PARAMS)
        filters = tuple(
            FilterRow(name, op, value.strip()) for name, op, value in zip(names, ops, values, strict=False) if name
        )
        return cls(
            user=get_first_raw("user") if get_first("user") else "",  # an id may start or end with blanks
            history=get_first_raw("history") if get_first("history") else "",
            k=get_first("k", str(_DEFAULT_K)),
            exclude=get_first("exclude"),
            exclude_seen=get_first("sent") == "" or get_first("exclude_seen") != "",
            filters=filters,
        )

    @property
    def has_query(self) -> bool:
        """Whether there is anything to recall for."""
        return bool(self.user or self.history)

    @property
    def has_options(self) -> bool:
        """Whether any option differs from its default."""
        return bool(self.history or self.exclude or self.filters or not self.exclude_seen)

    def to_query(self, snapshot: Snapshot, limits: Limits) -> Query:
        """The query.

        Raises:
            QueryError: a text is not of the type that its field needs; `field` names it.
        """
        k = int(self.k) if self.k.isdecimal() and len(self.k) <= _MAX_DIGITS else 0
        if not 1 <= k <= limits.max_k:
            raise QueryError(f"k: expected a number from 1 to {limits.max_k:,}, got {self.k!r:.80}", field="k")
        if len(self.filters) > limits.max_conditions:
            raise QueryError(f"where: at most {limits.max_conditions} conditions are allowed", field="where")
        return Query(
            user_id=parse_user_id(snapshot, self.user) if self.user else None,
            history=parse_item_ids(snapshot, "history", self.history) if self.history else None,
            k=k,
            where=[parse_condition(f"where[{index}]", row, snapshot) for index, row in enumerate(self.filters)],
            exclude=parse_item_ids(snapshot, "exclude", self.exclude),
            exclude_seen=self.exclude_seen,
            explain=True,
        )


def parse_condition(location: str, row: FilterRow, snapshot: Snapshot) -> dict[str, Any]:
    """Parse a filter as a condition of `where`.

    Raises:
        QueryError: the attribute or the operation does not exist, or a number is expected; `field` is the location.
    """
    attributes = snapshot.release.attributes
    if row.field not in attributes.columns or row.op not in FILTER_OPS:
        raise QueryError(f"{location}: expected an attribute and an operation, got {row.field!r:.80}", field=location)
    dtype = attributes.schema[row.field]
    element_dtype = dtype.inner if isinstance(dtype, (pl.List, pl.Array)) else dtype
    texts = [text.strip() for text in row.value.split(",")] if row.op in LIST_VALUE_OPS else [row.value]
    values = [_parse_value(f"{location}.value", text, element_dtype) for text in texts]
    return {"field": row.field, "op": row.op, "value": values if row.op in LIST_VALUE_OPS else values[0]}


def apply_row_buttons(query_params: QueryParams) -> dict[str, list[str]]:
    """The parameters after the buttons that add or remove a filter, for browsers without JavaScript.

    A removed row is left out. The buttons' own parameters are, too, so that links to the page do not repeat them.
    """
    params = {name: values for name, values in query_params.items() if name not in _ROW_BUTTONS}
    removed = (query_params.get("remove") or [""])[0]
    if removed.isdecimal():
        for name in _ROW_PARAMS:
            params[name] = [value for index, value in enumerate(params.get(name, [])) if index != int(removed[:9])]
    return params


def parse_user_id(snapshot: Snapshot, text: str) -> Id:
    """Parse a user id as the release's id type; blanks around it count only if there is such a user."""
    users, id_type = snapshot.release.users, snapshot.release.user_id_type
    is_known = users is not None and id_type == "string" and users.ids.to_row(text) is not None
    return parse_id("user_id", text if is_known else text.strip(), id_type)


def parse_item_id(snapshot: Snapshot, text: str) -> Id:
    """Parse an item id as the release's id type; blanks around it count only if there is such an item."""
    return parse_id("id", text if _is_item_id(snapshot, text) else text.strip(), snapshot.release.item_ids.id_type)


def parse_item_ids(snapshot: Snapshot, field: str, text: str) -> list[Id]:
    """Parse item ids that are separated by commas, or one that contains commas itself."""
    if _is_item_id(snapshot, text):
        return [text]
    ids = (item_id.strip() for item_id in text.split(","))
    return [parse_id(field, item_id, snapshot.release.item_ids.id_type) for item_id in ids if item_id]


def _is_item_id(snapshot: Snapshot, text: str) -> bool:
    """Return whether a text, as it is, is the string id of an item."""
    if snapshot.release.item_ids.id_type == "integer":
        return False
    return bool(snapshot.is_live(snapshot.to_rows([text]))[0])


def _parse_value(location: str, text: str, dtype: Any) -> object:  # noqa: ANN401 - a Polars type, loosely typed there
    if dtype == pl.Boolean:
        return {"true": True, "false": False}.get(text.lower(), text)
    if not dtype.is_numeric():
        return text
    try:
        return float(text) if any(sign in text for sign in ".eE") else int(text)
    except ValueError:
        raise QueryError(f"{location}: expected a number, got {text!r:.80}", field=location) from None
