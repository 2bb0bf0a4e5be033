"""Settings of a run as vecall.toml holds them: all sections, presets and checks across sections."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from vecall.channels.settings import ChannelsSettings
from vecall.data.settings import DataSettings
from vecall.errors import ConfigError
from vecall.evaluation.settings import EvaluationSettings
from vecall.index.settings import IndexSettings
from vecall.ranking.settings import RankingSettings
from vecall.runtime.paths import to_absolute_path
from vecall.schema import Schema
from vecall.settings_base import SettingsModel, describe_validation_error, read_toml, to_nested
from vecall.towers.settings import ModelSettings
from vecall.training.settings import TrainingSettings

AUTO_PRESET = "auto"  # a preset is chosen by `vecall fit`

# Values that a preset sets where the file leaves the key out. How they were chosen: docs/decisions/.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "dssm": {
        "model": {
            "dim": 128,
            "hidden": (256, 128),
            "norm": "batch",
            "dropout": 0.3,
            "item_id": False,
            "history": {"encoder": "none"},
        },
        "training": {
            "loss": "bce",
            "negatives": {"uniform": 4},
            "temperature": 1.0,
            "batch": 128,
            "epochs": 30,
            "lr": 1e-3,
            "lr_schedule": "constant",
            "weight_decay": 0.0,
        },
    },
    "set": {
        "model": {
            "dim": 512,
            "max_trained_dim": 256,
            "item_init": "spectral",
            "init_std": 0.00625,
            "history": {"encoder": "set", "length": 500},
        },
        "training": {
            "temperature": 0.1,
            "batch": 128,
            "epochs": 10,
            "lr": 1e-3,
            "weight_decay": 0.1,
            "negatives": {"in_batch": 4096},
        },
    },
    "pooled": {},
    "sequence": {
        "model": {
            "dim": 256,
            "ensemble_size": 2,
            "dropout": 0.5,
            "init_std": 0.02,
            "id_dropout": 0.2,
            "history": {"encoder": "causal"},
        },
        "training": {
            "temperature": 0.07,
            "label_smoothing": 0.1,
            "mask_history": False,
            "batch": 768,
            "negatives": {"in_batch": 768},
            "epochs": 14,
            "lr": 1e-3,
            "lr_schedule": "constant",
            "ema_decay": 0.99,
        },
    },
}


class Config(SettingsModel):
    """All settings of a run.

    Attributes:
        data: Tables and how they are split.
        schema_: Columns of the tables; `schema` in the file.
        model: The two towers.
        training: Loss, optimization and stopping.
        index: Vector index and the targets that it is tuned for.
        channels: What is recalled beside the vectors, and how it is merged.
        ranking: What orders the recalled items into the final list.
        evaluation: Metrics.
    """

    data: DataSettings
    schema_: Schema = Field(alias="schema")  # pydantic reserves the name `schema`
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
    index: IndexSettings = IndexSettings()
    channels: ChannelsSettings = ChannelsSettings()
    ranking: RankingSettings = RankingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, settings: Any) -> Any:  # noqa: ANN401 - unvalidated content of the file
        if not isinstance(settings, dict):
            return settings
        model = settings.get("model")
        preset = model.get("preset") if isinstance(model, dict) else None
        return _deep_merge(PRESETS[preset], settings) if isinstance(preset, str) and preset in PRESETS else settings

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        for side, table, features in (
            ("items", self.data.items, self.schema_.items.features),
            ("users", self.data.users, self.schema_.users.features),
        ):
            if features and table is None:
                raise ValueError(f"schema.{side}.features names columns, but no data.{side} table is given; add it")
        self.evaluation.check_segments(self.schema_)
        self.channels.check_columns(self.schema_)
        if self.model.history.encoder == "none" and not self.schema_.user_inputs:
            raise ValueError(
                "model.history.encoder = 'none' needs user features; without them all users would have the same vector"
            )
        if self.model.history.encoder in ("causal", "set") and self.training.loss == "bce":
            raise ValueError(
                f"model.history.encoder = {self.model.history.encoder!r} is trained with a softmax loss, got "
                "training.loss = 'bce'; set it to another loss"
            )
        if self.model.history.encoder == "set" and self.schema_.interactions.context:
            raise ValueError(
                "model.history.encoder = 'set' predicts several items of a user at once, so it cannot read the context "
                "of each; choose another encoder, or leave schema.interactions.context out"
            )
        if self.model.norm == "batch" and self.model.hidden and self.training.batch == 1:
            raise ValueError(
                "training.batch = 1: model.norm = 'batch' needs at least 2 samples per step, as a single sample has no "
                "variance; increase training.batch, or set model.norm to 'layer'"
            )
        if not self.model.item_id and not self.schema_.items.features:
            raise ValueError(
                "model.item_id = false needs item features; without them all items would have the same vector"
            )
        return self

    def as_json(self) -> dict[str, Any]:
        """Return the settings as nested dictionaries that `parse_config` accepts.

        With `preset = "auto"`, `model` and `training` hold the given keys alone: the preset sets the others.
        """
        settings: dict[str, Any] = json.loads(self.model_dump_json(by_alias=True))
        if self.model.preset == AUTO_PRESET:
            keys_of_file = self.model_dump_json(by_alias=True, exclude_unset=True, include={"model", "training"})
            settings |= {"model": {}, "training": {}} | json.loads(keys_of_file)
        return settings

    def with_preset(self, preset: str, defaults: Mapping[str, Mapping[str, Any]] | None = None) -> "Config":
        """Return the settings with another preset in place of "auto"; keys that were given keep their values.

        Args:
            preset: Name in `PRESETS`.
            defaults: Sections whose values come before those of the preset.

        Raises:
            ConfigError: The preset cannot take the given keys.
        """
        settings = _deep_merge(defaults or {}, self.as_json())
        settings["model"] = {**settings["model"], "preset": preset}
        return parse_config(settings, source=f"model.preset = {preset!r}")


def _deep_merge(defaults: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults with `overrides` in place of equal keys; nested mappings are merged recursively."""
    merged_sections = {
        key: _deep_merge(defaults[key], overrides[key])
        for key in defaults.keys() & overrides.keys()
        if isinstance(defaults[key], Mapping) and isinstance(overrides[key], Mapping)
    }
    return {**defaults, **overrides, **merged_sections}


def load_config(path: str | Path) -> Config:
    """Read and validate a vecall.toml.

    Args:
        path: The file; relative paths in it are resolved against its own directory.

    Raises:
        ConfigError: The file cannot be read, is not TOML, or has an unknown key or an invalid value; the message names
            the file and the key.
    """
    absolute_path = to_absolute_path(path)
    config = parse_config(read_toml(absolute_path), source=str(path))
    return _resolve_paths(config, absolute_path.resolve().parent)


def check_config(config: object) -> Config:
    """Validate settings of a caller in Python, and resolve their relative paths against the working directory.

    Settings can be changed there by `model_copy`, which validates nothing.

    Raises:
        ConfigError: They are no `Config`, or have an unknown key or an invalid value.
    """
    if not isinstance(config, Config):
        raise ConfigError(f"config: expected a vecall.Config, got {type(config).__name__}; load_config(path) reads one")
    parse_config(to_nested(config))
    try:
        return _resolve_paths(config, Path.cwd())
    except FileNotFoundError:  # the directory was deleted; absolute paths are as good as before
        return config


def _resolve_paths(config: Config, directory: Path) -> Config:
    paths = {"data": config.data.resolve_paths(directory), "index": config.index.resolve_paths(directory)}
    return config.model_copy(update=paths)


def parse_config(settings: dict[str, Any], *, source: str = "config") -> Config:
    """Validate settings given as nested dictionaries with the sections of vecall.toml.

    Args:
        settings: The sections by name.
        source: Where the settings come from, for error messages.

    Raises:
        ConfigError: A key is unknown or a value is invalid; the message has a line for each.
    """
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        problems = describe_validation_error(error, Config, settings)
        raise ConfigError("\n".join(f"{source}: {problem}" for problem in problems)) from error
