"""Whether a kept result still is that of the present settings."""

from collections.abc import Mapping
from typing import Any

from vecall.towers.settings import ModelSettings
from vecall.training.settings import TrainingSettings

# Keys of [training] that change how a model is trained, or what is told of it, and not which model comes out.
_IGNORED_KEYS = frozenset({"training.devices", "training.logger", "training.minutes", "training.precision"})

# With loss "auto", which is the softmax over all items for the data sets of the benchmarks.
_IGNORED_TABLE_OF_AUTO_LOSS = "training.negatives."

Settings = Mapping[str, Any]


def is_same_model(kept: Settings | None, present: Settings) -> bool:
    """Return whether a model of the kept settings is one of the present settings.

    Kept settings are older: keys that were added since then count as their defaults, which is how the model was
    trained. A key that is no longer there makes them different.

    Args:
        kept: The sections `model` and `training` beside a kept result; None without such.
        present: The same sections now.
    """
    if kept is None:
        return False
    defaults = flatten_settings(
        {"model": ModelSettings().model_dump(mode="json"), "training": TrainingSettings().model_dump(mode="json")}
    )
    old, new = flatten_settings(kept), flatten_settings(present)
    compared_keys = (old.keys() | new.keys()) - _IGNORED_KEYS
    if old.get("training.loss") == new.get("training.loss") == "auto":
        compared_keys = {key for key in compared_keys if not key.startswith(_IGNORED_TABLE_OF_AUTO_LOSS)}
    return all(key in new and old.get(key, defaults.get(key)) == new[key] for key in compared_keys)


def flatten_settings(settings: Settings, prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted key, such as `model.history.length`."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= flatten_settings(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
