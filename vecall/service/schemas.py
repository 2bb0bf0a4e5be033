"""Schemas of request and response bodies, for the OpenAPI document.

Requests are validated by the classes that Python and batch use too: `vecall.recall.query.Query` and
`vecall.live.item_parsing`. Tests check that the document and they accept the same.
"""

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue

from vecall.recall.conditions import FILTER_OPS
from vecall.release.manifest import RELEASE_NAME_PATTERN

ItemId = Annotated[int | str, Field(description="Your own id, of the id type of the release.")]


class RequestModel(BaseModel):
    """Base of request bodies: no conversion of types, no unknown keys."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Condition(RequestModel):
    """A condition on an attribute. Null satisfies none, not even `ne`."""

    field: str = Field(description="Name of an attribute.", examples=["year"])
    op: Literal[FILTER_OPS] = Field(  # type: ignore[valid-type]
        description="Scalars: eq, ne, in, not_in, gt, gte, lt, lte; tags: contains_any, contains_all, "
        "contains_none; booleans: eq, ne, in, not_in.",
        examples=["gte"],
    )
    value: JsonValue = Field(
        description="A value of the attribute's type; a list for `in`, `not_in` and tags. "
        "Datetimes are ISO 8601 strings.",
        examples=[1999],
    )


class RecallRequest(RequestModel):
    """A recall. At least one of user_id, user, history, recent and vector is required."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"history": [1, 50, 260], "k": 10}]})

    user_id: ItemId | None = Field(None, description="User whose stored history and features are used.")
    user: dict[str, JsonValue] | None = Field(
        None, description="User features by column; they override the stored ones."
    )
    history: list[ItemId] | None = Field(None, description="Item ids, oldest first; replaces the stored history.")
    recent: list[ItemId] | None = Field(
        None, description="Item ids, oldest first, appended to the stored or given history, such as today's clicks."
    )
    vector: list[float] | None = Field(None, description="The user vector itself, D numbers; skips the user tower.")
    k: int = Field(100, ge=1, description="Number of items.")
    where: list[Condition] = Field([], description="Conditions on item attributes; all must hold.")
    exclude: list[ItemId] = Field([], description="Item ids to leave out of the answer.")
    exclude_seen: bool = Field(default=True, description="Leave out the items of the stored and given history.")
    channels: list[str] | None = Field(
        None,
        min_length=1,
        description="Channels to ask, such as `vector`; null for those that the release was tuned for.",
    )
    explain: bool = Field(default=False, description="Return the execution plan in `plan`.")


class AttributeCap(RequestModel):
    """At most `max` items with the same value of an attribute; tags: with a tag in common. Null is no value."""

    by: str = Field(description="Name of an attribute.", examples=["genres"])
    max: int = Field(ge=1, description="Items of each value. It always holds, so the list may have fewer than k items.")


class MarginalRelevance(RequestModel):
    """Maximal marginal relevance by the vectors: each next item is good, and unlike those before it."""

    mmr: float = Field(ge=0, le=1, description="1: the order of the scores; the less, the more unlike.", examples=[0.7])


class RecommendRequest(RecallRequest):
    """A request for a final list. At least one of user_id, user, history, recent and vector is required."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"history": [1, 50, 260], "k": 10, "diversity": {"mmr": 0.7}}]}
    )

    k: int = Field(20, ge=1, description="Number of items of the final list.")
    candidates: int = Field(500, ge=1, description="Number of items that are recalled and ranked; k if that is more.")
    diversity: AttributeCap | MarginalRelevance | None = Field(None, description="How unlike the items shall be.")
    deadline_ms: float | None = Field(
        None,
        gt=0,
        description="Milliseconds after which no further channel is asked, and within which ranking must be expected "
        "to end; otherwise the order of recall answers.",
    )


class Item(RequestModel):
    """An item to add or replace. Without `vector` the item tower encodes `fields`."""

    id: ItemId
    fields: dict[str, JsonValue] | None = Field(None, description="Values by column; a missing column is null.")
    vector: list[float] | None = Field(None, description="D numbers, used instead of the item tower.")
    encoder: str | None = Field(
        None,
        description="Hash of the encoder that made `vector`, from the manifest; null for a release without towers.",
    )


class UpsertRequest(RequestModel):
    """Items to add or replace, all or none. Of equal ids the last one wins."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"items": [{"id": 9001, "fields": {"title": "New"}}]}]})

    items: list[Item] = Field(description="Items, in any order.")
    partial: bool = Field(
        default=False,
        description="A missing column keeps its value instead of becoming null; the items must exist.",
    )


class DeleteRequest(RequestModel):
    """Items to delete."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"ids": [9001]}]})

    ids: list[ItemId] = Field(description="Item ids; those without an item are counted as unknown.")


class ActivateRequest(RequestModel):
    """A release to activate."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "20261125-120000"}]})

    name: str = Field(pattern=f"^{RELEASE_NAME_PATTERN}$", description="Name of a release of this store.")


class UnknownCounts(BaseModel):
    """Inputs that the release does not know; they were ignored."""

    user: bool = Field(description="Whether the user id is unknown.")
    history: int = Field(description="Number of unknown ids in `history` and `recent`.")
    exclude: int = Field(description="Number of unknown ids in `exclude`.")


class ChannelInfo(BaseModel):
    """What a channel contributed."""

    count: int = Field(description="Items that it returned.")
    unique: int = Field(description="Items among them that no other channel returned.")
    ms: float = Field(description="Milliseconds.")


class PlanInfo(BaseModel):
    """Execution plan of a recall."""

    path: Literal["index", "scan", "all", "popular", "channels"] = Field(
        description="How vectors were searched. `index`: approximate search; `scan`: exact search; `all`: every match "
        "is returned; `popular`: fallback; `channels`: they were not."
    )
    matches: int = Field(description="Items that satisfy `where`.")
    excluded: int = Field(description="Matches left out as excluded or seen.")
    delta: int = Field(description="Live delta items that were searched.")
    effort: dict[str, int] | None = Field(description="Search parameters of the index; null if it was not searched.")
    ms: dict[str, float] = Field(description="Milliseconds by stage: encode, plan, search, merge, and rank.")
    channels: dict[str, ChannelInfo] = Field(description="By name of the channel that answered.")


class RecallResponse(BaseModel):
    """Items by descending score, then by id."""

    release: str = Field(description="Release that answered.")
    ids: list[ItemId] = Field(
        description="Item ids; fewer than k only if `exhausted`, or if `channels` has no `vector`."
    )
    scores: list[float] = Field(description="Scores of `ids`; larger is better. Of several channels: fused ones.")
    exhausted: bool = Field(description="Whether every matching item is in the answer.")
    fallback: Literal["history", "popular"] | None = Field(
        description="What replaced an unknown user: the given history, or popularity, which also replaces an engine "
        "that does not answer."
    )
    unknown: UnknownCounts
    degraded: list[str] = Field(
        description="What was left out because it failed: channels, or `engine`, the search of vectors on a server."
    )
    plan: PlanInfo | None = Field(None, description="Only with `explain`.")


class RecommendResponse(BaseModel):
    """The final list, best first."""

    release: str = Field(description="Release that answered.")
    ids: list[ItemId] = Field(
        description="Item ids; fewer than k only if fewer were recalled, or if `diversity.max` lets no more pass."
    )
    scores: list[float] = Field(description="Scores of `ids`: of the ranker, or of recall if `ranker` is `recall`.")
    channels: list[list[str]] = Field(description="Names of the channels that recalled each of `ids`.")
    ranker: str = Field(
        description="What ordered the list: `lightgbm`, the name of a ranker of your own, or `recall` where there is "
        "none or it could not rank."
    )
    degraded: list[str] = Field(
        description="What was left out because it failed or the deadline passed: channels, `ranker`, or `engine`, the "
        "search of vectors on a server."
    )
    exhausted: bool = Field(description="Whether every matching item is in the answer.")
    fallback: Literal["history", "popular"] | None = Field(
        description="What replaced an unknown user: the given history, or popularity."
    )
    unknown: UnknownCounts
    plan: PlanInfo | None = Field(None, description="Only with `explain`; `ms` also has the stage rank.")


class UpsertResponse(BaseModel):
    """The items are durable, and visible to the next recall."""

    release: str
    seq: int = Field(description="Sequence number of the last journal operation.")
    accepted: int = Field(description="Number of distinct items.")


class DeleteResponse(BaseModel):
    """The deletion is durable; no later recall returns the items."""

    release: str
    seq: int = Field(description="Sequence number of the last journal operation.")
    deleted: int = Field(description="Number of items that existed.")
    unknown: int = Field(description="Number of ids without an item.")


class ReleaseInfo(BaseModel):
    """A release of the store."""

    name: str
    created: AwareDatetime
    items: int
    dim: int
    bytes: int
    metrics: dict[str, Any]
    parent: str | None = Field(description="Release that was current when this one was published.")
    journal_seq: int = Field(description="Journal operations up to this one are contained.")


class ReleasesResponse(BaseModel):
    """All releases, newest first."""

    current: str | None = Field(description="Name of the current release.")
    releases: list[ReleaseInfo] = Field(description="Releases that were not pruned.")


class ActivateResponse(BaseModel):
    """New requests are answered by this release."""

    release: str
    previous: str | None


class ErrorInfo(BaseModel):
    """An error."""

    code: str = Field(description="Machine-readable error code.", examples=["invalid"])
    message: str = Field(description="What was received, what was expected, what to do.")
    field: str | None = Field(description="Part of the request, such as where[0].op.")


class ErrorResponse(BaseModel):
    """Body of every error response."""

    error: ErrorInfo


class HealthResponse(BaseModel):
    """The process is alive."""

    status: Literal["ok"]


class ReadinessResponse(BaseModel):
    """Recalls are answered."""

    ready: bool = Field(description="True; otherwise the answer is 503.")
    release: str
    reason: str | None = Field(description="Why the service is degraded; null if it is not.")
    rejected_changes: int = Field(description="Live changes that the release cannot apply: see `vecall journal list`.")
