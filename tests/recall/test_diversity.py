"""Diversity of the final list, against oracles that follow the definitions word by word."""

import numpy as np
import pytest

from vecall.errors import QueryError
from vecall.recall.diversity import (
    AttributeCap,
    MarginalRelevance,
    parse_diversity,
    select_by_marginal_relevance,
    select_with_cap,
)

SEEDS = pytest.mark.parametrize("seed", range(12))


def draw_values(rng, n, *, tags):
    if not tags:
        return [None if value == 0 else int(value) for value in rng.integers(0, 5, n)]
    return [None if rng.random() < 0.1 else rng.choice(list("abcde"), rng.integers(0, 4)).tolist() for _ in range(n)]


def list_distinct(value):
    return set() if value is None else set(value) if isinstance(value, list) else {value}


def select_with_cap_naively(values, max_count, k):
    selected = []
    for position, value in enumerate(values):
        earlier = [list_distinct(values[other]) for other in selected]
        if len(selected) < k and all(
            sum(part in other for other in earlier) < max_count for part in list_distinct(value)
        ):
            selected.append(position)
    return selected


@SEEDS
@pytest.mark.parametrize("tags", [False, True])
def test_cap_selects_as_the_oracle_and_holds_for_every_value(seed, tags):
    rng = np.random.default_rng(seed)
    values, max_count, k = draw_values(rng, 60, tags=tags), int(rng.integers(1, 5)), int(rng.integers(1, 40))
    selected = select_with_cap(values, max_count, k).tolist()
    assert selected == select_with_cap_naively(values, max_count, k)
    parts = [part for position in selected for part in list_distinct(values[position])]
    assert all(parts.count(part) <= max_count for part in parts)
    if len(selected) < k:  # then no further candidate fits
        left_out = set(range(60)) - set(selected)
        assert all(any(parts.count(part) == max_count for part in list_distinct(values[other])) for other in left_out)


def test_null_counts_as_no_value_and_repeated_tags_count_once():
    assert select_with_cap([None, None, [], "a", "a", None], 1, 9).tolist() == [0, 1, 2, 3, 5]
    assert select_with_cap([["a", "a"], ["a"], ["a", "b"], ["b"]], 2, 9).tolist() == [0, 1, 3]


def compute_marginal_relevance(scores, vectors, mmr, selected):
    """Return the objective of each candidate that is not selected yet, by position."""
    span = max(scores) - min(scores)
    values = {}
    for position in set(range(len(scores))) - set(selected):
        relevance = (scores[position] - min(scores)) / span if span else 0.0
        similarities = [compute_cosine(vectors[position], vectors[other]) for other in selected]
        values[position] = mmr * relevance - (1 - mmr) * max(similarities, default=0.0)
    return values


def compute_cosine(a, b):
    product = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / product if product else 0.0


@SEEDS
@pytest.mark.parametrize("mmr", [0.0, 0.3, 0.7, 0.95, 1.0])
def test_each_step_of_mmr_takes_the_best_by_definition(seed, mmr):
    rng = np.random.default_rng(seed)
    n, k = int(rng.integers(1, 30)), int(rng.integers(1, 30))
    scores = np.sort(rng.standard_normal(n))[::-1]
    vectors = rng.standard_normal((n, 5)).astype(np.float32) * (rng.random((n, 1)) > 0.1)
    selected = select_by_marginal_relevance(scores, vectors.astype(np.float32), mmr, k).tolist()
    assert len(selected) == len(set(selected)) == min(k, n)
    for count, position in enumerate(selected):
        values = compute_marginal_relevance(scores.tolist(), vectors, mmr, selected[:count])
        assert values[position] >= max(values.values()) - 1e-6
    if mmr == 1:
        assert selected == list(range(min(k, n)))


def test_mmr_takes_the_first_of_equal_ones():
    vectors = np.eye(4, dtype=np.float32)
    assert select_by_marginal_relevance(np.zeros(4), vectors, 0.5, 4).tolist() == [0, 1, 2, 3]
    assert select_by_marginal_relevance(np.array([3.0, 2, 1, 0]), vectors, 0.0, 3).tolist() == [0, 1, 2]
    repeated = vectors[[0, 0, 1, 1]]
    assert select_by_marginal_relevance(np.array([3.0, 2, 1, 0]), repeated, 0.0, 4).tolist() == [0, 2, 1, 3]


def test_mmr_can_be_cancelled():
    def cancel():
        raise TimeoutError

    with pytest.raises(TimeoutError):
        select_by_marginal_relevance(np.arange(3.0), np.eye(3, dtype=np.float32), 0.5, 3, check_cancelled=cancel)


def test_diversity_is_parsed():
    assert parse_diversity(None) is None
    assert parse_diversity({"by": "genres", "max": 2}) == AttributeCap("genres", 2)
    assert parse_diversity({"mmr": 1}) == MarginalRelevance(1.0)
    assert parse_diversity(MarginalRelevance(0.5)) == MarginalRelevance(0.5)


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ("genres", "diversity"),
        ([], "diversity"),
        ({}, "diversity.by"),
        ({"by": "genres"}, "diversity.max"),
        ({"by": 5, "max": 1}, "diversity.by"),
        ({"by": "genres", "max": 0}, "diversity.max"),
        ({"by": "genres", "max": True}, "diversity.max"),
        ({"by": "genres", "max": 1.0}, "diversity.max"),
        ({"by": "genres", "max": 1, "min": 1}, "diversity.min"),
        ({"mmr": 0.5, "max": 1}, "diversity.max"),
        ({"mmr": -0.1}, "diversity.mmr"),
        ({"mmr": 1.1}, "diversity.mmr"),
        ({"mmr": float("nan")}, "diversity.mmr"),
        ({"mmr": "0.5"}, "diversity.mmr"),
        ({"mmr": None}, "diversity.mmr"),
    ],
)
def test_error_of_invalid_diversity_names_the_part(value, field):
    with pytest.raises(QueryError) as caught:
        parse_diversity(value)
    assert caught.value.field == field
