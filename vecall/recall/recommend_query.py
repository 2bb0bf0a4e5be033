"""Request and answer of a recommendation: `RecommendRequest` and `Recommended`, and their JSON."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vecall.data.request_features import is_number
from vecall.recall.diversity import Diversity, parse_diversity
from vecall.recall.field_checks import check, check_object, is_integer
from vecall.recall.query import ExecutionPlan, Fallback, Query, UnknownInputs

RECALL_ORDER = "recall"  # name of the ranker where there is none, or it could not rank
DEFAULT_K, DEFAULT_CANDIDATES = 20, 500

_OWN_FIELDS = ("k", "candidates", "diversity", "deadline_ms")


@dataclass(frozen=True)
class RecommendRequest:
    """A request for a final list: a query whose candidates are ranked.

    Attributes:
        query: Who the user is, and what may be recommended; its own `k` is ignored.
        k: Items of the final list, at least 1.
        candidates: Items that are recalled and ranked, at least 1; k if that is more.
        diversity: See `vecall.recall.diversity`; None without.
        deadline_ms: Milliseconds after which no further channel is asked and ranking does not start; None for none.

    Raises:
        QueryError: A part is of the wrong type or out of range; `field` names it.
    """

    query: Query
    k: int = DEFAULT_K
    candidates: int = DEFAULT_CANDIDATES
    diversity: Diversity | None = None
    deadline_ms: float | None = None

    def __post_init__(self) -> None:
        for name in ("k", "candidates"):
            value = getattr(self, name)
            check(name, is_integer(value) and value >= 1, value, "an integer of at least 1")
            object.__setattr__(self, name, int(value))
        if (deadline_ms := self.deadline_ms) is not None:
            check("deadline_ms", is_number(deadline_ms) and deadline_ms > 0, deadline_ms, "a number above 0, or null")

    @classmethod
    def from_json(cls, request: object) -> "RecommendRequest":
        """Build a request from a decoded JSON request: the keys of a recall, and those of this class.

        Raises:
            QueryError: The request is not an object, has an unknown key, or a part of it is invalid.
        """
        fields = check_object(request, (*Query.__dataclass_fields__, *_OWN_FIELDS))
        own = {name: fields[name] for name in _OWN_FIELDS if name in fields}
        if "diversity" in own:
            own["diversity"] = parse_diversity(own["diversity"])
        of_query = {name: value for name, value in fields.items() if name not in own}
        return cls(Query(**of_query), **own)

    def to_candidate_query(self) -> Query:
        """Return the query by which candidates are recalled."""
        return replace(self.query, k=max(self.candidates, self.k))


@dataclass(frozen=True)
class Recommended:
    """The final list for a user, best first.

    Attributes:
        release: Name of the release that the whole answer comes from.
        ids: Item ids of the schema's type. Fewer than k only if fewer were recalled, or if `diversity.max` lets no more
            of the candidates pass.
        scores: Score of each id: the ranker's, or that of recall if `ranker` is "recall". They descend, ties in the
            order of recall, except with `diversity.mmr`, which orders by more than scores.
        channels: Names of the channels that recalled each id.
        ranker: What ordered the list: "lightgbm", the name of a ranker of one's own, or "recall" where there is none or
            it could not rank.
        degraded: What was left out because it failed or the deadline passed: names of channels, "ranker", or "engine",
            as in `Recalled`.
        exhausted: Whether every matching item is in the answer.
        fallback: What replaced the stored user, as in `Recalled`.
        unknown: Ids of the query that the release does not have.
        plan: How the candidates were found, if the query asked to `explain`; else None. Its `ms` has the stage "rank".
    """

    release: str
    ids: list[int] | list[str]
    scores: list[float]
    channels: list[list[str]]
    ranker: str
    degraded: Sequence[str]
    exhausted: bool
    fallback: Fallback | None
    unknown: UnknownInputs
    plan: ExecutionPlan | None = None

    def as_json(self) -> dict[str, object]:
        """Return the answer as it is sent over HTTP, sharing its lists."""
        answer: dict[str, object] = dict(vars(self))
        answer["unknown"], answer["degraded"] = vars(self.unknown), list(self.degraded)
        del answer["plan"]
        return answer if self.plan is None else answer | {"plan": vars(self.plan)}
