"""Run directory: settings, training metrics, models and results of one `vecall fit`.

RUN/config.json      Settings with absolute paths.
RUN/metrics.jsonl    Metrics, one line per epoch.
RUN/data.json        Digests of the data; with RUN/trained_interactions.npy, see `vecall.pipeline.lineage`.
RUN/selection/       With `preset = "auto"`: what was tried and chosen, see `vecall.pipeline.selection_record`.
RUN/model/           The evaluated model: weights.safetensors, encoders.json and its item ids.
RUN/refit/           With `refit = true`: the final model, trained again on all interactions and published instead.
RUN/ranker/          A ranker that gains on validation: the files that a release has of it.
RUN/fit.lock         Held by the fit that writes the directory.
RUN/summary.json     Results. A run without it was interrupted and is resumed by the same `vecall fit`.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from vecall.channels.merge_plan import VECTORS_ALONE, MergePlan
from vecall.channels.settings import ChannelsSettings
from vecall.channels.similar_plan import SimilarPlan
from vecall.config import AUTO_PRESET, Config, parse_config
from vecall.data.dataset import Dataset
from vecall.data.feature_encoder import FeatureEncoder, FeatureEncoderState
from vecall.data.split import Split
from vecall.errors import ConfigError, LockedError, StoreError, TrainingError, VecallError
from vecall.evaluation.baseline_comparison import BaselineComparison
from vecall.pipeline.feature_check import describe_missing_features
from vecall.pipeline.lineage import FINGERPRINT_FILE, TRAINED_HASHES_FILE
from vecall.pipeline.ranker_training import RankerSummary
from vecall.pipeline.selection_record import read_selection
from vecall.pipeline.weights_io import load_module, save_weights
from vecall.release.file_lock import file_lock
from vecall.release.id_map_io import load_id_map, save_id_map
from vecall.runtime.durable_files import atomic_write
from vecall.runtime.paths import to_absolute_path
from vecall.towers.settings import ModelSettings
from vecall.towers.two_tower import TwoTower
from vecall.training.data import TrainingData
from vecall.training.plan import PLAN_FILE
from vecall.training.scoring import TowerScorer
from vecall.training.threads import THREADS_FILE
from vecall.training.warm_start import ModelVocabulary

CONFIG_FILE, SUMMARY_FILE, METRICS_FILE = "config.json", "summary.json", "metrics.jsonl"
MODEL_DIR, REFIT_DIR = "model", "refit"
_MAX_DIFFERENCES = 3  # in an error text
_LOCK_FILE, _LOCK_TIMEOUT_SECONDS = "fit.lock", 10.0  # until the processes of a fit that was killed have ended
# All that a fit writes before it has trained anything.
_PRELIMINARY_FILES = frozenset(
    {CONFIG_FILE, _LOCK_FILE, FINGERPRINT_FILE, TRAINED_HASHES_FILE, PLAN_FILE, THREADS_FILE}
)
_WEIGHTS_FILE, _ENCODERS_FILE, _IDS_PREFIX = "weights.safetensors", "encoders.json", "ids."


class RunSummary(BaseModel):
    """Content of `summary.json`.

    Attributes:
        best_epoch: Epoch of the evaluated weights, counted from 0.
        epochs: Number of epochs that were run.
        seconds: Wall time of training.
        protocol: Description of the split, as in `Split.protocol`.
        dropped: Number of rows and users that were left out, by reason.
        data: Sizes of the tables and of the parts of the split, by name.
        metrics: Test metrics, see `EvaluationResult.as_json`.
        baselines: Those of the baselines on the same users, by name; without those that did not fit into memory.
        baseline_notes: Sentences on how a baseline was fitted, or why it is missing.
        comparison: The model beside the baselines; None if these were not evaluated.
        similar: How the table of similar items is built.
        merge: How a release of the run merges its channels.
        refit: Whether the run has a final model in `refit/`.
        ranker: How a ranker was trained, and whether it is kept; None if none was to be trained.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    best_epoch: int
    epochs: int
    seconds: float
    protocol: str
    dropped: dict[str, int]
    data: dict[str, int] = {}
    metrics: dict[str, JsonValue]
    baselines: dict[str, dict[str, JsonValue]] = {}
    baseline_notes: tuple[str, ...] = ()
    comparison: BaselineComparison | None = None
    similar: SimilarPlan = SimilarPlan()
    merge: MergePlan = VECTORS_ALONE
    refit: bool
    ranker: RankerSummary | None = None


class ModelEncoders(BaseModel):
    """Content of `encoders.json`: the feature encoders of a model."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    items: FeatureEncoderState
    users: FeatureEncoderState


@dataclass(frozen=True)
class TrainedModel:
    """Towers and the vocabulary of their inputs.

    Attributes:
        towers: The towers, in evaluation mode.
        vocabulary: The item ids and feature encoders that they were trained with.
    """

    towers: TwoTower
    vocabulary: ModelVocabulary

    def save(self, directory: Path) -> None:
        """Write the model's files into a directory, which is created if necessary; weights are not copied in memory.

        Raises:
            TrainingError: The disk is full or fails, or permissions forbid writing.
        """
        state = ModelEncoders(items=self.vocabulary.item_encoder.state, users=self.vocabulary.user_encoder.state)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            save_weights(self.towers, directory / _WEIGHTS_FILE)
            (directory / _ENCODERS_FILE).write_text(state.model_dump_json(), encoding="utf-8")
            save_id_map(self.vocabulary.item_id_map, directory, _IDS_PREFIX)
        except (OSError, SafetensorError) as error:
            raise TrainingError(
                f"{directory}: the model cannot be written ({error}); free disk space or fix the permissions, then "
                "repeat the same `vecall fit`"
            ) from error

    @classmethod
    def load(cls, directory: Path, settings: ModelSettings) -> "TrainedModel":
        """Read a model from its directory.

        Tables are mapped from their file and read when they are used. They may be written to, which does not change
        the file.

        Raises:
            TrainingError: A file is missing or damaged, or the weights do not fit the settings.
        """
        try:
            state = ModelEncoders.model_validate_json((directory / _ENCODERS_FILE).read_bytes())
            vocabulary = ModelVocabulary(
                load_id_map(directory, _IDS_PREFIX), FeatureEncoder(state.items), FeatureEncoder(state.users)
            )
            item_specs, user_specs = vocabulary.item_encoder.specs, vocabulary.user_encoder.specs
            n_items = len(vocabulary.item_id_map)
            towers = load_module(lambda: TwoTower(settings, item_specs, user_specs, n_items), directory / _WEIGHTS_FILE)
        except (OSError, ValidationError, SafetensorError, RuntimeError, VecallError) as error:
            raise TrainingError(f"{directory}: the model cannot be read ({error}); fit it again") from error
        return cls(towers.eval(), vocabulary)

    def build_scorer(self, dataset: Dataset, split: Split) -> TowerScorer:
        """Build a scorer of the data set's items, with features encoded as in training.

        Raises:
            TrainingError: The tables have not all features that the model reads, or context that it does not read.
        """
        encoders = self.vocabulary.item_encoder, self.vocabulary.user_encoder
        features = encoders[0].state.features, encoders[1].state.features
        if missing := describe_missing_features(
            *features, dataset.schema, reads_context=split.train_context is not None
        ):
            raise TrainingError(f"the model reads other features than the settings name: {missing}; fit again")
        training_data = TrainingData.from_catalogue(
            dataset.catalogue, encoders, split.train, split.hard_negatives, history_context=split.train_context
        )
        return TowerScorer(self.towers, training_data)

    def state_dict(self) -> Mapping[str, Tensor]:
        """Return the weights by name."""
        return self.towers.state_dict()


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        directory: The run directory.
        config: Settings.
        summary: Results.
    """

    directory: Path
    config: Config
    summary: RunSummary

    @classmethod
    def open(cls, run_dir: str | Path) -> "Run":
        """Open a finished run.

        Raises:
            TrainingError: There is no run, it is unfinished, or a file of it cannot be read.
        """
        run_dir = to_absolute_path(run_dir)
        if not _exists(run_dir / CONFIG_FILE):
            raise TrainingError(f"{run_dir}: no run here; create one with: vecall fit CONFIG --run {run_dir}")
        if not _exists(run_dir / SUMMARY_FILE):
            raise TrainingError(f"{run_dir}: this run is unfinished; repeat its `vecall fit` command to resume it")
        try:
            summary = RunSummary.model_validate_json((run_dir / SUMMARY_FILE).read_bytes())
        except ValidationError as error:
            raise TrainingError(f"{run_dir / SUMMARY_FILE}: is damaged: {error}") from error
        return cls(run_dir, _resolve_run_config(run_dir), summary)

    @property
    def channels(self) -> ChannelsSettings:
        """The settings of the channels with what was found on validation for the table of similar items."""
        return self.config.channels.resolve_second_order(self.summary.similar.second_order)

    @property
    def weights_path(self) -> Path:
        """Path of the evaluated model's weights."""
        return self.directory / MODEL_DIR / _WEIGHTS_FILE

    def load_evaluated_model(self) -> TrainedModel:
        """Load the model that the metrics belong to; it was not trained on the held-out split."""
        return TrainedModel.load(self.directory / MODEL_DIR, self.config.model)

    def load_final_model(self) -> TrainedModel:
        """Load the model to publish: the refitted one if there is one, else the evaluated one."""
        return TrainedModel.load(self.directory / (REFIT_DIR if self.summary.refit else MODEL_DIR), self.config.model)

    def read_epoch_metrics(self) -> list[dict[str, float]]:
        """Read the metrics of each epoch."""
        return [json.loads(line) for line in (self.directory / METRICS_FILE).read_text(encoding="utf-8").splitlines()]


def enter_run_dir(run_dir: Path, config: Config, resources: ExitStack) -> None:
    """Create or check a run directory, and exclude other fits from it until `resources` are closed.

    Raises:
        LockedError: Another fit writes the directory.
        TrainingError: As for `check_run_dir`, or the directory cannot be written.
    """
    check_run_dir(run_dir, config)
    with _translate_write_errors(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
        resources.enter_context(file_lock(run_dir / _LOCK_FILE, timeout=_LOCK_TIMEOUT_SECONDS))
        if check_run_dir(run_dir, config):  # again: the fit that held the lock may have finished the run
            return
        for name in _PRELIMINARY_FILES - {_LOCK_FILE}:
            (run_dir / name).unlink(missing_ok=True)
        atomic_write(run_dir / CONFIG_FILE, json.dumps(config.as_json(), indent=1).encode())


@contextmanager
def _translate_write_errors(run_dir: Path) -> Iterator[None]:
    try:
        yield
    except LockedError:
        raise
    except (OSError, StoreError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise TrainingError(f"{run_dir}: cannot be written: {reason}; choose another --run") from error


def check_run_dir(run_dir: Path, config: Config) -> bool:
    """Check that a run directory is new, or holds an interrupted run with equal settings; nothing is written.

    It is new, too, if a fit ended in it before anything was trained.

    Returns:
        Whether it holds an interrupted run.

    Raises:
        TrainingError: The directory holds a finished run, a run with other settings, or something else.
    """
    if _exists(run_dir / SUMMARY_FILE):
        raise TrainingError(f"{run_dir}: holds a finished run; choose another --run, or delete it")
    if not run_dir.exists():
        return False
    if run_dir.is_dir() and {path.name for path in run_dir.iterdir()} <= _PRELIMINARY_FILES:
        return False
    if not (run_dir / CONFIG_FILE).exists():
        raise TrainingError(f"{run_dir}: is neither empty nor a run; choose another --run")
    # As JSON: with preset "auto", a key in the file is not the same as its default.
    if differences := _list_differences(read_run_config(run_dir).as_json(), config.as_json()):
        raise TrainingError(
            f"{run_dir}: holds an interrupted run with other settings ({'; '.join(differences[:_MAX_DIFFERENCES])}); "
            "restore them to resume it, or choose another --run"
        )
    return True


def _list_differences(there: JsonValue, here: JsonValue, path: str = "") -> list[str]:
    """List the values that differ between two settings as JSON, each with its path."""
    if there == here:
        return []
    if isinstance(there, dict) and isinstance(here, dict):
        keys = dict.fromkeys([*there, *here])
        parts = [_list_differences(there.get(key), here.get(key), f"{path}.{key}".removeprefix(".")) for key in keys]
        return [difference for part in parts for difference in part]
    return [f"{path}: {json.dumps(there):.80} there, {json.dumps(here):.80} here"]


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise TrainingError(f"{path}: cannot be accessed: {error.strerror}; check its permissions") from error


def _resolve_run_config(run_dir: Path) -> Config:
    """Return the settings that the model of a run was trained with."""
    config = read_run_config(run_dir)
    if config.model.preset != AUTO_PRESET:
        return config
    selection = read_selection(run_dir)
    if selection is None:
        raise TrainingError(f"{run_dir}: has no record of what preset = 'auto' chose; fit again")
    return selection.parse_config()


def read_run_config(run_dir: Path) -> Config:
    """Read the settings of a run, finished or not.

    Raises:
        TrainingError: The settings cannot be read.
    """
    try:
        return parse_config(
            json.loads((run_dir / CONFIG_FILE).read_text(encoding="utf-8")), source=str(run_dir / CONFIG_FILE)
        )
    except (OSError, ValueError, ConfigError) as error:
        raise TrainingError(f"{run_dir / CONFIG_FILE}: cannot be read: {error}") from error


def delete_checkpoints(directory: Path) -> None:
    """Delete the checkpoints, which only an unfinished training needs, and what interrupted saves of them left."""
    for pattern in ("*.ckpt", "*.ckpt.tmp"):
        for checkpoint in directory.glob(pattern):
            checkpoint.unlink()
