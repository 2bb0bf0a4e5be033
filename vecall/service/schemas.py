"""What goes over HTTP: bodies, answers and errors, with the texts of the OpenAPI document."""

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue

from vecall.recall.conditions import FILTER_OPS
from vecall.release.manifest import RELEASE_NAME_PATTERN

ItemId = Annotated[int | str, Field(description="An id of your own, of the type that the release's ids have.")]


class RequestModel(BaseModel):
    """Base of what clients send: nothing is converted, nothing unknown is taken."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Condition(RequestModel):
    """One condition on an attribute. Null satisfies none of them, not even `ne`."""

    field: str = Field(description="Name of an attribute.", examples=["year"])
    op: Literal[FILTER_OPS] = Field(  # type: ignore[valid-type]
        description="On scalars eq, ne, in, not_in, gt, gte, lt, lte; on tags contains_any, contains_all, "
        "contains_none; on flags eq, ne, in, not_in.",
        examples=["gte"],
    )
    value: JsonValue = Field(
        description="A value of the attribute's kind; a list for `in`, `not_in` and tags. Times are ISO 8601 text.",
        examples=[1999],
    )


class RecallRequest(RequestModel):
    """Whom to recall for, and what may be in the answer. At least one of the first five is needed."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"history": [1, 50, 260], "k": 10}]})

    user_id: ItemId | None = Field(None, description="Whose stored history and features are used.")
    user: dict[str, JsonValue] | None = Field(None, description="Features by column; they go over the stored ones.")
    history: list[ItemId] | None = Field(
        None, description="Item ids taken, oldest first; given, it replaces the stored history."
    )
    recent: list[ItemId] | None = Field(
        None, description="Item ids, oldest first, that come after the stored or given history: today's clicks."
    )
    vector: list[float] | None = Field(None, description="The user's vector itself, D numbers; the tower is skipped.")
    k: int = Field(100, ge=1, description="How many items.")
    where: list[Condition] = Field([], description="Conditions on attributes; all must hold.")
    exclude: list[ItemId] = Field([], description="Item ids that must not be in the answer.")
    exclude_seen: bool = Field(default=True, description="Leave out the items of the stored and the given history.")
    explain: bool = Field(default=False, description="Say in `plan` how the answer was found.")


class Item(RequestModel):
    """An item to add or replace. Without `vector` the release's item tower makes one of `fields`."""

    id: ItemId
    fields: dict[str, JsonValue] | None = Field(None, description="By column; a missing column is null.")
    vector: list[float] | None = Field(None, description="D numbers, instead of the item tower's.")
    encoder: str | None = Field(
        None, description="Hash of the encoder that made `vector`, as in the release's manifest; without towers: none."
    )


class UpsertRequest(RequestModel):
    """Items to add or replace: all of them or none. Of equal ids the last one counts."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"items": [{"id": 9001, "fields": {"title": "New"}}]}]})

    items: list[Item] = Field(description="In any order.")
    partial: bool = Field(
        default=False,
        description="A missing column keeps its value instead of becoming null; the items must be there.",
    )


class DeleteRequest(RequestModel):
    """Items that no later answer may contain."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"ids": [9001]}]})

    ids: list[ItemId] = Field(description="Ids that no item has are counted.")


class ActivateRequest(RequestModel):
    """Which release to go over to."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "20261125-120000"}]})

    name: str = Field(pattern=f"^{RELEASE_NAME_PATTERN}$", description="Name of a release of this store.")


class UnknownCounts(BaseModel):
    """What of the request the release does not know; it was left out of account."""

    user: bool = Field(description="The user id.")
    history: int = Field(description="How many ids of `history`.")
    exclude: int = Field(description="How many ids of `exclude`.")


class PlanInfo(BaseModel):
    """How the answer was found."""

    path: Literal["index", "scan", "all", "popular"] = Field(
        description="`index` is approximate; `scan` is exact; `all`: every match is in the answer; `popular`: fallback."
    )
    matches: int = Field(description="Items that satisfy `where`.")
    excluded: int = Field(description="Matches that were left out as excluded or seen.")
    delta: int = Field(description="Live changes that were searched beside the release.")
    effort: dict[str, int] | None = Field(description="How hard the index searched; null: it did not.")
    ms: dict[str, float] = Field(description="Milliseconds of encode, plan, search, merge.")


class RecallResponse(BaseModel):
    """Items by score descending, then by id."""

    release: str = Field(description="The one release that all of the answer is from.")
    ids: list[ItemId] = Field(description="Fewer than k only if `exhausted`.")
    scores: list[float] = Field(description="As many; larger is better.")
    exhausted: bool = Field(description="Every matching item is in the answer.")
    fallback: Literal["history", "popular"] | None = Field(
        description="What stood in for a user who is not known: the given history, or what is popular."
    )
    unknown: UnknownCounts
    plan: PlanInfo | None = Field(None, description="With `explain` only.")


class UpsertResponse(BaseModel):
    """The items are on the disk, and the next recall sees them."""

    release: str
    seq: int = Field(description="Number of the last change in the journal.")
    accepted: int = Field(description="Distinct items that were taken.")


class DeleteResponse(BaseModel):
    """The deletion is on the disk, and no later recall returns the items."""

    release: str
    seq: int = Field(description="Number of the last change in the journal.")
    deleted: int = Field(description="Items that were there.")
    unknown: int = Field(description="Ids that no item had.")


class ReleaseInfo(BaseModel):
    """One release of the store."""

    name: str
    created: AwareDatetime
    items: int
    dim: int
    bytes: int
    metrics: dict[str, Any]
    parent: str | None = Field(description="What was current when it was published.")
    journal_seq: int = Field(description="Live changes up to this one are in it.")


class ReleasesResponse(BaseModel):
    """All releases, newest first."""

    current: str | None = Field(description="The one that the store calls current.")
    releases: list[ReleaseInfo] = Field(description="All that were not pruned.")


class ActivateResponse(BaseModel):
    """Requests that begin from now on are answered by this release."""

    release: str
    previous: str | None


class ErrorInfo(BaseModel):
    """What went wrong."""

    code: str = Field(description="A word for machines.", examples=["invalid"])
    message: str = Field(description="What came, what was expected, what to do.")
    field: str | None = Field(description="The part of the request, such as where[0].op.")


class ErrorResponse(BaseModel):
    """Every answer that is no success."""

    error: ErrorInfo


class HealthResponse(BaseModel):
    """The process answers."""

    status: Literal["ok"]


class ReadinessResponse(BaseModel):
    """Whether recalls are answered."""

    ready: bool = Field(description="True: they are.")
    release: str
    reason: str | None = Field(description="What it waits for, or what is wrong.")
    rejected_changes: int = Field(description="Live changes that the release cannot take; see `vecall journal list`.")
