"""Publish one's own PyTorch towers as a release, without vecall's training."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from torch import nn

from vecall.arrays import Vectors
from vecall.channels.settings import ChannelsSettings
from vecall.data.dataset import build_dataset
from vecall.data.feature_encoder import FeatureEncoder
from vecall.data.settings import CsvSettings
from vecall.data.table_encoder import TableEncoder, parse_schema, require_users_table
from vecall.data.table_source import TableSource
from vecall.data.table_validator import BadRowHandler
from vecall.data.tables import Tables, TableSources, validate_tables
from vecall.errors import ConfigError, ExportError
from vecall.index.scan import MAX_STORED_VALUE
from vecall.index.settings import IndexSettings
from vecall.live.pruning import check_operations_remain, check_tables_seq
from vecall.pipeline.arguments import check_queries, require_index_settings, to_array
from vecall.pipeline.catalogue_encoding import encode_catalogue, find_unstorable_rows
from vecall.pipeline.channel_building import build_channel_tables
from vecall.pipeline.custom_towers import (
    CustomTowerWrapper,
    check_tower,
    evaluation_mode,
    export_custom_tower,
    reads_history,
)
from vecall.pipeline.onnx_export import compute_encoder_hash, write_encoder_state
from vecall.release.encoder import ITEM_TOWER_FILE, QUERY_TOWER_FILE, EncoderState, OnnxEncoder
from vecall.release.file_io import translate_write_errors
from vecall.release.regression import refuse_lost_items
from vecall.release.store import Store
from vecall.release.users import UserTable
from vecall.release.writer import ReleaseContents, write_release
from vecall.runtime.fork_safety import check_not_forked
from vecall.schema import Features, Schema

_ITEM_TOWER, _USER_TOWER = "item tower", "user tower"

Table = str | Path | pl.DataFrame


def publish_towers(
    store: str | Path,
    user_tower: nn.Module,
    item_tower: nn.Module,
    *,
    schema: Schema | Mapping[str, Any],
    items: Table,
    users: Table | None = None,
    interactions: Table | None = None,
    queries: NDArray[np.floating[Any]] | None = None,
    encoders: tuple[TableEncoder, TableEncoder] | None = None,
    history_length: int = 50,
    index: IndexSettings | None = None,
    name: str | None = None,
    activate: bool = True,
    journal_seq: int = 0,
    allow_worse: bool = False,
) -> str:
    """Publish one's own PyTorch towers as a release: export them to ONNX, encode all items and tune the index.

    A tower is a module from `{feature: tensor}` of B rows, as `fit_encoders` encodes them, to float32 [B, D]. It is
    exported in evaluation mode and left as it was. Vectors are not normalized: scores are inner products, so towers
    for cosine similarity must normalize their output. `DenseTower` adapts a module that reads one matrix.

    A user tower whose `forward` has parameters named `history` and `lengths` is called with both: float32 [B, L, D],
    the item tower's vectors of each user's newest L = `history_length` items, oldest first and padded with zeros at the
    end; and int64 [B], the number of items, in 0 .. L.

    Args:
        store: Directory of the store; created if necessary.
        user_tower: Encodes users.
        item_tower: Encodes items, those of later upserts too.
        schema: A `vecall.schema.Schema`, or the mapping that `[schema]` of vecall.toml would be.
        items: The items table: path of a Parquet or CSV file, or a Polars frame.
        users: The users table, likewise; needed if the schema names user features.
        interactions: The interactions table, likewise: histories, popularity and channels.
        queries: [Q, D] real user vectors to tune the index on; None to encode users of the tables.
        encoders: What `fit_encoders` returned for the tables of the training; None if that was on these very tables.
        history_length: L.
        index: Index settings; None for the defaults. Parameters that are left out are tuned.
        name: Name of the release; None for a UTC timestamp.
        activate: Whether the release becomes the current one.
        journal_seq: As for `publish_vectors`.
        allow_worse: As for `publish_vectors`.

    Returns:
        The release's name.

    Raises:
        ConfigError: The schema or a setting is invalid, or does not match the towers or encoders.
        DataError: A table does not match the schema, or the queries do not match the towers.
        ExportError: A tower cannot be called, gives invalid vectors or cannot be exported.
        StoreError: As for `publish_vectors`.
    """
    check_not_forked()
    settings, tables = require_index_settings(index), (items, users, interactions)
    inputs = _prepare(parse_schema(schema), tables, (item_tower, user_tower), encoders, history_length)
    outputs = _check_outputs(inputs, queries)
    target = _open_store(Path(store), inputs, journal_seq, activate=activate, allow_worse=allow_worse)
    return _publish(target, inputs, outputs, settings, name, journal_seq, activate=activate)


@dataclass(frozen=True)
class _Inputs:
    """What a release is made of.

    Attributes:
        schema: Columns of the tables.
        tables: The validated tables.
        item_encoder: Feature encoder of items.
        user_encoder: Feature encoder of users.
        item_graph: The item tower.
        user_graph: The user tower.
    """

    schema: Schema
    tables: Tables
    item_encoder: TableEncoder
    user_encoder: TableEncoder
    item_graph: CustomTowerWrapper
    user_graph: CustomTowerWrapper


def _prepare(
    schema: Schema,
    tables: tuple[Table, Table | None, Table | None],
    towers: tuple[nn.Module, nn.Module],
    encoders: tuple[TableEncoder, TableEncoder] | None,
    history_length: int,
) -> _Inputs:
    """Read the tables, fit the encoders and wrap the towers.

    Args:
        schema: Columns of the tables.
        tables: Items, users and interactions.
        towers: The item tower and the user tower.
        encoders: Encoders of items and of users; None to fit them.
        history_length: L, if the user tower reads histories.
    """
    item_tower, user_tower = towers
    items, users, interactions = tables
    has_history = _check_arguments(schema, user_tower, item_tower, users, history_length)
    sources = TableSources(
        interactions=[] if interactions is None else [TableSource.from_argument("interactions", interactions)],
        items=TableSource.from_argument("items", items),
        users=None if users is None else TableSource.from_argument("users", users),
        csv=CsvSettings(),
    )
    validated = validate_tables(sources, schema, BadRowHandler(should_drop=False))
    item_encoder, user_encoder = _fit_encoders(schema, validated) if encoders is None else _check_pair(encoders)
    _check_features(schema, item_encoder, user_encoder)
    return _Inputs(
        schema,
        validated,
        item_encoder,
        user_encoder,
        CustomTowerWrapper(item_tower, _ITEM_TOWER, item_encoder.specs, 0),
        CustomTowerWrapper(user_tower, _USER_TOWER, user_encoder.specs, history_length if has_history else 0),
    )


def _check_outputs(inputs: _Inputs, queries: NDArray[np.floating[Any]] | None) -> tuple[int, Vectors | None]:
    """Call both towers once.

    Returns:
        D, and the checked queries [Q, D].
    """
    with evaluation_mode(inputs.item_graph, inputs.user_graph):
        dim = check_tower(inputs.item_graph, None)
        check_tower(inputs.user_graph, dim)
    return dim, None if queries is None else _to_queries(queries, dim)


def _open_store(path: Path, inputs: _Inputs, journal_seq: int, *, activate: bool, allow_worse: bool) -> Store:
    store = Store.open_or_create(path)
    check_tables_seq(store, inputs.schema.items.id_type, journal_seq)
    if inputs.tables.items is not None:
        refuse_lost_items(store, len(inputs.tables.items.ids), activate=activate, allow_worse=allow_worse)
    return store


def _publish(
    target: Store,
    inputs: _Inputs,
    outputs: tuple[int, Vectors | None],
    settings: IndexSettings,
    name: str | None,
    journal_seq: int,
    *,
    activate: bool,
) -> str:
    """Write a release; `outputs` are those of `_check_outputs`."""
    dim, queries = outputs
    with target.create_draft(name) as draft:
        with evaluation_mode(inputs.item_graph, inputs.user_graph):
            encoder, encoder_hash = _export_towers(inputs, dim, draft.directory)
        # Not bound to a name: the vectors are released before the index is loaded again to be verified.
        description = write_release(
            draft.directory,
            _build_contents(encoder, inputs, journal_seq, draft.directory),
            settings,
            queries=queries,
            encoder=(encoder, encoder_hash),
            name=draft.name,
        )
        check = partial(check_operations_remain, target, inputs.schema.items.id_type, journal_seq)
        return draft.commit(description, activate=activate, check=check)


def _check_arguments(
    schema: Schema, user_tower: nn.Module, item_tower: nn.Module, users: Table | None, history_length: int
) -> bool:
    """Check that schema, towers and tables match.

    Returns:
        Whether the user tower reads histories.
    """
    if isinstance(history_length, bool) or not isinstance(history_length, int) or not 1 <= history_length <= 1000:
        raise ConfigError(f"history_length: expected an integer in 1 .. 1000, got {history_length!r:.80}")
    if reads_history(item_tower, _ITEM_TOWER):
        raise ExportError(f"{_ITEM_TOWER}: forward has `history` and `lengths`; only the user tower reads histories")
    if schema.interactions.context:
        raise ConfigError(
            "schema.interactions.context: is read by towers that `fit` trains; leave it out, or make features of users "
            "of its columns"
        )
    if not schema.items.features:
        raise ConfigError("schema.items.features: is empty; the item tower reads nothing but features, so name some")
    has_history = reads_history(user_tower, _USER_TOWER)
    if not has_history and not schema.users.features:
        raise ConfigError(
            "schema.users.features: is empty, and the forward of the user tower has no `history` and `lengths`, so "
            "nothing tells users apart; name features, or read histories"
        )
    require_users_table(schema, users)
    return has_history


def _fit_encoders(schema: Schema, tables: Tables) -> tuple[TableEncoder, TableEncoder]:
    """As `vecall.fit_encoders` does on the same tables."""

    def fit(features: Features, rows: pl.DataFrame) -> TableEncoder:
        return TableEncoder(FeatureEncoder.fit(features, rows).state)

    item_rows, user_rows = (pl.DataFrame() if part is None else part.features for part in (tables.items, tables.users))
    return fit(schema.items.features, item_rows), fit(schema.users.features, user_rows)


def _check_pair(encoders: object) -> tuple[TableEncoder, TableEncoder]:
    match encoders:
        case [TableEncoder() as item_encoder, TableEncoder() as user_encoder]:
            return item_encoder, user_encoder
    raise ConfigError(f"encoders: expected the pair of TableEncoder that fit_encoders returns, got {encoders!r:.80}")


def _check_features(schema: Schema, item_encoder: TableEncoder, user_encoder: TableEncoder) -> None:
    for section, features, encoder in (
        ("items", schema.items.features, item_encoder),
        ("users", schema.users.features, user_encoder),
    ):
        fitted = encoder.state.features
        if list(fitted.items()) != list(features.items()):
            raise ConfigError(
                f"encoders: the encoder of {section} was fitted for {list(fitted)} and schema.{section}.features names "
                f"{list(features)}; kinds, parameters and order must be the same too"
            )


def _to_queries(queries: NDArray[np.floating[Any]], dim: int) -> Vectors:
    query_array = to_array("queries", queries)
    check_queries(query_array, dim)
    return np.ascontiguousarray(query_array, dtype=np.float32)


def _export_towers(inputs: _Inputs, dim: int, directory: Path) -> tuple[OnnxEncoder, str]:
    """Write the towers and their encoders into a draft and open them as a release does.

    Returns:
        The encoder and its hash.
    """
    state = EncoderState(
        dim=dim,
        history_length=inputs.user_graph.history_length,
        items=inputs.item_encoder.state,
        users=inputs.user_encoder.state,
    )
    with translate_write_errors(directory):
        export_custom_tower(inputs.item_graph, dim, directory / ITEM_TOWER_FILE)
        export_custom_tower(inputs.user_graph, dim, directory / QUERY_TOWER_FILE)
        write_encoder_state(state, directory)
    return OnnxEncoder(directory, threads=os.cpu_count() or 1), compute_encoder_hash(directory)


def _build_contents(encoder: OnnxEncoder, inputs: _Inputs, journal_seq: int, scratch_dir: Path) -> ReleaseContents:
    dataset = build_dataset(inputs.tables, inputs.schema)
    catalogue = dataset.catalogue
    with translate_write_errors(scratch_dir):
        channels = build_channel_tables(
            ChannelsSettings(), dataset, dataset.interactions.positives, scratch_dir=scratch_dir
        )
    has_interactions = len(inputs.tables.interactions) > 0
    vectors = encode_catalogue(encoder, catalogue.item_features)
    if len(invalid := find_unstorable_rows(vectors)):
        raise ExportError(
            f"{_ITEM_TOWER}: gives NaN or numbers beyond ±{MAX_STORED_VALUE:g} for {len(invalid)} items, such as "
            f"{catalogue.item_ids[int(invalid[0])]!r}; check it for divisions by 0 and overflows"
        )
    users = None
    if has_interactions or inputs.tables.users is not None:
        users = UserTable(catalogue.users, catalogue.user_features, dataset.histories)
    return ReleaseContents(
        item_ids=catalogue.items,
        vectors=vectors,
        attributes=catalogue.item_attributes,
        popularity=dataset.popularity if has_interactions else None,
        users=users,
        item_features=catalogue.item_features,
        channels=channels,
        journal_seq=journal_seq,
        tables_seq=journal_seq,
    )
