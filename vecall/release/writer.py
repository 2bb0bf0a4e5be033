"""Vectors and what goes with them, made into the files of a release."""

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import JsonValue

from vecall.data.attributes import is_within_calendar
from vecall.data.canonical import spell
from vecall.data.frames import column
from vecall.data.id_map import Vocabulary
from vecall.errors import DataError
from vecall.index import index_io as index_files
from vecall.index.base import Codes, Index, Vectors
from vecall.index.builder import Built, build_index
from vecall.index.exact import rounded
from vecall.index.settings import IndexSettings
from vecall.release.atomic_io import write_array, write_table
from vecall.release.encoder import Encoder
from vecall.release.golden import MOST, Golden, UserInputs
from vecall.release.item_features import write_features
from vecall.release.manifest import Description, IndexFacts
from vecall.release.release import ATTRIBUTES, GIVEN_ROWS, INDEX, ITEM_PREFIX, POPULARITY
from vecall.release.users import Users, save_vocabulary
from vecall.schema import RESERVED

# Queries that the effort is found on; more narrow its confidence interval and cost an exact search each.
TUNING_QUERIES = 1_000
# How far the ANN recall of golden queries may fall below what it was: a search of the same graph repeats itself.
_FLOOR_SLACK = 0.01


@dataclass(frozen=True)
class Contents:
    """What a release is made from.

    Attributes:
        items: vocabulary of the N items.
        vectors: [N, D] float32 or float16, in vocabulary order; may be mapped from a file.
        attributes: [N] rows likewise.
        popularity: [N] how often each item was taken, or None.
        users: known users, or None.
        features: [N] rows of the item features, in vocabulary order; None where items are not encoded here.
        given_rows: items whose vector was given, though the release has towers.
        metrics: of the model, for the manifest.
        journal_seq: operations of the journal up to this one are in here.
        declared_seq: operations up to this one are in the tables, so that no publishing of them will need it.
    """

    items: Vocabulary
    vectors: Vectors | Codes
    attributes: pl.DataFrame
    popularity: NDArray[np.float32] | None = None
    users: Users | None = None
    features: pl.DataFrame | None = None
    given_rows: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    metrics: Mapping[str, JsonValue] = field(default_factory=dict)
    journal_seq: int = 0
    declared_seq: int = 0


def write_contents(
    folder: Path,
    contents: Contents,
    settings: IndexSettings,
    *,
    queries: Vectors | None = None,
    encoder: tuple[Encoder, str] | None = None,
) -> Description:
    """Write the files of a release, but for the towers, which lie in the folder already if there are any.

    Args:
        folder: a draft's.
        contents: what goes in.
        settings: of the index.
        queries: [Q, D] real user vectors to find the effort on, for a release without towers.
        encoder: the folder's towers and their hash. Their own users are the queries then.

    Raises:
        DataError: the vectors cannot be indexed.
    """
    inputs = None
    if encoder is not None and contents.users is not None:
        inputs = _sample_of_users(contents.users, TUNING_QUERIES, encoder[0].history_length)
        queries = inputs.encode(encoder[0], lambda rows: rounded(contents.vectors[rows]))
    if queries is None or len(queries) < 2:  # no confidence interval from fewer
        queries = inputs = None
    built = build_index(contents.vectors, queries, settings)
    index = built.index
    golden = None if queries is None else _record_golden(index, queries, inputs)
    index_files.save(index, folder / INDEX)
    save_vocabulary(contents.items, folder, ITEM_PREFIX)
    write_table(folder / ATTRIBUTES, contents.attributes)
    if contents.popularity is not None:
        write_array(folder / POPULARITY, contents.popularity)
    if contents.users is not None:
        contents.users.save(folder)
    if contents.features is not None:
        write_features(folder, contents.features, contents.attributes.columns)
    if len(contents.given_rows):
        write_array(folder / GIVEN_ROWS, contents.given_rows)
    if golden is not None:
        golden.save(folder)
    return Description(
        items=index.size,
        dim=index.dim,
        id_type=contents.items.id_type,
        encoder=None if encoder is None else encoder[1],
        index=_facts(built, settings),
        ann=_ann(built, golden),
        metrics=dict(contents.metrics),
        libraries=library_versions(),
        journal_seq=contents.journal_seq,
        declared_seq=contents.declared_seq,
    )


def _sample_of_users(users: Users, most: int, length: int) -> UserInputs:
    """Users with a history, evenly over all of them, and as much of their histories as the tower reads."""
    active = np.flatnonzero(users.histories.lengths)
    chosen = active[np.unique(np.linspace(0, max(0, len(active) - 1), min(most, len(active))).astype(np.int64))]
    return UserInputs(users.histories.take(chosen).last(length), users.fields[chosen])


def _record_golden(index: Index, queries: Vectors, inputs: UserInputs | None) -> Golden:
    chosen = np.unique(np.linspace(0, len(queries) - 1, min(MOST, len(queries))).astype(np.int64))
    kept = None if inputs is None else UserInputs(inputs.histories.take(chosen), inputs.fields[chosen])
    return Golden.record(index, queries[chosen], kept)


def _facts(built: Built, settings: IndexSettings) -> IndexFacts:
    given = settings.model_dump(mode="json", exclude_unset=True)
    parameters: dict[str, JsonValue] = dict(built.parameters)
    if built.tuning is None:
        return IndexFacts(engine=built.engine, parameters=parameters, settings=given)
    effort: list[JsonValue] = [[point.k, point.width, point.depth] for point in built.tuning.points]
    filtered: JsonValue = {
        "widths": [[one.rank, one.all, one.last] for one in built.tuning.filtered.widths],
        "deeper": built.tuning.filtered.deeper,
    }
    return IndexFacts(
        engine=built.engine,
        parameters=parameters | {"effort": effort, "filtered": filtered},
        costs=asdict(built.tuning.costs),
        settings=given,
    )


def _ann(built: Built, golden: Golden | None) -> dict[str, JsonValue] | None:
    """The measured points, and the floor that golden queries must reach from now on."""
    if golden is None:
        return None
    depth = golden.rows.shape[1]
    recall = golden.ann_recall(built.index, None if built.tuning is None else built.tuning.curve.at(depth))
    return {
        "k": depth,
        "recall": round(recall, 5),
        "floor": round(max(0.0, recall - _FLOOR_SLACK), 5),
        "queries": len(golden.vectors),
        "frontier": [] if built.tuning is None else [asdict(point) for point in built.tuning.tried],
    }


def library_versions() -> dict[str, str]:
    """Of what made the files."""
    names = ("vecall", "faiss-cpu", "onnxruntime", "numpy", "polars")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def check_attributes(attributes: pl.DataFrame, n_items: int) -> None:
    """A row per item, and no column that an answer gives a meaning of its own.

    Raises:
        DataError: otherwise.
    """
    if len(attributes) != n_items:
        raise DataError(f"attributes have {len(attributes)} rows for {n_items} ids: one row per id, in the same order")
    if taken := sorted(RESERVED & set(attributes.columns)):
        raise DataError(f"attributes named {taken} clash with the answer's own names; rename them")
    for name in attributes.columns:
        cells = column(attributes, name)
        if cells.dtype == pl.Object:
            raise DataError(f"attribute {name!r} holds Python objects: make it text, numbers, flags, times or lists")
        if not (within := is_within_calendar(cells)).all():
            raise DataError(
                f"attribute {name!r}: expected times in the years 1 to 9999, got {int((~within).sum())} that are not, "
                f"such as {spell(cells.filter(~within))[0]}: make them null, or the last moment of 9999"
            )
