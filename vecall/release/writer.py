"""Write the files of a release: index, ids, attributes, users, golden queries."""

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import JsonValue

from vecall.arrays import HalfVectors, Rows, Vectors
from vecall.channels.channel_tables import ChannelTables
from vecall.channels.merge_plan import VECTORS_ALONE, MergePlan
from vecall.data.canonical import column_to_text
from vecall.data.datetime_range import is_in_datetime_range
from vecall.data.frames import get_unnamed_column, is_empty_row
from vecall.data.id_map import Id, IdMap
from vecall.errors import DataError, ExportError
from vecall.index.builder import BuiltIndex, build_index
from vecall.index.dropping import drop_on_error
from vecall.index.engine import ReleaseDraft
from vecall.index.engines import ENGINES
from vecall.index.index_info import IndexInfo
from vecall.index.sampling import evenly_spaced_rows
from vecall.index.scan import MAX_QUERY_VALUE, round_to_half_precision
from vecall.index.settings import IndexSettings
from vecall.index.stored_vectors import StoredVectors
from vecall.ranking.ranker_info import NO_RANKER, RankerInfo
from vecall.release.channel_io import save_channels
from vecall.release.encoder import OnnxEncoder
from vecall.release.file_io import translate_write_errors, write_array, write_table
from vecall.release.golden import GoldenQueries, UserTowerInputs
from vecall.release.id_map_io import save_id_map
from vecall.release.item_features import write_features
from vecall.release.manifest import ReleaseMetadata
from vecall.release.release import (
    ATTRIBUTES_FILE,
    EXTERNAL_VECTOR_ROWS_FILE,
    ITEM_ID_MAP_PREFIX,
    POPULARITY_FILE,
)
from vecall.release.users import UserTable
from vecall.schema import list_reserved_columns

# Queries that search parameters are tuned on. More would narrow the confidence interval; each costs an exact search.
MAX_TUNING_QUERIES = 1_000
MAX_GOLDEN_QUERIES = 256
# How far the golden queries' ANN recall may fall below its value at publishing; a search of the same graph is
# deterministic.
_RECALL_FLOOR_MARGIN = 0.01


@dataclass(frozen=True)
class ReleaseContents:
    """Content of a release to be written. Arrays and tables of items follow the row order of `item_ids`.

    Attributes:
        item_ids: maps ids of the N items to rows and back.
        vectors: [N, D] float32 or float16; may be mapped from a file.
        attributes: [N] rows with a column per attribute.
        popularity: [N] number of positive interactions per item; None where it is not known.
        users: known users; None where there are none.
        item_features: [N] rows with a column per item feature; None where the release has no towers.
        external_vector_rows: ascending rows of items whose vector came from the caller although the release has
            towers.
        channels: what the channels beside the vectors read.
        merge: channels that a request uses if it names none, and how they are merged.
        ranker: which ranker the release has; its files are in the directory already.
        metrics: of the model and of baselines, by name, for the manifest.
        trained_settings: sections `model` and `training` that a run was trained with, as JSON.
        journal_seq: the release contains the journal's operations up to this one.
        tables_seq: the tables contain the journal's operations up to this one, so publishing them again does not
            need these operations.
        rejected_seqs: by item id, sequence number of an upsert up to `journal_seq` that the release cannot take.
    """

    item_ids: IdMap
    vectors: Vectors | HalfVectors
    attributes: pl.DataFrame
    popularity: NDArray[np.float32] | None = None
    users: UserTable | None = None
    item_features: pl.DataFrame | None = None
    external_vector_rows: Rows = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    channels: ChannelTables = field(default_factory=ChannelTables)
    merge: MergePlan = VECTORS_ALONE
    ranker: RankerInfo = NO_RANKER
    metrics: Mapping[str, JsonValue] = field(default_factory=dict)
    trained_settings: Mapping[str, JsonValue] = field(default_factory=dict)
    journal_seq: int = 0
    tables_seq: int = 0
    rejected_seqs: Mapping[Id, int] = field(default_factory=dict)


def write_release(
    directory: Path,
    contents: ReleaseContents,
    settings: IndexSettings,
    *,
    queries: Vectors | None = None,
    encoder: tuple[OnnxEncoder, str] | None = None,
    name: str | None = None,
) -> ReleaseMetadata:
    """Write the files of a release, except the towers and the ranker, which a trained run has written before.

    Args:
        directory: of the draft, in the store.
        contents: what to write.
        settings: of the index.
        queries: [Q, D] real user vectors to tune the index on; None to encode users of the release, if it has towers.
        encoder: the towers in `directory` and their encoder hash; None for a release without towers.
        name: of the release; None if it is named at the commit.

    Returns:
        The publisher's part of the manifest.

    Raises:
        DataError: the vectors cannot be indexed.
        ConfigError: `settings` has a parameter of another engine.
        ExportError: the user tower gives a vector that cannot be searched.
        StoreError: `directory` cannot be written.
        EngineUnavailableError: the server of the index's engine does not answer.
    """
    inputs = None
    if queries is None and encoder is not None and contents.users is not None:
        inputs = _sample_user_inputs(contents.users, MAX_TUNING_QUERIES, encoder[0])
        queries = _encode_user_sample(inputs, encoder[0], contents.vectors)
    if queries is None or len(queries) < 2:  # a confidence interval needs two
        queries = inputs = None
    draft = ReleaseDraft(directory, name)
    built = build_index(contents.vectors, queries, settings, draft)
    info, vectors = _build_index_info(built, settings), built.index.vectors
    with drop_on_error(info, draft), translate_write_errors(directory):
        golden = None if queries is None else _record_golden_queries(vectors, queries, inputs)
        built.index.save(directory / ENGINES[built.engine].file)
        _save_contents(directory, contents)
        if golden is not None:
            golden.save(directory)
        ann = _build_ann_summary(built, golden)
    return _make_metadata(contents, info, vectors.dim, ann, None if encoder is None else encoder[1])


def _make_metadata(
    contents: ReleaseContents, info: IndexInfo, dim: int, ann: dict[str, JsonValue] | None, encoder_hash: str | None
) -> ReleaseMetadata:
    return ReleaseMetadata(
        items=len(contents.item_ids),
        dim=dim,
        id_type=contents.item_ids.id_type,
        encoder=encoder_hash,
        index=info,
        ann=ann,
        merge=contents.merge,
        ranker=contents.ranker,
        metrics=dict(contents.metrics),
        trained_settings=dict(contents.trained_settings),
        libraries=collect_library_versions(),
        journal_seq=contents.journal_seq,
        tables_seq=contents.tables_seq,
        rejected_changes=tuple(contents.rejected_seqs.items()),
    )


def _encode_user_sample(inputs: UserTowerInputs, encoder: OnnxEncoder, item_vectors: Vectors | HalfVectors) -> Vectors:
    """Encode users; raise if a component is not finite, or too large for finite scores."""
    vectors = inputs.encode(encoder, lambda rows: round_to_half_precision(item_vectors[rows]))
    is_valid = (np.abs(vectors) <= MAX_QUERY_VALUE).all(axis=1)
    if not is_valid.all():
        raise ExportError(
            f"user tower: the vectors of {int((~is_valid).sum())} of {len(vectors)} users are not finite numbers "
            f"within ±{MAX_QUERY_VALUE:g}, such as {vectors[~is_valid][0]}; check it for divisions by 0 and overflows"
        )
    return vectors


def _save_contents(directory: Path, contents: ReleaseContents) -> None:
    """Write everything but the vectors, which the index holds."""
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
    save_channels(contents.channels, directory)


def _sample_user_inputs(users: UserTable, max_users: int, encoder: OnnxEncoder) -> UserTowerInputs:
    """Select users with a history, evenly spaced by row; histories are cut to what the user tower reads.

    If nobody has a history, and the user tower reads none, users with features are selected.
    """
    active = np.flatnonzero(users.histories.lengths)
    if not len(active) and encoder.history_length == 0:
        active = np.flatnonzero(~is_empty_row(users.features))
    chosen = active[evenly_spaced_rows(len(active), max_users)]
    return UserTowerInputs(encoder.select_history(users.histories.take(chosen)), users.features[chosen])


def _record_golden_queries(vectors: StoredVectors, queries: Vectors, inputs: UserTowerInputs | None) -> GoldenQueries:
    chosen = evenly_spaced_rows(len(queries), MAX_GOLDEN_QUERIES)
    sample = None if inputs is None else UserTowerInputs(inputs.histories.take(chosen), inputs.features[chosen])
    return GoldenQueries.record(vectors, queries[chosen], sample)


def _build_index_info(built: BuiltIndex, settings: IndexSettings) -> IndexInfo:
    info = IndexInfo.of_build(built.engine, built.build_params, settings)
    if built.tuning is None:
        return info
    points: list[JsonValue] = [[point.k, *point.search_params] for point in built.tuning.best_points]
    filtered = built.tuning.filtered_table
    filtered_params: JsonValue = {
        "widths": [[width.rank, width.width_for_all, width.width_for_tail] for width in filtered.widths],
        "depth_factor": filtered.depth_factor,
        "spread": filtered.spread,
    }
    tuned: dict[str, JsonValue] = {"search_params": points, "filtered_search_params": filtered_params}
    return info.model_copy(update={"parameters": info.parameters | tuned, "costs": asdict(built.tuning.costs)})


def _build_ann_summary(built: BuiltIndex, golden: GoldenQueries | None) -> dict[str, JsonValue] | None:
    """Return the manifest's `ann`: golden recall, the floor for later checks, and the points measured in tuning."""
    if golden is None:
        return None
    k = golden.exact_rows.shape[1]
    recall = golden.measure_ann_recall(built.index, None if built.tuning is None else built.tuning.curve.look_up(k))
    return {
        "k": k,
        "recall": round(recall, 5),
        "floor": round(max(0.0, recall - _RECALL_FLOOR_MARGIN), 5),
        "queries": len(golden.vectors),
        "frontier": [] if built.tuning is None else [asdict(point) for point in built.tuning.trials],
    }


def collect_library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that write the files."""
    names = ("vecall", "faiss-cpu", "onnxruntime", "numpy", "polars")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def check_attributes(attributes: pl.DataFrame, n_items: int) -> None:
    """Check that a caller's attributes can be part of a release.

    Raises:
        DataError: the number of rows is not `n_items`, a column has a reserved name, or a value cannot be stored.
    """
    if len(attributes) != n_items:
        raise DataError(f"attributes have {len(attributes)} rows for {n_items} ids: one row per id, in the same order")
    if reserved := list_reserved_columns(attributes.columns):
        raise DataError(f"attributes named {reserved} clash with reserved columns of the answer; rename them")
    for name in attributes.columns:
        values = get_unnamed_column(attributes, name)
        if values.dtype == pl.Object:
            raise DataError(
                f"attribute {name!r} contains Python objects: convert it to text, numbers, booleans, datetimes or lists"
            )
        if not (in_range := is_in_datetime_range(values)).all():
            raise DataError(
                f"attribute {name!r}: expected times in the years 1 to 9999, got {int((~in_range).sum())} outside, "
                f"such as {column_to_text(values.filter(~in_range))[0]}: set them to null or to the last moment of 9999"
            )
