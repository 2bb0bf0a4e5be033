"""A run directory: what was asked for, how training went, and the weights that came out.

RUN/config.json      the settings, with absolute paths
RUN/metrics.jsonl    a line per epoch
RUN/data.json        digests of what it learns from, and RUN/learned.npy: see `vecall.pipeline.lineage`
RUN/model/           the judged model: weights.safetensors, encoders.json, the item ids it knows
RUN/refit/           with `refit = true`, the same, trained again on everything: this one is published
RUN/summary.json     what came out; a run without it was cut short and is resumed
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vecall.config import Config, parse_config
from vecall.data.dataset import Dataset
from vecall.data.feature_encoder import FeatureEncoder, FeatureEncoderState
from vecall.data.split import Split
from vecall.errors import ConfigError, TrainingError, VecallError
from vecall.release.atomic_io import atomic_write
from vecall.release.id_map_io import load_id_map, save_id_map
from vecall.runtime.paths import to_absolute_path
from vecall.towers.settings import ModelSettings
from vecall.towers.two_tower import TwoTower
from vecall.training.data import TrainingData
from vecall.training.scoring import TowerScorer
from vecall.training.warm_start import ModelVocabulary

CONFIG_FILE, SUMMARY_FILE, METRICS_FILE = "config.json", "summary.json", "metrics.jsonl"
MODEL_DIR, REFIT_DIR = "model", "refit"
_WEIGHTS_FILE, _ENCODERS_FILE, _IDS_PREFIX = "weights.safetensors", "encoders.json", "ids."


class RunSummary(BaseModel):
    """`summary.json`.

    Attributes:
        best_epoch: counted from 0.
        epochs: how many were run before training stopped.
        seconds: wall time of training.
        protocol: how it was judged.
        dropped: what was left out, by reason.
        metrics: of the test, as `evaluate` gives them.
        refit: whether `refit/` is there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    best_epoch: int
    epochs: int
    seconds: float
    protocol: str
    dropped: dict[str, int]
    metrics: dict[str, JsonValue]
    refit: bool


class ModelEncoders(BaseModel):
    """`encoders.json` of a model."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    items: FeatureEncoderState
    users: FeatureEncoderState


@dataclass(frozen=True)
class TrainedModel:
    """Towers with what their inputs mean.

    Attributes:
        towers: in evaluation mode.
        vocabulary: the items and encoders that they were trained with.
    """

    towers: TwoTower
    vocabulary: ModelVocabulary

    def save(self, directory: Path) -> None:
        """Write the model's files."""
        directory.mkdir(parents=True, exist_ok=True)
        save_file({name: x.contiguous() for name, x in self.towers.state_dict().items()}, directory / _WEIGHTS_FILE)
        state = ModelEncoders(items=self.vocabulary.item_encoder.state, users=self.vocabulary.user_encoder.state)
        (directory / _ENCODERS_FILE).write_text(state.model_dump_json(), encoding="utf-8")
        save_id_map(self.vocabulary.item_id_map, directory, _IDS_PREFIX)

    @classmethod
    def load(cls, directory: Path, settings: ModelSettings) -> "TrainedModel":
        """Read them.

        Raises:
            TrainingError: a file is missing or damaged, or the settings are not those of the weights.
        """
        try:
            state = ModelEncoders.model_validate_json((directory / _ENCODERS_FILE).read_bytes())
            known = ModelVocabulary(
                load_id_map(directory, _IDS_PREFIX), FeatureEncoder(state.items), FeatureEncoder(state.users)
            )
            weights = load_file(directory / _WEIGHTS_FILE)
            towers = TwoTower(settings, known.item_encoder.specs, known.user_encoder.specs, len(known.item_id_map))
            towers.load_state_dict(weights)
        except (OSError, ValidationError, SafetensorError, RuntimeError, VecallError) as error:
            raise TrainingError(f"{directory}: the model cannot be read ({error}); fit it again") from error
        return cls(towers.eval(), known)

    def build_scorer(self, dataset: Dataset, split: Split) -> TowerScorer:
        """Scores of a data set's items, encoded as the towers know them."""
        encoders = self.vocabulary.item_encoder, self.vocabulary.user_encoder
        problem = TrainingData.from_catalogue(dataset.catalogue, encoders, split.train, split.negatives)
        return TowerScorer(self.towers, problem)

    def state_dict(self) -> Mapping[str, Tensor]:
        """By name."""
        return self.towers.state_dict()


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        directory: where it lies.
        config: what was asked for.
        summary: what came out.
    """

    directory: Path
    config: Config
    summary: RunSummary

    @classmethod
    def open(cls, run_dir: str | Path) -> "Run":
        """Open a finished run.

        Raises:
            TrainingError: there is none, or it was cut short.
        """
        run_dir = to_absolute_path(run_dir)
        if not _exists(run_dir / CONFIG_FILE):
            raise TrainingError(f"{run_dir}: no run here; make one: vecall fit CONFIG --run {run_dir}")
        if not _exists(run_dir / SUMMARY_FILE):
            raise TrainingError(f"{run_dir}: this run was cut short; the same `vecall fit` again goes on with it")
        try:
            summary = RunSummary.model_validate_json((run_dir / SUMMARY_FILE).read_bytes())
        except ValidationError as error:
            raise TrainingError(f"{run_dir / SUMMARY_FILE}: damaged: {error}") from error
        return cls(run_dir, read_run_config(run_dir), summary)

    @property
    def weights_path(self) -> Path:
        """The weights of the judged model."""
        return self.directory / MODEL_DIR / _WEIGHTS_FILE

    def load_evaluated_model(self) -> TrainedModel:
        """The model that the metrics are of; it has not seen what it was judged by."""
        return TrainedModel.load(self.directory / MODEL_DIR, self.config.model)

    def load_final_model(self) -> TrainedModel:
        """The model to publish: trained again on everything, where that was asked for."""
        return TrainedModel.load(self.directory / (REFIT_DIR if self.summary.refit else MODEL_DIR), self.config.model)

    def read_epoch_metrics(self) -> list[dict[str, float]]:
        """The lines of metrics.jsonl."""
        return [json.loads(line) for line in (self.directory / METRICS_FILE).read_text(encoding="utf-8").splitlines()]


def create_or_resume_run(run_dir: Path, config: Config) -> None:
    """Make a run directory, or find the one that an equal `fit` was cut short in.

    Raises:
        TrainingError: the folder holds a finished run, one of other settings, or something else.
    """
    if _exists(run_dir / SUMMARY_FILE):
        raise TrainingError(f"{run_dir}: holds a finished run; choose another --run, or delete it")
    if (run_dir / CONFIG_FILE).exists():
        if read_run_config(run_dir) != config:
            raise TrainingError(f"{run_dir}: holds a run of other settings that was cut short; choose another --run")
        return
    if run_dir.exists() and any(run_dir.iterdir()):
        raise TrainingError(f"{run_dir}: is not empty and not a run; choose another --run")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        atomic_write(run_dir / CONFIG_FILE, json.dumps(config.as_json(), indent=1).encode())
    except OSError as error:
        raise TrainingError(f"{run_dir}: cannot be written: {error.strerror}; choose another --run") from error


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise TrainingError(f"{path}: cannot be looked at: {error.strerror}; see to its permissions") from error


def read_run_config(run_dir: Path) -> Config:
    """The settings of a run, finished or not.

    Raises:
        TrainingError: they cannot be read.
    """
    try:
        return parse_config(
            json.loads((run_dir / CONFIG_FILE).read_text(encoding="utf-8")), source=str(run_dir / CONFIG_FILE)
        )
    except (OSError, ValueError, ConfigError) as error:
        raise TrainingError(f"{run_dir / CONFIG_FILE}: cannot be read: {error}") from error


def delete_checkpoints(directory: Path) -> None:
    """Delete what only an unfinished training needs."""
    for checkpoint in directory.glob("*.ckpt"):
        checkpoint.unlink()
