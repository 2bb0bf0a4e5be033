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

from vecall.data.attributes import is_in_datetime_range
from vecall.data.canonical import column_to_text
from vecall.data.frames import get_unnamed_column
from vecall.data.id_map import IdMap
from vecall.errors import DataError
from vecall.index import index_io as index_files
from vecall.index.base import HalfVectors, Index, Vectors
from vecall.index.builder import BuiltIndex, build_index
from vecall.index.exact import round_to_half_precision
from vecall.index.sampling import evenly_spaced_rows
from vecall.index.settings import IndexSettings
from vecall.release.atomic_io import write_array, write_table
from vecall.release.encoder import OnnxEncoder
from vecall.release.golden import MAX_GOLDEN_QUERIES, GoldenQueries, UserTowerInputs
from vecall.release.item_features import write_features
from vecall.release.manifest import IndexInfo, ReleaseMetadata
from vecall.release.release import (
    ATTRIBUTES_FILE,
    EXTERNAL_VECTOR_ROWS_FILE,
    INDEX_FILE,
    ITEM_ID_MAP_PREFIX,
    POPULARITY_FILE,
)
from vecall.release.users import UserTable, save_id_map
from vecall.schema import RESERVED_COLUMNS

# Queries that the effort is found on; more narrow its confidence interval and cost an exact search each.
MAX_TUNING_QUERIES = 1_000
# How far the ANN recall of golden queries may fall below what it was: a search of the same graph repeats itself.
_RECALL_FLOOR_MARGIN = 0.01


@dataclass(frozen=True)
class ReleaseContents:
    """What a release is made from.

    Attributes:
        item_ids: vocabulary of the N items.
        vectors: [N, D] float32 or float16, in vocabulary order; may be mapped from a file.
        attributes: [N] rows likewise.
        popularity: [N] how often each item was taken, or None.
        users: known users, or None.
        item_features: [N] rows of the item features, in vocabulary order; None where items are not encoded here.
        external_vector_rows: items whose vector was given, though the release has towers.
        metrics: of the model, for the manifest.
        journal_seq: operations of the journal up to this one are in here.
        tables_seq: operations up to this one are in the tables, so that no publishing of them will need it.
    """

    item_ids: IdMap
    vectors: Vectors | HalfVectors
    attributes: pl.DataFrame
    popularity: NDArray[np.float32] | None = None
    users: UserTable | None = None
    item_features: pl.DataFrame | None = None
    external_vector_rows: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    metrics: Mapping[str, JsonValue] = field(default_factory=dict)
    journal_seq: int = 0
    tables_seq: int = 0


def write_release(
    directory: Path,
    contents: ReleaseContents,
    settings: IndexSettings,
    *,
    queries: Vectors | None = None,
    encoder: tuple[OnnxEncoder, str] | None = None,
) -> ReleaseMetadata:
    """Write the files of a release, but for the towers, which lie in the folder already if there are any.

    Args:
        directory: a draft's.
        contents: what goes in.
        settings: of the index.
        queries: [Q, D] real user vectors to find the effort on, for a release without towers.
        encoder: the folder's towers and their hash. Their own users are the queries then.

    Raises:
        DataError: the vectors cannot be indexed.
    """
    inputs = None
    if encoder is not None and contents.users is not None:
        inputs = _sample_user_inputs(contents.users, MAX_TUNING_QUERIES, encoder[0].history_length)
        queries = inputs.encode(encoder[0], lambda rows: round_to_half_precision(contents.vectors[rows]))
    if queries is None or len(queries) < 2:  # no confidence interval from fewer
        queries = inputs = None
    built = build_index(contents.vectors, queries, settings)
    index = built.index
    golden = None if queries is None else _record_golden_queries(index, queries, inputs)
    index_files.save_index(index, directory / INDEX_FILE)
    save_id_map(contents.item_ids, directory, ITEM_ID_MAP_PREFIX)
    write_table(directory / ATTRIBUTES_FILE, contents.attributes)
    if contents.popularity is not None:
        write_array(directory / POPULARITY_FILE, contents.popularity)
    if contents.users is not None:
        contents.users.save(directory)
    if contents.item_features is not None:
        write_features(directory, contents.item_features, contents.attributes.columns)
    if len(contents.external_vector_rows):
        write_array(directory / EXTERNAL_VECTOR_ROWS_FILE, contents.external_vector_rows)
    if golden is not None:
        golden.save(directory)
    return ReleaseMetadata(
        items=index.size,
        dim=index.dim,
        id_type=contents.item_ids.id_type,
        encoder=None if encoder is None else encoder[1],
        index=_build_index_info(built, settings),
        ann=_build_ann_summary(built, golden),
        metrics=dict(contents.metrics),
        libraries=collect_library_versions(),
        journal_seq=contents.journal_seq,
        tables_seq=contents.tables_seq,
    )


def _sample_user_inputs(users: UserTable, max_users: int, history_length: int) -> UserTowerInputs:
    """Users with a history, evenly over all of them, and as much of their histories as the tower reads."""
    active = np.flatnonzero(users.histories.lengths)
    chosen = active[evenly_spaced_rows(len(active), max_users)]
    return UserTowerInputs(users.histories.take(chosen).take_last(history_length), users.features[chosen])


def _record_golden_queries(index: Index, queries: Vectors, inputs: UserTowerInputs | None) -> GoldenQueries:
    chosen = evenly_spaced_rows(len(queries), MAX_GOLDEN_QUERIES)
    kept = None if inputs is None else UserTowerInputs(inputs.histories.take(chosen), inputs.features[chosen])
    return GoldenQueries.record(index, queries[chosen], kept)


def _build_index_info(built: BuiltIndex, settings: IndexSettings) -> IndexInfo:
    given = settings.model_dump(mode="json", exclude_unset=True)
    parameters: dict[str, JsonValue] = dict(built.build_params)
    if built.tuning is None:
        return IndexInfo(engine=built.engine, parameters=parameters, settings=given)
    effort: list[JsonValue] = [[point.k, point.width, point.rerank_depth] for point in built.tuning.best_points]
    filtered: JsonValue = {
        "widths": [[one.rank, one.width_for_all, one.width_for_tail] for one in built.tuning.filtered_params.widths],
        "depth_factor": built.tuning.filtered_params.depth_factor,
    }
    return IndexInfo(
        engine=built.engine,
        parameters=parameters | {"search_params": effort, "filtered_search_params": filtered},
        costs=asdict(built.tuning.costs),
        settings=given,
    )


def _build_ann_summary(built: BuiltIndex, golden: GoldenQueries | None) -> dict[str, JsonValue] | None:
    """The measured points, and the floor that golden queries must reach from now on."""
    if golden is None:
        return None
    depth = golden.exact_rows.shape[1]
    recall = golden.measure_ann_recall(built.index, None if built.tuning is None else built.tuning.curve.look_up(depth))
    return {
        "k": depth,
        "recall": round(recall, 5),
        "floor": round(max(0.0, recall - _RECALL_FLOOR_MARGIN), 5),
        "queries": len(golden.vectors),
        "frontier": [] if built.tuning is None else [asdict(point) for point in built.tuning.trials],
    }


def collect_library_versions() -> dict[str, str]:
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
    if taken := sorted(RESERVED_COLUMNS & set(attributes.columns)):
        raise DataError(f"attributes named {taken} clash with the answer's own names; rename them")
    for name in attributes.columns:
        cells = get_unnamed_column(attributes, name)
        if cells.dtype == pl.Object:
            raise DataError(f"attribute {name!r} holds Python objects: make it text, numbers, flags, times or lists")
        if not (within := is_in_datetime_range(cells)).all():
            raise DataError(
                f"attribute {name!r}: expected times in the years 1 to 9999, got {int((~within).sum())} that are not, "
                f"such as {column_to_text(cells.filter(~within))[0]}: make them null, or the last moment of 9999"
            )
