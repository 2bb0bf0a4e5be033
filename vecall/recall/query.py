"""Request and answer of a recall: `Query` and `Recalled`, and their JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.data.id_map import Id
from vecall.data.request_features import is_number
from vecall.errors import QueryError
from vecall.recall.field_checks import check, check_each, check_object, is_bool, is_integer, is_mapping, is_text
from vecall.schema import IdType

Fallback = Literal["history", "popular"]
RecallRoute = Literal["index", "scan", "all", "popular", "channels"]


@dataclass(frozen=True)
class Query:
    """One request. At least one of the first five attributes is required.

    Attributes:
        user_id: User whose stored history and features are used.
        user: Features by column; they override the stored ones.
        history: Item ids, oldest first; replaces the stored history.
        recent: Item ids, oldest first, appended to the stored or given history, such as today's clicks.
        vector: [D] user vector; the user tower is skipped.
        k: Number of items, at least 1.
        where: Conditions `{"field", "op", "value"}` on attributes; all must hold.
        exclude: Item ids never to return.
        exclude_seen: Whether to leave out the items of the stored history, of `history` and of `recent`.
        channels: Names of the channels to ask, such as "vector"; None for those that the release was tuned for.
        explain: Whether the answer carries an `ExecutionPlan`.

    Raises:
        QueryError: A part is of the wrong type or out of range (`field` names it), or all of the first five are None.
    """

    user_id: Id | None = None
    user: Mapping[str, object] | None = None
    history: Sequence[Id] | None = None
    recent: Sequence[Id] | None = None
    vector: Sequence[float] | NDArray[np.floating[Any]] | None = None
    k: int = 100
    where: Sequence[Mapping[str, object]] = ()
    exclude: Sequence[Id] = ()
    exclude_seen: bool = True
    channels: Sequence[str] | None = None
    explain: bool = False

    def __post_init__(self) -> None:
        if all(part is None for part in (self.user_id, self.user, self.history, self.recent, self.vector)):
            raise QueryError("expected at least one of user_id, user, history, recent and vector", code="empty_query")
        for name in ("history", "recent", "exclude"):
            object.__setattr__(self, name, _to_list(getattr(self, name)))
        check("user_id", self.user_id is None or _is_id(self.user_id), self.user_id, "a string or an integer")
        check("user", self.user is None or isinstance(self.user, Mapping), self.user, "an object of features")
        _check_ids("history", self.history)
        _check_ids("recent", self.recent)
        check("k", is_integer(self.k) and self.k >= 1, self.k, "an integer of at least 1")
        check_each("where", self.where, is_mapping, "{field, op, value}")
        check("exclude", self.exclude is not None, self.exclude, "a list of item ids")
        _check_ids("exclude", self.exclude)
        check("exclude_seen", is_bool(self.exclude_seen), self.exclude_seen, "true or false")
        if self.channels is not None:
            check_each("channels", self.channels, is_text, "names of channels")
            check("channels", len(self.channels) > 0, self.channels, "at least one name, or null")
            object.__setattr__(self, "channels", tuple(self.channels))
        check("explain", is_bool(self.explain), self.explain, "true or false")
        object.__setattr__(self, "k", int(self.k))  # a narrow NumPy integer would overflow in arithmetic
        if self.vector is not None:
            object.__setattr__(self, "vector", _to_array(self.vector))
            if isinstance(self.vector, np.ndarray):
                check("vector", self.vector.dtype.kind in "fiu", self.vector, "a list of finite numbers")
            else:
                check_each("vector", self.vector, is_number, "finite numbers")

    @classmethod
    def from_json(cls, request: object) -> "Query":
        """Build a query from a decoded JSON request.

        Raises:
            QueryError: The request is not an object, has an unknown key, or a part of it is invalid.
        """
        return cls(**check_object(request, cls.__dataclass_fields__))


@dataclass(frozen=True)
class UnknownInputs:
    """Ids of a query that the release does not have.

    Attributes:
        user: Whether the user id is unknown.
        history: Number of unknown ids in `history` and `recent`.
        exclude: Number of unknown ids in `exclude`.
    """

    user: bool = False
    history: int = 0
    exclude: int = 0


@dataclass(frozen=True)
class ExecutionPlan:
    """How an answer was found, for `explain`.

    Attributes:
        path: How vectors were searched: "index", "scan" (exact), "all" (the index has at most k items to return,
            perhaps none, and all of them are scored), "popular" instead of them; or "channels" if they were not.
        matches: Items that pass `where`.
        excluded: Items among them that were excluded.
        delta: Live items outside the index that may be returned; all are scored.
        effort: Width and re-rank depth (`SearchParams`) of the search of the index; None if it was not searched.
        ms: Milliseconds by stage: encode, plan, search, merge.
        channels: By name of the channel that answered: `count` of its items, `unique` of them that no other channel
            returned, and `ms`.
    """

    path: RecallRoute
    matches: int
    excluded: int
    delta: int
    effort: Mapping[str, int] | None
    ms: Mapping[str, float]
    channels: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Recalled:
    """Answer to a query: ids by score descending, then id ascending.

    Attributes:
        release: Name of the release that the whole answer comes from.
        ids: Item ids of the schema's type; fewer than k only if `exhausted`, or if no channel that recalls all items
            was asked, which "vector" does.
        scores: Score of each id; larger is better. Of several channels it is the fused one, see
            `vecall.recall.merging`.
        exhausted: Whether every matching item is in the answer.
        fallback: What replaced the stored user: "history" (only the given one), "popular" (popular items), or None.
            "popular" also if popular items replaced an engine that did not answer.
        unknown: Ids of the query that the release does not have.
        degraded: Names of the channels that were left out because they failed, and "engine" if the vectors were because
            the server that holds the index did not answer.
        plan: How the answer was found, if the query asked to `explain`; else None.
    """

    release: str
    ids: list[int] | list[str]
    scores: list[float]
    exhausted: bool
    fallback: Fallback | None
    unknown: UnknownInputs
    degraded: Sequence[str] = ()
    plan: ExecutionPlan | None = None

    def as_json(self) -> dict[str, object]:
        """Return the answer as it is sent over HTTP, sharing its lists."""
        answer: dict[str, object] = dict(vars(self))  # `asdict` would copy the lists
        answer["unknown"], answer["degraded"] = vars(self.unknown), list(self.degraded)
        del answer["plan"]
        return answer if self.plan is None else answer | {"plan": vars(self.plan)}


def parse_id(field: str, text: str, id_type: IdType) -> Id:
    """Parse an id that was written as text.

    Args:
        field: Part of the request that holds the id, for the error.
        text: The id.
        id_type: Type of the release's ids.

    Raises:
        QueryError: The ids are integers, and the text is not an integer.
    """
    if id_type == "string":
        return text
    try:
        return int(text)
    except ValueError:
        raise QueryError(f"{field}: ids here are integers, got {text!r:.80}", field=field) from None


def _check_ids(field: str, values: object) -> None:
    if values is None or (isinstance(values, list) and set(map(type, values)) <= {int, str}):
        return  # a fast path: histories may hold thousands of ids
    check_each(field, values, _is_id, "item ids")


def _to_list(ids: object) -> object:
    """Convert an array or a column of ids to a list of Python's own types; return anything else unchanged."""
    return ids.tolist() if isinstance(ids, np.ndarray) else ids.to_list() if isinstance(ids, pl.Series) else ids


def _to_array(vector: object) -> object:
    """Convert an object with `__array__`, such as a tensor, to an array; return anything else unchanged."""
    if isinstance(vector, np.ndarray) or not hasattr(vector, "__array__"):
        return vector
    try:
        return np.asarray(vector)
    except (TypeError, ValueError, RuntimeError) as error:
        raise QueryError(
            f"vector: expected a list of finite numbers, got {type(vector).__name__}: {error}", field="vector"
        ) from error


def _is_id(value: object) -> bool:
    return isinstance(value, str) or is_integer(value)
