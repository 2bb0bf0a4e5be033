"""vecall.toml as one frozen value: every section, its presets and its checks."""

import json
import tomllib
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError, model_validator

from vecall.data.settings import DataSettings
from vecall.errors import ConfigError
from vecall.evaluation.settings import EvaluationSettings
from vecall.index.settings import IndexSettings
from vecall.schema import Schema, Section
from vecall.towers.settings import ModelSettings
from vecall.training.settings import TrainingSettings

# What a preset sets; a key of the file overrides it. The values are the best measured ones: docs/decisions/.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "founding": {
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
            "schedule": "constant",
            "weight_decay": 0.0,
        },
    },
    "pooled": {},
}


class Config(Section):
    """All settings of a run."""

    data: DataSettings
    schema_: Schema
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
    index: IndexSettings = IndexSettings()
    evaluation: EvaluationSettings = EvaluationSettings()

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, sections: Any) -> Any:  # noqa: ANN401 - whatever the file holds
        if not isinstance(sections, dict):
            return sections
        filled = dict(sections)
        if "schema" in filled:  # `schema` is a name that pydantic keeps for itself
            filled["schema_"] = filled.pop("schema")
        model = filled.get("model", {})
        preset = PRESETS.get(model.get("preset", "pooled"), {}) if isinstance(model, dict) else {}
        for section, defaults in preset.items():
            given = filled.get(section, {})
            if isinstance(given, dict):
                filled[section] = defaults | given
        return filled

    @model_validator(mode="after")
    def _features_have_tables(self) -> Self:
        for side, table, features in (
            ("items", self.data.items, self.schema_.items.features),
            ("users", self.data.users, self.schema_.users.features),
        ):
            if features and table is None:
                raise ValueError(f"schema.{side}.features names columns, but there is no data.{side} table")
        if self.model.history.encoder == "none" and not self.schema_.users.features:
            raise ValueError("model.history.encoder = 'none' needs user features: nothing else tells users apart")
        if not self.model.item_id and not self.schema_.items.features:
            raise ValueError("model.item_id = false needs item features: nothing else tells items apart")
        return self

    def as_json(self) -> dict[str, Any]:
        """The settings as `parse_config` reads them back."""
        sections: dict[str, Any] = json.loads(self.model_dump_json())
        sections["schema"] = sections.pop("schema_")
        return sections


def load_config(path: str | Path) -> Config:
    """Read and check a vecall.toml.

    Args:
        path: the file; relative paths in it are taken from its own folder.

    Raises:
        ConfigError: no such file, no TOML, an unknown key or a bad value; the message begins with the key's path.
    """
    path = Path(path)
    try:
        sections = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from error
    config = parse_config(sections, source=str(path))
    return config.model_copy(update={"data": config.data.within(path.resolve().parent)})


def parse_config(sections: dict[str, Any], *, source: str = "config") -> Config:
    """Check settings given as nested dictionaries, with the sections of vecall.toml.

    Raises:
        ConfigError: an unknown key or a bad value; `source` is named in the message.
    """
    try:
        return Config.model_validate(sections)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{source}: {_sentence(problem)}" for problem in error.errors())) from error


def _sentence(problem: Any) -> str:  # noqa: ANN401 - pydantic's ErrorDetails is not public
    place = ".".join("schema" if part == "schema_" else str(part) for part in problem["loc"])
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        message = "unknown key; see the keys in INTERFACES or README"
    elif problem["type"] == "missing":
        message = "is required"
    elif place and not isinstance(problem["input"], dict):
        message += f", got {problem['input']!r}"
    return f"{place}: {message}" if place else message
