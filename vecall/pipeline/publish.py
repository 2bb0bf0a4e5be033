"""Publish a finished run as a release: `vecall publish`."""

import logging
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

from vecall.data.dataset import Dataset, read_dataset
from vecall.errors import InvalidReleaseError, StoreError, TrainingError
from vecall.live.pruning import check_operations_remain, check_tables_seq
from vecall.pipeline.catalogue_encoding import encode_catalogue
from vecall.pipeline.channel_building import build_channel_tables
from vecall.pipeline.fit_ranker import RANKER_DIR
from vecall.pipeline.lineage import read_fingerprint
from vecall.pipeline.onnx_export import export_towers
from vecall.pipeline.run import Run, TrainedModel
from vecall.ranking.ranker_info import RankerInfo
from vecall.recall.channels.available import list_available_channels
from vecall.release.encoder import EncoderState, OnnxEncoder
from vecall.release.file_io import translate_write_errors
from vecall.release.ranker_io import copy_ranker
from vecall.release.regression import find_regression
from vecall.release.store import Store
from vecall.release.users import UserTable
from vecall.release.writer import ReleaseContents, write_release
from vecall.runtime.fork_safety import check_not_forked

logger = logging.getLogger(__name__)


def publish(
    run_dir: str | Path,
    store: str | Path,
    *,
    name: str | None = None,
    activate: bool = True,
    journal_seq: int = 0,
    allow_worse: bool = False,
) -> str:
    """Publish a run as a release: export the towers, encode all items, build the index and verify the result.

    The tables are read again, so that the release has their present items and histories. Items newer than the run are
    encoded by their features alone.

    Args:
        run_dir: Directory of a finished run.
        store: Directory of the store; created if necessary.
        name: Name of the release; None for a UTC timestamp.
        activate: Whether the release becomes the current one.
        journal_seq: Sequence number of the last operation of the store's journal that the tables include.
        allow_worse: Whether to publish even if the release has less than half of the current release's items or
            recall; it also silences the warning about a model that is below a baseline. With `activate` false, a much
            worse release is published in any case, with a warning.

    Returns:
        The release's name.

    Raises:
        TrainingError: There is no finished run, or a file of its ranker is missing.
        DataError: The tables do not match the schema.
        ExportError: The exported towers give other vectors than the trained ones.
        StoreError: The name is in use, the journal has no operation `journal_seq`, the release is much worse than the
            current one and `allow_worse` is false, or the store cannot be written.
    """
    check_not_forked()
    run = Run.open(run_dir)
    model = run.load_final_model()
    target = Store.open_or_create(Path(store))
    check_tables_seq(target, run.config.schema_.items.id_type, journal_seq)
    if name is not None:
        target.check_name_available(name)  # before minutes of reading
    dataset = read_dataset(run.config.data, run.config.schema_)
    _check_no_regression(target, run, dataset, activate=activate, allow_worse=allow_worse)
    if not allow_worse:
        _warn_if_below_baselines(run)
    with target.create_draft(name) as draft:
        encoder_hash = _export_encoder(model, dataset, draft.directory)
        del model  # its id table is in the draft now
        _copy_ranker(run, draft.directory)
        # Not bound to a name: the vectors are released before the index is loaded again to be verified.
        description = write_release(
            draft.directory,
            _build_contents(draft.directory, dataset, run, journal_seq),
            run.config.index,
            encoder=(_open_encoder(draft.directory), encoder_hash),
            name=draft.name,
        )
        check = partial(check_operations_remain, target, run.config.schema_.items.id_type, journal_seq)
        return draft.commit(description, activate=activate, check=check)


def _check_no_regression(store: Store, run: Run, dataset: Dataset, *, activate: bool, allow_worse: bool) -> None:
    """Refuse a release that is much worse than the current one; warn if it is allowed or not activated."""
    regression = find_regression(store, len(dataset.catalogue.items), run.summary.metrics)
    if regression is None:
        return
    dropped = f" Rows dropped while reading: {dict(dataset.dropped_counts)}." if dataset.dropped_counts else ""
    if activate and not allow_worse:
        raise StoreError(
            f"{run.directory}: is not published: {regression}.{dropped} Check the tables and the run; if this is "
            "intended, publish with --allow-worse, or with --no-activate to inspect the release first"
        )
    logger.warning("%s: %s.%s", run.directory, regression, dropped)


def _warn_if_below_baselines(run: Run) -> None:
    """Warn if the evaluated model is below popularity, EASE or co-occurrence by more than noise."""
    comparison = run.summary.comparison
    if comparison is not None and comparison.level == "below":
        logger.warning(
            "%s: %s It is published nevertheless; --allow-worse silences this. %s",
            run.directory,
            comparison.message,
            comparison.advice,
        )


def _export_encoder(model: TrainedModel, dataset: Dataset, directory: Path) -> str:
    """Export the towers into a draft; return the encoder hash."""
    vocabulary, settings = model.vocabulary, model.towers.settings
    state = EncoderState(
        dim=settings.dim,
        history_length=settings.history.length if model.towers.reads_history else 0,
        distinct_history=model.towers.reads_sets,
        items=vocabulary.item_encoder.state,
        users=vocabulary.user_encoder.state,
    )
    id_rows = vocabulary.item_id_map.column_to_rows(dataset.catalogue.item_ids)
    specs = vocabulary.item_encoder.specs, vocabulary.user_encoder.specs
    with translate_write_errors(directory):
        return export_towers(model.towers, state, specs, id_rows, directory)


def _get_ranker_info(run: Run) -> RankerInfo:
    summary = run.summary.ranker
    return RankerInfo(reason="ranking.ranker is 'none'") if summary is None else summary.info


def _copy_ranker(run: Run, directory: Path) -> None:
    try:
        copy_ranker(_get_ranker_info(run), run.directory / RANKER_DIR, directory)
    except InvalidReleaseError as error:
        raise TrainingError(f"{run.directory / RANKER_DIR / error.file}: cannot be read; fit again") from error


def _open_encoder(directory: Path) -> OnnxEncoder:
    """Open the towers of a draft as a release does."""
    return OnnxEncoder(directory, threads=os.cpu_count() or 1)


def _build_contents(directory: Path, dataset: Dataset, run: Run, journal_seq: int) -> ReleaseContents:
    """Encode the items by an encoder of their own: it is released, with the id table that it has mapped, afterwards."""
    catalogue, fingerprint = dataset.catalogue, read_fingerprint(run.directory)
    with translate_write_errors(directory):  # before there are vectors in memory
        channels = build_channel_tables(run.channels, dataset, dataset.interactions.positives, scratch_dir=directory)
    settings = run.config.as_json()
    contents = ReleaseContents(
        item_ids=catalogue.items,
        vectors=encode_catalogue(_open_encoder(directory), catalogue.item_features),
        attributes=catalogue.item_attributes,
        popularity=dataset.popularity,
        users=UserTable(catalogue.users, catalogue.user_features, dataset.histories),
        item_features=catalogue.item_features,
        ranker=_get_ranker_info(run),
        channels=channels,
        metrics={
            "model": run.summary.metrics,
            **run.summary.baselines,
            "refit": run.summary.refit,
            "split": None if fingerprint is None else fingerprint.protocol,
        },
        trained_settings={section: settings[section] for section in ("model", "training")},
        journal_seq=journal_seq,
        tables_seq=journal_seq,
    )
    return replace(contents, merge=run.summary.merge.restrict(list_available_channels(contents)))
