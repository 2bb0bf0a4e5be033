"""Diversity of the final list: at most n items by an attribute, or maximal marginal relevance by the stored vectors."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import Vectors
from vecall.data.request_features import is_number
from vecall.errors import QueryError
from vecall.ranking.cosines import compute_cosines
from vecall.recall.field_checks import check, is_integer, is_mapping, is_text

Positions = NDArray[np.intp]


@dataclass(frozen=True)
class AttributeCap:
    """At most so many items with the same value of an attribute.

    An item of a tags attribute counts for each of its tags, and is left out if any of them is used up. An item without
    a value counts for none. The cap always holds: a list may be shorter for it, if the candidates have no more.

    Attributes:
        by: Name of the attribute.
        max: Items of each value, at least 1.
    """

    by: str
    max: int


@dataclass(frozen=True)
class MarginalRelevance:
    """Maximal marginal relevance: each next item is good, and unlike those before it.

    Attributes:
        mmr: From 0 to 1. 1 is the order of the scores; the less, the more unlike the items are.
    """

    mmr: float


Diversity = AttributeCap | MarginalRelevance


def parse_diversity(value: object) -> Diversity | None:
    """Parse `{"by": ATTRIBUTE, "max": n}` or `{"mmr": 0..1}`; None for neither.

    Raises:
        QueryError: It is neither, or a part of it is invalid; `field` names the part, such as `diversity.max`.
    """
    if value is None or isinstance(value, (AttributeCap, MarginalRelevance)):
        return value
    expected = '{"by": attribute, "max": n} or {"mmr": a number from 0 to 1}'
    check("diversity", is_mapping(value), value, f"{expected}, or null")
    parts: Mapping[str, object] = value  # type: ignore[assignment]
    keys = ("mmr",) if "mmr" in parts else ("by", "max")
    for key in parts:
        if key not in keys:
            raise QueryError(
                f"diversity.{key!s:.80}: unknown key beside {list(keys)}; expected {expected}",
                field=f"diversity.{key!s:.80}",
            )
    for key in keys:
        if key not in parts:
            raise QueryError(f"diversity.{key}: is missing; expected {expected}", field=f"diversity.{key}")
    if keys == ("mmr",):
        mmr = parts["mmr"]
        check("diversity.mmr", is_number(mmr) and 0 <= mmr <= 1, mmr, "a number from 0 to 1")  # type: ignore[operator]
        return MarginalRelevance(float(mmr))  # type: ignore[arg-type]
    by, maximum = parts["by"], parts["max"]
    check("diversity.by", is_text(by), by, "the name of an attribute")
    is_positive = is_integer(maximum) and maximum >= 1  # type: ignore[operator]
    check("diversity.max", is_positive, maximum, "an integer of at least 1")
    return AttributeCap(str(by), int(maximum))  # type: ignore[call-overload]


def select_with_cap(values: Sequence[object], max_count: int, k: int) -> Positions:
    """Return the first k positions such that no value occurs in more than `max_count` of them.

    Args:
        values: Value of the attribute of each candidate, best first: a list of tags, a scalar, or None.
        max_count: At least 1.
        k: At least 1.

    Returns:
        Positions ascending; fewer than k if `values` has no more that fit.
    """
    counts: Counter[object] = Counter()
    selected: list[int] = []
    for position, value in enumerate(values):
        distinct = set(value) if isinstance(value, list) else {value}
        distinct.discard(None)
        if all(counts[part] < max_count for part in distinct):
            counts.update(distinct)
            selected.append(position)
            if len(selected) == k:
                break
    return np.array(selected, dtype=np.intp)


def select_by_marginal_relevance(
    scores: NDArray[np.float64],
    vectors: Vectors,
    mmr: float,
    k: int,
    *,
    check_cancelled: Callable[[], object] = lambda: None,
) -> Positions:
    """Return k positions, each next one of maximal marginal relevance (Carbonell & Goldstein: SIGIR 1998).

    That is the largest mmr · relevance − (1 − mmr) · similarity. Relevance is the score, min-max scaled to [0, 1] over
    the candidates; similarity is the largest cosine to a vector that was selected before, 0 for the first. Of equal
    ones the first is selected.

    Args:
        scores: [C], best first.
        vectors: [C, D].
        mmr: From 0 to 1.
        k: At least 1; capped at C.
        check_cancelled: Called before each selection; an exception that it raises ends the selection.
    """
    if mmr == 1 or not len(scores):
        return np.arange(min(k, len(scores)))
    span = float(scores.max() - scores.min())
    relevance = (scores - scores.min()) / span if span > 0 else np.zeros(len(scores))
    weighted_relevance = mmr * relevance
    similarity = np.full(len(scores), -np.inf, dtype=np.float32)
    selected = np.empty(min(k, len(scores)), dtype=np.intp)
    marginal = weighted_relevance.copy()
    for count in range(len(selected)):
        check_cancelled()
        position = int(np.argmax(marginal))
        selected[count] = position
        np.maximum(similarity, compute_cosines(vectors, vectors[position : position + 1])[:, 0], out=similarity)
        weighted_relevance[position] = -np.inf  # selected
        marginal = weighted_relevance - (1 - mmr) * similarity
    return selected
