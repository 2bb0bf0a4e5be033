"""vecall.toml as one frozen value: every section, its presets and its checks."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from vecall.data.settings import DataSettings
from vecall.errors import ConfigError
from vecall.evaluation.settings import EvaluationSettings
from vecall.index.settings import IndexSettings
from vecall.runtime.paths import to_absolute_path
from vecall.schema import Schema
from vecall.settings_base import SettingsModel, describe_validation_error, read_toml
from vecall.towers.settings import ModelSettings
from vecall.training.settings import TrainingSettings

# What a preset sets; a key of the file overrides it. How they were chosen: docs/decisions/.
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
            "epochs": 14,
            "lr": 1e-3,
            "lr_schedule": "constant",
            "ema_decay": 0.99,
        },
    },
}


class Config(SettingsModel):
    """All settings of a run."""

    data: DataSettings
    schema_: Schema = Field(alias="schema")  # `schema` is a name that pydantic keeps for itself
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
    index: IndexSettings = IndexSettings()
    evaluation: EvaluationSettings = EvaluationSettings()

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, settings: Any) -> Any:  # noqa: ANN401 - whatever the file holds
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
                raise ValueError(f"schema.{side}.features names columns, but there is no data.{side} table")
        if self.model.history.encoder == "none" and not self.schema_.users.features:
            raise ValueError("model.history.encoder = 'none' needs user features: nothing else tells users apart")
        if self.model.history.encoder == "causal" and self.training.loss == "bce":
            raise ValueError(
                "model.history.encoder = 'causal' learns by a softmax; set training.loss to another than bce"
            )
        if self.model.norm == "batch" and self.model.hidden and self.training.batch == 1:
            raise ValueError(
                "training.batch = 1: model.norm = 'batch' needs at least 2 samples a step, for one has no deviation; "
                "set training.batch higher, or model.norm to 'layer'"
            )
        if not self.model.item_id and not self.schema_.items.features:
            raise ValueError("model.item_id = false needs item features: nothing else tells items apart")
        return self

    def as_json(self) -> dict[str, Any]:
        """The settings as `parse_config` reads them back."""
        sections: dict[str, Any] = json.loads(self.model_dump_json(by_alias=True))
        return sections


def _deep_merge(defaults: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`overrides`, and key by key, sections within sections too, the defaults that it lacks."""
    both = {
        key: _deep_merge(defaults[key], overrides[key])
        for key in defaults.keys() & overrides.keys()
        if isinstance(defaults[key], Mapping) and isinstance(overrides[key], Mapping)
    }
    return {**defaults, **overrides, **both}


def load_config(path: str | Path) -> Config:
    """Read and check a vecall.toml.

    Args:
        path: the file; relative paths in it are taken from its own folder.

    Raises:
        ConfigError: no such file, no TOML, an unknown key or a bad value; the message begins with the key's path.
    """
    file = to_absolute_path(path)
    config = parse_config(read_toml(file), source=str(path))
    return config.model_copy(update={"data": config.data.resolve_paths(file.resolve().parent)})


def parse_config(settings: dict[str, Any], *, source: str = "config") -> Config:
    """Check settings given as nested dictionaries, with the sections of vecall.toml.

    Raises:
        ConfigError: an unknown key or a bad value; `source` is named in the message.
    """
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        problems = describe_validation_error(error, Config, settings)
        raise ConfigError("\n".join(f"{source}: {problem}" for problem in problems)) from error
