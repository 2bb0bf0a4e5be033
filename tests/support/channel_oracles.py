"""What each channel answers, written naively over dicts: the oracles of the contract suite of channels."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from vecall.channels.popular_items import PopularLists
from vecall.channels.similar_items import SIMILARITY_SCALE, SimilarItems
from vecall.data.ragged import offsets_from_lengths

Number = int  # stands for an item; even ones are items of the base in the order of rows
Vector = Any


@dataclass
class ReferenceStore:
    """Contents of a snapshot by the items' numbers.

    Attributes:
        base_vectors: vectors of the release.
        popularity: number of interactions of the release's items.
        neighbors: neighbours of each of the release's items and their stored scores, as in the channel `similar`.
        seed_weights: weights of the newest items of a history, the newest first.
        values: value of each of the release's items of the attribute that the channel `popular` goes by; upserted ones
            have none.
        new_items: the release's items that are new by their time; upserted ones have no time.
        live: numbers of the live items.
        upserted: numbers of the items that were ever upserted.
        vectors: the last vector of every item that there is or was.
    """

    base_vectors: Mapping[Number, Vector]
    popularity: Mapping[Number, float]
    neighbors: Mapping[Number, Sequence[tuple[Number, float]]]
    seed_weights: Sequence[float]
    values: Mapping[Number, str] = field(default_factory=dict)
    new_items: Set[Number] = frozenset()
    live: set[Number] = field(default_factory=set)
    upserted: set[Number] = field(default_factory=set)
    vectors: dict[Number, Vector] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.live |= set(self.base_vectors)
        self.vectors |= self.base_vectors

    def apply(self, number: Number, vector: Vector | None) -> None:
        """Upsert an item, or delete it if there is no vector."""
        if vector is None:
            self.live.discard(number)
        else:
            self.live.add(number)
            self.upserted.add(number)
            self.vectors[number] = np.array(vector, dtype=np.float32)


@dataclass(frozen=True)
class ReferenceQuery:
    """A query by the items' numbers.

    Attributes:
        vector: the user's vector; None for popular items.
        history: oldest first; items that the store has or had.
    """

    vector: Vector | None
    history: Sequence[Number]


Oracle = Callable[[ReferenceStore, ReferenceQuery], Mapping[Number, float]]
"""Scores of all items that a channel may return, whether live, matching and not excluded or not."""


def score_by_vector(store: ReferenceStore, query: ReferenceQuery) -> Mapping[Number, float]:
    if query.vector is None:
        return {number: store.popularity.get(number, 0.0) for number in store.live}
    return {number: float(store.vectors[number] @ query.vector) for number in store.live}


def score_popular(store: ReferenceStore, query: ReferenceQuery) -> Mapping[Number, float]:
    newest = query.history[-50:]
    frequencies = Counter(store.values[item] for item in newest if item in store.values.keys() - store.upserted)
    total = sum(store.popularity.values())
    scores = {number: store.popularity.get(number, 0.0) for number in store.live}
    for number in store.live & store.values.keys():
        lists = {value: sum_of_value(store, value) for value in frequencies}
        value = store.values[number]  # as of publishing
        if lists.get(value):
            share = store.popularity[number] * (frequencies[value] / len(newest) / lists[value])
            scores[number] += total * share
    return scores


def sum_of_value(store: ReferenceStore, value: str) -> float:
    """Popularity of all of the release's items with a value."""
    return sum(store.popularity[number] for number, other in store.values.items() if other == value)


def score_fresh(store: ReferenceStore, query: ReferenceQuery) -> Mapping[Number, float]:
    new_items = (store.new_items - store.upserted) | (store.live - store.base_vectors.keys())
    return {number: float(store.vectors[number] @ query.vector) for number in new_items}


def score_repeats(store: ReferenceStore, query: ReferenceQuery) -> Mapping[Number, float]:
    scores: dict[Number, float] = {}
    for age, number in enumerate(reversed(query.history)):
        scores[number] = scores.get(number, 0.0) + 0.98**age
    return scores


def score_similar(store: ReferenceStore, query: ReferenceQuery) -> Mapping[Number, float]:
    lists = [pairs for pairs in store.neighbors.values() if pairs]
    profile = [
        sum(pairs[rank][1] for pairs in lists if rank < len(pairs)) / (SIMILARITY_SCALE * len(lists))
        for rank in range(max(map(len, lists), default=0))
    ]
    scores: dict[Number, float] = {}
    seeds = query.history[::-1]
    for age, (weight, seed) in enumerate(zip(store.seed_weights, seeds, strict=False)):
        vector = store.vectors[seed]
        neighbors = [(number, score / SIMILARITY_SCALE) for number, score in store.neighbors.get(seed, ())]
        if not neighbors and age < 10:
            nearest = sorted(
                store.base_vectors.keys() - {seed},
                key=lambda number: (-float(store.base_vectors[number] @ vector), number),
            )
            neighbors = list(zip(nearest, profile, strict=False))
        for number, similarity in neighbors:
            scores[number] = scores.get(number, 0.0) + weight * similarity
        for number in store.live - store.base_vectors.keys() - {seed} if age < 10 else ():
            product = store.vectors[number] @ vector
            position = sum(store.base_vectors[neighbor] @ vector > product for neighbor, _ in neighbors)
            if position < len(neighbors):
                scores[number] = scores.get(number, 0.0) + weight * neighbors[position][1]
    return scores


ORACLES: Mapping[str, Oracle] = {
    "vector": score_by_vector,
    "similar": score_similar,
    "popular": score_popular,
    "fresh": score_fresh,
    "repeat": score_repeats,
}


def make_similar_items(lists: Sequence[Sequence[tuple[int, float]]], seed_weights: Sequence[float]) -> SimilarItems:
    """Build the table of neighbours from a list of (row, stored score) per item."""
    pairs = [pair for neighbors in lists for pair in neighbors]
    return SimilarItems(
        offsets_from_lengths(np.array([len(neighbors) for neighbors in lists], dtype=np.int64)),
        np.array([row for row, _ in pairs], dtype=np.int32),
        np.array([score for _, score in pairs], dtype=np.float16),
        np.zeros(len(pairs), dtype=np.uint8),
        np.array(seed_weights),
    )


def make_popular_lists(column: str, by_value: Mapping[str, Mapping[int, float]]) -> PopularLists:
    """Build the lists of a column from the score of each row, by value."""
    lengths = np.array([len(scores) for scores in by_value.values()], dtype=np.int64)
    pairs = [pair for scores in by_value.values() for pair in scores.items()]
    return PopularLists(
        column,
        pl.Series("value", list(by_value), dtype=pl.String),
        offsets_from_lengths(lengths),
        np.array([row for row, _ in pairs], dtype=np.int32),
        np.array([score for _, score in pairs], dtype=np.float32),
    )
