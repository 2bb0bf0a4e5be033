"""Bodies read and checked: JSON of the right shape, within the limits; what is wrong is told with the field's name."""

from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from vecall.errors import QueryError
from vecall.recall.query import Query
from vecall.service.schemas import DeleteRequest, RecallRequest, RequestModel, UpsertRequest
from vecall.service.settings import Limits

ModelT = TypeVar("ModelT", bound=RequestModel)

_UNION_TAGS = ("int", "str")  # that pydantic adds to the place of an id


def parse_body(model: type[ModelT], body: bytes) -> ModelT:
    """A body as one of the shapes of `wire`.

    Raises:
        QueryError: it is not JSON (`bad_json`), or not of that shape (`invalid`).
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _to_query_error(error) from None


def parse_recall(body: bytes, limits: Limits) -> Query:
    """A recall's body as a query.

    Raises:
        QueryError: it is no such body, or asks for too much.
    """
    asked = parse_body(RecallRequest, body)
    _check_max("k", asked.k, limits.max_k, "items of one answer")
    _check_length("history", asked.history or (), limits.max_history)
    _check_length("recent", asked.recent or (), limits.max_history)
    _check_length("exclude", asked.exclude, limits.max_exclude)
    _check_length("where", asked.where, limits.max_conditions)
    for place, condition in enumerate(asked.where):
        if isinstance(condition.value, list):
            _check_length(f"where[{place}].value", condition.value, limits.max_filter_values)
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


def parse_upsert(body: bytes, limits: Limits) -> tuple[list[dict[str, Any]], bool]:
    """An upsert's items, as `Source.upsert` takes them, and whether they are partial.

    Raises:
        QueryError: as for `parse_recall`.
    """
    asked = parse_body(UpsertRequest, body)
    _check_length("items", asked.items, limits.max_batch_items)
    return [item.model_dump(exclude_none=True) for item in asked.items], asked.partial


def parse_delete(body: bytes, limits: Limits) -> list[int | str]:
    """The ids of a deletion.

    Raises:
        QueryError: as for `parse_recall`.
    """
    asked = parse_body(DeleteRequest, body)
    _check_length("ids", asked.ids, limits.max_batch_items)
    return asked.ids


def _check_length(field: str, values: Sequence[object], max_length: int) -> None:
    _check_max(field, len(values), max_length, "entries")


def _check_max(field: str, value: int, maximum: int, unit: str) -> None:
    if value > maximum:
        raise QueryError(f"{field}: at most {maximum:,} {unit} are allowed, got {value:,}", field=field)


def _to_query_error(error: ValidationError) -> QueryError:
    """What is wrong at the first place that is wrong."""
    problems = error.errors(include_url=False, include_context=False)
    first = problems[0]
    if first["type"] == "json_invalid":
        return QueryError(f"the body is not JSON: {first['msg']}", code="bad_json")
    field = _format_location(first["loc"])
    said = " or ".join(dict.fromkeys(one["msg"] for one in problems if _format_location(one["loc"]) == field))
    came = "" if first["type"] == "missing" else f", got {first['input']!r:.80}"
    if not field:
        return QueryError(f"the body: {said}{came}")
    return QueryError(f"{field}: {said}{came}", field=field)


def _format_location(location: tuple[int | str, ...]) -> str:
    """A place as a caller writes it, `where[0].op`."""
    if len(location) > 1 and location[-1] in _UNION_TAGS and location[0] != "user" and "fields" not in location:
        location = location[:-1]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return path.removeprefix(".")
