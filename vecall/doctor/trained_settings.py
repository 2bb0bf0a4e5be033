"""The settings that a release was trained with, beside those of a file, where `preset = "auto"` leaves them open."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import JsonValue, ValidationError

from vecall.config import AUTO_PRESET, Config
from vecall.doctor.finding import Message
from vecall.pipeline.selection import RUN_BOUND_KEYS

_MAX_LISTED = 5
_NOT_RECORDED = Message(
    'the release does not record the settings that preset = "auto" chose for it, so checks that need them were left '
    "out: publish its run again.",
    '发布版本没有记录 preset = "auto" 所选的设置，因此略过需要这些设置的检查：请重新发布它的运行。',
)
_DIFFERENT = Message(
    "the release was trained with other settings than the file has ({differences}); the checks go by those of the "
    "release. Fit and publish again if those of the file are to serve.",
    "发布版本训练时的设置与文件不同（{differences}）；检查以发布版本的设置为准。若要以文件的设置提供服务，请重新训练并发布。",
)


def apply_trained_settings(
    config: Config, trained: Mapping[str, JsonValue]
) -> tuple[Config | None, tuple[Message, ...]]:
    """Return the settings of a file with those that a release was trained with in place of its own.

    Args:
        config: Settings of the file, which name the tables.
        trained: `trained_settings` of the release's manifest; empty where they were not recorded.

    Returns:
        Settings for the checks, and what is to be told of them. None where the file leaves the choice of a preset to
        `fit` and the release does not say which one was chosen.
    """
    try:
        sections = {
            "model": type(config.model).model_validate(trained["model"]),
            "training": type(config.training).model_validate(trained["training"]),
        }
    except (KeyError, ValidationError):  # of a release without towers, or written by another version
        return (None, (_NOT_RECORDED,)) if config.model.preset == AUTO_PRESET else (config, ())
    file_settings = config.as_json()
    differences = [
        text
        for section in sections
        for text in _list_differences(file_settings[section], sections[section].model_dump(mode="json"), section)
    ]
    resolved = config.model_copy(update=sections)
    if not differences:
        return resolved, ()
    listed = ", ".join(differences[:_MAX_LISTED]) + (", …" if len(differences) > _MAX_LISTED else "")
    return resolved, (_DIFFERENT.format(differences=listed),)


def _list_differences(file_settings: Mapping[str, Any], trained: Mapping[str, Any], path: str) -> Iterator[str]:
    """Yield the keys of a file that have another value in the release; a preset that was chosen by `auto` is none."""
    for key, value in file_settings.items():
        if (path == "training" and key in RUN_BOUND_KEYS) or (key == "preset" and value == AUTO_PRESET):
            continue
        other = trained.get(key)
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            yield from _list_differences(value, other, f"{path}.{key}")
        elif value != other:
            yield f"{path}.{key} {value!r} → {other!r}"
