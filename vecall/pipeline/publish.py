"""Turn a finished run into a release: `vecall publish`."""

import logging
import os
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vecall import progress
from vecall.data.dataset import Dataset, read_dataset
from vecall.errors import StoreError
from vecall.live.pruning import check_tables_seq
from vecall.pipeline.onnx_export import export_towers
from vecall.pipeline.run import Run, TrainedModel
from vecall.release.encoder import EncoderState, OnnxEncoder
from vecall.release.regression import find_regression
from vecall.release.store import Store
from vecall.release.users import UserTable
from vecall.release.writer import ReleaseContents, write_release
from vecall.runtime.fork_safety import check_not_forked

logger = logging.getLogger(__name__)

_ENCODE_BATCH_SIZE = 8192


def publish(
    run_dir: str | Path,
    store: str | Path,
    *,
    name: str | None = None,
    activate: bool = True,
    journal_seq: int = 0,
    allow_worse: bool = False,
) -> str:
    """Make a release of a run: export the towers, encode all items of the tables, build the index, prove it.

    The tables are read again, so items and histories are those of today; items newer than the run are encoded by
    their features alone.

    Args:
        run_dir: a finished run.
        store: the store's folder; made if there is none.
        name: of the release; None takes the time.
        activate: whether it becomes the current one.
        journal_seq: operations of the store's journal that the tables already hold.
        allow_worse: publish it though it has less than half of the current release's items, or its model less than half
            of that one's recall. With `activate` false it is published all the same, with a warning.

    Returns:
        The release's name.

    Raises:
        TrainingError: there is no finished run.
        DataError: the tables do not hold what the schema says.
        ExportError: the exported towers answer otherwise than the trained ones.
        StoreError: the name is taken, the journal has no operation `journal_seq`, the release has lost much and
            `allow_worse` is false, or the store cannot be written.
    """
    check_not_forked()
    run = Run.open(run_dir)
    model = run.load_final_model()
    opened = Store.create(Path(store))
    check_tables_seq(opened, run.config.schema_.items.id_type, journal_seq)
    dataset = read_dataset(run.config.data, run.config.schema_)
    _check_no_regression(opened, run, dataset, activate=activate, allow_worse=allow_worse)
    with opened.create_draft(name) as draft:
        encoder, digest = _export_encoder(model, dataset, draft.directory)
        rows = np.arange(len(dataset.catalogue.items))
        contents = ReleaseContents(
            item_ids=dataset.catalogue.items,
            vectors=_encode_catalogue(encoder, dataset.catalogue.item_features, rows),
            attributes=dataset.catalogue.item_attributes,
            popularity=dataset.popularity,
            users=_build_user_table(dataset),
            item_features=dataset.catalogue.item_features,
            metrics={"model": run.summary.metrics, "refit": run.summary.refit},
            journal_seq=journal_seq,
            tables_seq=journal_seq,
        )
        description = write_release(draft.directory, contents, run.config.index, encoder=(encoder, digest))
        return draft.commit(description, activate=activate)


def _check_no_regression(store: Store, run: Run, dataset: Dataset, *, activate: bool, allow_worse: bool) -> None:
    lost = find_regression(store, len(dataset.catalogue.items), run.summary.metrics)
    if lost is None:
        return
    left_out = f" Left out while reading: {dict(dataset.dropped_counts)}." if dataset.dropped_counts else ""
    if activate and not allow_worse:
        raise StoreError(
            f"{run.directory}: is not published: {lost}.{left_out} See to the tables and the run; if it is meant, publish "
            "with --allow-worse, or with --no-activate to look at it first"
        )
    logger.warning("%s: %s.%s", run.directory, lost, left_out)


def _export_encoder(model: TrainedModel, dataset: Dataset, directory: Path) -> tuple[OnnxEncoder, str]:
    """Write the towers into a draft and open them as a release does."""
    known, settings = model.vocabulary, model.towers.settings
    state = EncoderState(
        dim=settings.dim,
        history_length=settings.history.length if model.towers.reads_history else 0,
        items=known.item_encoder.state,
        users=known.user_encoder.state,
    )
    id_rows = known.item_id_map.column_to_rows(dataset.catalogue.item_ids)
    shapes = known.item_encoder.specs, known.user_encoder.specs
    digest = export_towers(model.towers, state, shapes, id_rows, directory)
    return OnnxEncoder(directory, threads=os.cpu_count() or 1), digest


def _encode_catalogue(encoder: OnnxEncoder, fields: pl.DataFrame, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """[N, D] vectors of all items, by the towers that were exported."""
    vectors = np.empty((len(rows), encoder.dim), dtype=np.float32)
    with progress.track("encoding items", len(rows)) as advance:
        for start in range(0, len(rows), _ENCODE_BATCH_SIZE):
            part = slice(start, start + _ENCODE_BATCH_SIZE)
            vectors[part] = encoder.encode_items(fields[part], rows[part])
            advance(len(rows[part]))
    return vectors


def _build_user_table(dataset: Dataset) -> UserTable:
    return UserTable(dataset.catalogue.users, dataset.catalogue.user_features, dataset.histories)
