"""Bodies read and checked: JSON of the right shape, within the limits; what is wrong is told with the field's name."""

from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from vecall.errors import QueryError
from vecall.recall.query import Query
from vecall.service.schemas import Body, DeleteRequest, RecallRequest, UpsertRequest
from vecall.service.settings import Limits

Shape = TypeVar("Shape", bound=Body)

_BRANCHES = ("int", "str")  # that pydantic adds to the place of an id


def read(shape: type[Shape], content: bytes) -> Shape:
    """A body as one of the shapes of `wire`.

    Raises:
        QueryError: it is not JSON (`bad_json`), or not of that shape (`invalid`).
    """
    try:
        return shape.model_validate_json(content)
    except ValidationError as error:
        raise _explained(error) from None


def query_of(content: bytes, limits: Limits) -> Query:
    """A recall's body as a query.

    Raises:
        QueryError: it is no such body, or asks for too much.
    """
    asked = read(RecallRequest, content)
    _check_most("k", asked.k, limits.k, "items of one answer")
    _check_length("history", asked.history or (), limits.history)
    _check_length("recent", asked.recent or (), limits.history)
    _check_length("exclude", asked.exclude, limits.exclude)
    _check_length("where", asked.where, limits.conditions)
    for place, condition in enumerate(asked.where):
        if isinstance(condition.value, list):
            _check_length(f"where[{place}].value", condition.value, limits.values)
    return Query(
        user_id=asked.user_id,
        user=asked.user,
        history=asked.history,
        recent=asked.recent,
        vector=asked.vector,
        k=asked.k,
        where=[dict(condition) for condition in asked.where],
        exclude=asked.exclude,
        exclude_seen=asked.exclude_seen,
        explain=asked.explain,
    )


def items_of(content: bytes, limits: Limits) -> tuple[list[dict[str, Any]], bool]:
    """An upsert's items, as `Source.upsert` takes them, and whether they are partial.

    Raises:
        QueryError: as for `query_of`.
    """
    asked = read(UpsertRequest, content)
    _check_length("items", asked.items, limits.batch)
    return [item.model_dump(exclude_none=True) for item in asked.items], asked.partial


def ids_of(content: bytes, limits: Limits) -> list[int | str]:
    """The ids of a deletion.

    Raises:
        QueryError: as for `query_of`.
    """
    asked = read(DeleteRequest, content)
    _check_length("ids", asked.ids, limits.batch)
    return asked.ids


def _check_length(field: str, given: Sequence[object], most: int) -> None:
    _check_most(field, len(given), most, "entries")


def _check_most(field: str, asked: int, most: int, what: str) -> None:
    if asked > most:
        raise QueryError(f"{field}: at most {most:,} {what} are allowed, got {asked:,}", field=field)


def _explained(error: ValidationError) -> QueryError:
    """What is wrong at the first place that is wrong."""
    problems = error.errors(include_url=False, include_context=False)
    first = problems[0]
    if first["type"] == "json_invalid":
        return QueryError(f"the body is not JSON: {first['msg']}", code="bad_json")
    field = _path(first["loc"])
    said = " or ".join(dict.fromkeys(one["msg"] for one in problems if _path(one["loc"]) == field))
    came = "" if first["type"] == "missing" else f", got {first['input']!r:.80}"
    if not field:
        return QueryError(f"the body: {said}{came}")
    return QueryError(f"{field}: {said}{came}", field=field)


def _path(place: tuple[int | str, ...]) -> str:
    """A place as a caller writes it, `where[0].op`."""
    if len(place) > 1 and place[-1] in _BRANCHES and place[0] != "user" and "fields" not in place:
        place = place[:-1]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return path.removeprefix(".")
