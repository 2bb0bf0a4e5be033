"""What is asked of a recaller, and what it answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.data.id_map import Id
from vecall.data.request_features import is_number
from vecall.errors import QueryError
from vecall.schema import IdType

Fallback = Literal["history", "popular"]


@dataclass(frozen=True)
class Query:
    """One request. At least one of the first five is needed.

    Attributes:
        user_id: whose stored history and features are used.
        user: features by column; they override the stored ones.
        history: item ids, oldest first; given, it replaces the stored one.
        recent: item ids, oldest first, that come after the stored or given history, such as today's clicks.
        vector: [D] the user's vector itself; the tower is skipped.
        k: how many items, at least 1.
        where: conditions `{"field", "op", "value"}` on attributes; all must hold.
        exclude: item ids never to return.
        exclude_seen: leave out the items of the stored and of the given history, the recent ones among them.
        explain: say in the answer how it was found.

    Raises:
        QueryError: a part is of the wrong type or empty; `field` names it.
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
    explain: bool = False

    def __post_init__(self) -> None:
        if all(part is None for part in (self.user_id, self.user, self.history, self.recent, self.vector)):
            raise QueryError("expected at least one of user_id, user, history, recent and vector", code="empty_query")
        for name in ("history", "recent", "exclude"):  # to Python's own numbers
            object.__setattr__(self, name, _to_list(getattr(self, name)))
        _check("user_id", self.user_id is None or _is_id(self.user_id), self.user_id, "a string or an integer")
        _check("user", self.user is None or isinstance(self.user, Mapping), self.user, "an object of features")
        _check("history", self.history is None or _is_id_list(self.history), self.history, "a list of item ids")
        _check("recent", self.recent is None or _is_id_list(self.recent), self.recent, "a list of item ids")
        _check("k", _is_integer(self.k) and self.k >= 1, self.k, "an integer of at least 1")
        _check("where", _is_sequence_of(_is_mapping, self.where), self.where, "a list of {field, op, value}")
        _check("exclude", _is_id_list(self.exclude), self.exclude, "a list of item ids")
        _check("exclude_seen", _is_bool(self.exclude_seen), self.exclude_seen, "true or false")
        _check("explain", _is_bool(self.explain), self.explain, "true or false")
        object.__setattr__(self, "k", int(self.k))  # a narrow integer of NumPy would overflow when it is reckoned with
        if self.vector is not None:
            object.__setattr__(self, "vector", _to_array(self.vector))
            array = isinstance(self.vector, np.ndarray)
            numbers = self.vector.dtype.kind in "fiu" if array else _is_sequence_of(is_number, self.vector)  # type: ignore[union-attr]
            _check("vector", numbers, self.vector, "a list of finite numbers")

    @classmethod
    def from_json(cls, request: object) -> "Query":
        """A request as JSON gave it.

        Raises:
            QueryError: it is no object, has an unknown key, or a part is wrong.
        """
        if not isinstance(request, dict):
            raise QueryError(f"expected an object, got {type(request).__name__}", code="bad_json")
        known = {one.name for one in fields(cls)}
        for key in request:
            if key not in known:
                raise QueryError(f"unknown key {key!r}; expected some of {sorted(known)}", field=str(key))
        return cls(**request)


@dataclass(frozen=True)
class UnknownInputs:
    """What of a query the release does not know.

    Attributes:
        user: whether a user id was given that it does not have.
        history: ids of the given history that it does not have.
        exclude: ids of `exclude` likewise.
    """

    user: bool = False
    history: int = 0
    exclude: int = 0


@dataclass(frozen=True)
class ExecutionPlan:
    """How an answer was found.

    Attributes:
        path: "index", "scan" (exact), "all" (every match is returned) or "popular".
        matches: items that pass `where`.
        excluded: items among them that were left out.
        delta: live items searched beside the index.
        effort: how hard the index searched, `width` and `depth` (see `vecall.index.base.SearchParams`); None: it did not.
        ms: milliseconds by stage: encode, plan, search, merge.
    """

    path: Literal["index", "scan", "all", "popular"]
    matches: int
    excluded: int
    delta: int
    effort: Mapping[str, int] | None
    ms: Mapping[str, float]


@dataclass(frozen=True)
class Recalled:
    """The answer: ids by score descending, then id ascending.

    Attributes:
        release: the one release that all of it is from.
        ids: of the schema's type; fewer than k only if `exhausted`.
        scores: as many; larger is better.
        exhausted: true only when every matching item is in the answer.
        fallback: what stood in where the user is not known; None where nothing had to.
        unknown: what of the query was not known.
        plan: with `explain`, else None.
    """

    release: str
    ids: list[int] | list[str]
    scores: list[float]
    exhausted: bool
    fallback: Fallback | None
    unknown: UnknownInputs
    plan: ExecutionPlan | None = None

    def as_json(self) -> dict[str, object]:
        """The answer as over HTTP."""
        answer: dict[str, object] = dict(vars(self))  # its lists are not copied, as `asdict` would do
        answer["unknown"] = vars(self.unknown)
        del answer["plan"]
        return answer if self.plan is None else answer | {"plan": vars(self.plan)}


def parse_id(field: str, text: str, id_type: IdType) -> Id:
    """An id written as text, in the type that ids have.

    Raises:
        QueryError: ids are integers, and the text is none.
    """
    if id_type == "string":
        return text
    try:
        return int(text)
    except ValueError:
        raise QueryError(f"{field}: ids here are integers, got {text!r:.80}", field=field) from None


def _check(field: str, is_valid: bool, value: object, expected: str) -> None:
    if not is_valid:
        raise QueryError(f"{field}: expected {expected}, got {value!r:.80}", field=field)


def _is_integer(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _is_bool(value: object) -> bool:
    return isinstance(value, (bool, np.bool_))


def _to_list(ids: object) -> object:
    """Arrays and columns of ids as lists; anything else stays."""
    return ids.tolist() if isinstance(ids, np.ndarray) else ids.to_list() if isinstance(ids, pl.Series) else ids


def _to_array(vector: object) -> object:
    """What says how it becomes an array, such as a tensor, as one; anything else stays."""
    if isinstance(vector, np.ndarray) or not hasattr(vector, "__array__"):
        return vector
    try:
        return np.asarray(vector)
    except (TypeError, ValueError, RuntimeError) as error:
        raise QueryError(
            f"vector: expected a list of finite numbers, got {type(vector).__name__}: {error}", field="vector"
        ) from error


def _is_id(value: object) -> bool:
    return isinstance(value, str) or _is_integer(value)


def _is_mapping(value: object) -> bool:
    return isinstance(value, Mapping)


def _is_sequence_of(predicate: Any, values: object) -> bool:  # noqa: ANN401 - a predicate
    listed = isinstance(values, (Sequence, np.ndarray)) and not isinstance(values, (str, bytes))
    return listed and all(map(predicate, values))  # type: ignore[call-overload]


def _is_id_list(values: object) -> bool:
    return (isinstance(values, list) and set(map(type, values)) <= {int, str}) or _is_sequence_of(_is_id, values)
