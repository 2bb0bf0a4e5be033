"""A picture of the vector space: a sample of items, in two dimensions."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall.data.id_map import Id
from vecall.live.snapshot import Snapshot
from vecall.service.ui.presenters import build_item_cards

MOST = 1_200  # items
_COLOURS = 8  # values with a colour of their own; the palette is in page.css
WIDTH, HEIGHT = 1_600, 1_000  # of the picture, in its own units
_EDGE = 20


@dataclass(frozen=True)
class Point:
    """One item: where it stands, what it is and which colour it has (0 is `others`)."""

    x: float
    y: float
    id: Id
    title: str
    value: str
    colour: int


@dataclass(frozen=True)
class Map:
    """The picture.

    Attributes:
        points: items.
        legend: (value, colour, how many) of each colour.
        share: of the variance that two dimensions show.
        attribute: that the colours tell; None: the release has none.
    """

    points: tuple[Point, ...]
    legend: tuple[tuple[str, int, int], ...]
    share: float
    attribute: str | None


def draw(view: Snapshot, attribute: str | None, *, unknown: str, others: str) -> Map:
    """Lay out a sample of a release's items by their first two principal components (Pearson 1901).

    Args:
        view: whose release.
        attribute: to colour by; None or a name that it does not have takes the first.
        unknown: what missing values are called.
        others: what rare values are called.
    """
    n = view.release.index.size
    rows = np.sort(np.random.default_rng(0).choice(n, min(n, MOST), replace=False)).astype(np.int64)
    places, share = _principal(view.release.index.get_vectors(rows))
    columns = view.release.attributes.columns
    name = attribute if attribute in columns else _first_to_colour(view.release.attributes)
    values = [unknown] * len(rows) if name is None else _values(view.release.attributes[name][rows], unknown)
    kinds, counts = np.unique(values, return_counts=True)
    frequent = [str(kinds[place]) for place in np.argsort(-counts, kind="stable")[:_COLOURS]]
    colours = {value: number for number, value in enumerate(frequent, 1)}
    points = tuple(
        Point(round(float(x), 1), round(float(y), 1), item.id, item.title, value, colours.get(value, 0))
        for (x, y), item, value in zip(places, build_item_cards(view, rows), values, strict=True)
    )
    legend = [(value, colours[value], values.count(value)) for value in frequent]
    if rest := sum(value not in colours for value in values):
        legend.append((others, 0, rest))
    return Map(points, tuple(legend), share, name)


def _principal(vectors: NDArray[np.float32]) -> tuple[NDArray[np.float64], float]:
    """[n, 2] places within the picture, and the share of the variance that they show."""
    centred = vectors.astype(np.float64) - vectors.mean(axis=0)
    variances, axes = np.linalg.eigh(centred.T @ centred)  # ascending
    flat = centred @ axes[:, ::-1][:, :2]
    if flat.shape[1] < 2:
        flat = np.column_stack([flat, np.zeros(len(flat))])
    low, high = flat.min(axis=0), flat.max(axis=0)
    scaled = _EDGE + (flat - low) / np.maximum(high - low, 1e-12) * (np.array([WIDTH, HEIGHT]) - 2 * _EDGE)
    total = float(variances.sum())
    return scaled, float(variances[-2:].sum()) / total if total > 0 else 1.0


def _first_to_colour(attributes: pl.DataFrame) -> str | None:
    """The first attribute with few values, tags among them; None where there is no attribute."""
    for name in attributes.columns:
        if isinstance(attributes.schema[name], pl.List) or attributes[name].head(10_000).n_unique() <= 50:
            return name
    return next(iter(attributes.columns), None)


def _values(column: pl.Series, unknown: str) -> list[str]:
    """One value of each item, as text: of tags the first, of numbers with many values their quarter."""
    if isinstance(column.dtype, pl.List):
        column = column.list.first()
    if column.dtype.is_numeric() and column.n_unique() > _COLOURS:
        return _quarters(column.cast(pl.Float64), unknown)
    return [unknown if value is None else str(value) for value in column.to_list()]


def _quarters(column: pl.Series, unknown: str) -> list[str]:
    known = column.drop_nulls().drop_nans().to_numpy()
    if not len(known):
        return [unknown] * len(column)
    edges = np.quantile(known, [0, 0.25, 0.5, 0.75, 1])
    names = [f"{low:g} – {high:g}" for low, high in pairwise(edges)]
    return [
        unknown if value is None or value != value else names[int(np.searchsorted(edges[1:-1], value, side="right"))]
        for value in column.to_list()
    ]
