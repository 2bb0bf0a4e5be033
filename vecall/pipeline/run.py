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
from vecall.release.users import load_id_map, save_id_map
from vecall.runtime.paths import check_path
from vecall.towers.settings import ModelSettings
from vecall.towers.two_tower import TwoTower
from vecall.training.data import TrainingData
from vecall.training.scoring import TowerScorer
from vecall.training.warm_start import ModelVocabulary

CONFIG, SUMMARY, METRICS = "config.json", "summary.json", "metrics.jsonl"
MODEL, REFIT = "model", "refit"
_WEIGHTS, _ENCODERS, _IDS = "weights.safetensors", "encoders.json", "ids."


class Summary(BaseModel):
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


class FittedState(BaseModel):
    """`encoders.json` of a model."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    items: FeatureEncoderState
    users: FeatureEncoderState


@dataclass(frozen=True)
class Model:
    """Towers with what their inputs mean.

    Attributes:
        towers: in evaluation mode.
        known: the items and encoders that they were trained with.
    """

    towers: TwoTower
    known: ModelVocabulary

    def save(self, folder: Path) -> None:
        """Write the model's files."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: x.contiguous() for name, x in self.towers.state_dict().items()}, folder / _WEIGHTS)
        state = FittedState(items=self.known.item_encoder.state, users=self.known.user_encoder.state)
        (folder / _ENCODERS).write_text(state.model_dump_json(), encoding="utf-8")
        save_id_map(self.known.item_id_map, folder, _IDS)

    @classmethod
    def load(cls, folder: Path, settings: ModelSettings) -> "Model":
        """Read them.

        Raises:
            TrainingError: a file is missing or damaged, or the settings are not those of the weights.
        """
        try:
            state = FittedState.model_validate_json((folder / _ENCODERS).read_bytes())
            known = ModelVocabulary(load_id_map(folder, _IDS), FeatureEncoder(state.items), FeatureEncoder(state.users))
            weights = load_file(folder / _WEIGHTS)
            towers = TwoTower(settings, known.item_encoder.specs, known.user_encoder.specs, len(known.item_id_map))
            towers.load_state_dict(weights)
        except (OSError, ValidationError, SafetensorError, RuntimeError, VecallError) as error:
            raise TrainingError(f"{folder}: the model cannot be read ({error}); fit it again") from error
        return cls(towers.eval(), known)

    def scorer(self, dataset: Dataset, split: Split) -> TowerScorer:
        """Scores of a data set's items, encoded as the towers know them."""
        encoders = self.known.item_encoder, self.known.user_encoder
        problem = TrainingData.from_catalogue(dataset.catalogue, encoders, split.train, split.negatives)
        return TowerScorer(self.towers, problem)

    def weights(self) -> Mapping[str, Tensor]:
        """By name."""
        return self.towers.state_dict()


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: where it lies.
        config: what was asked for.
        summary: what came out.
    """

    folder: Path
    config: Config
    summary: Summary

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """Open a finished run.

        Raises:
            TrainingError: there is none, or it was cut short.
        """
        folder = check_path(folder)
        if not _exists(folder / CONFIG):
            raise TrainingError(f"{folder}: no run here; make one: vecall fit CONFIG --run {folder}")
        if not _exists(folder / SUMMARY):
            raise TrainingError(f"{folder}: this run was cut short; the same `vecall fit` again goes on with it")
        try:
            summary = Summary.model_validate_json((folder / SUMMARY).read_bytes())
        except ValidationError as error:
            raise TrainingError(f"{folder / SUMMARY}: damaged: {error}") from error
        return cls(folder, read_config(folder), summary)

    @property
    def weights_file(self) -> Path:
        """The weights of the judged model."""
        return self.folder / MODEL / _WEIGHTS

    def judged_model(self) -> Model:
        """The model that the metrics are of; it has not seen what it was judged by."""
        return Model.load(self.folder / MODEL, self.config.model)

    def live_model(self) -> Model:
        """The model to publish: trained again on everything, where that was asked for."""
        return Model.load(self.folder / (REFIT if self.summary.refit else MODEL), self.config.model)

    def epochs(self) -> list[dict[str, float]]:
        """The lines of metrics.jsonl."""
        return [json.loads(line) for line in (self.folder / METRICS).read_text(encoding="utf-8").splitlines()]


def begin(folder: Path, config: Config) -> None:
    """Make a run directory, or find the one that an equal `fit` was cut short in.

    Raises:
        TrainingError: the folder holds a finished run, one of other settings, or something else.
    """
    if _exists(folder / SUMMARY):
        raise TrainingError(f"{folder}: holds a finished run; choose another --run, or delete it")
    if (folder / CONFIG).exists():
        if read_config(folder) != config:
            raise TrainingError(f"{folder}: holds a run of other settings that was cut short; choose another --run")
        return
    if folder.exists() and any(folder.iterdir()):
        raise TrainingError(f"{folder}: is not empty and not a run; choose another --run")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / CONFIG, json.dumps(config.as_json(), indent=1).encode())
    except OSError as error:
        raise TrainingError(f"{folder}: cannot be written: {error.strerror}; choose another --run") from error


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise TrainingError(f"{path}: cannot be looked at: {error.strerror}; see to its permissions") from error


def read_config(folder: Path) -> Config:
    """The settings of a run, finished or not.

    Raises:
        TrainingError: they cannot be read.
    """
    try:
        return parse_config(json.loads((folder / CONFIG).read_text(encoding="utf-8")), source=str(folder / CONFIG))
    except (OSError, ValueError, ConfigError) as error:
        raise TrainingError(f"{folder / CONFIG}: cannot be read: {error}") from error


def forget_checkpoints(folder: Path) -> None:
    """Delete what only an unfinished training needs."""
    for checkpoint in folder.glob("*.ckpt"):
        checkpoint.unlink()
