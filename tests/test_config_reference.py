"""Reference of vecall.toml: complete, valid, and equal to what the settings models say."""

import json
import tomllib
from typing import Any

import pytest
from support.cli import invoke

from vecall.config import PRESETS, parse_config
from vecall.config_reference import (
    REQUIRED,
    ConfigKey,
    build_json_schema,
    list_config_keys,
    list_model_keys,
    render_markdown,
    render_toml,
)
from vecall.service.settings import ServeSettings

KEYS = list_config_keys()
REQUIRED_SECTIONS: dict[str, Any] = {
    "data": {"interactions": "log.csv", "items": "items.csv", "users": "users.csv"},
    "schema": {
        "interactions": {"user": "user", "item": "item"},
        "items": {"id": "item", "id_type": "string", "features": {"year": {"kind": "numeric"}}},
        "users": {"id": "user", "id_type": "string", "features": {"age": {"kind": "numeric"}}},
    },
}
PRESET_NAMES = [None, *PRESETS]


def look_up(sections: Any, path: str) -> Any:
    for part in path.split("."):
        sections = sections[part]
    return sections


def merge(defaults: Any, overrides: Any) -> Any:
    if not (isinstance(defaults, dict) and isinstance(overrides, dict)):
        return overrides
    return {**defaults, **{key: merge(defaults.get(key), value) for key, value in overrides.items()}}


@pytest.mark.parametrize("key", [*KEYS, *list_model_keys(ServeSettings)], ids=lambda key: key.path)
def test_key_has_type_and_description(key: ConfigKey) -> None:
    assert key.type
    assert key.description
    assert not key.description.endswith(".")


@pytest.mark.parametrize("preset", PRESET_NAMES)
def test_toml_with_the_required_keys_is_the_config_of_the_preset(preset: str | None) -> None:
    parsed = tomllib.loads(render_toml(preset))
    model = {} if preset is None else {"model": {"preset": preset}}
    expected = parse_config(REQUIRED_SECTIONS | model)
    assert parse_config(merge(parsed, REQUIRED_SECTIONS)) == expected


def drop_nulls(value: object) -> object:
    return {name: entry for name, entry in value.items() if entry is not None} if isinstance(value, dict) else value


def test_every_default_of_the_toml_is_that_of_the_model() -> None:
    parsed = tomllib.loads(render_toml("pooled"))  # whose values are the defaults of the models
    default_config = parse_config(REQUIRED_SECTIONS | {"model": {"preset": "pooled"}}).as_json()
    checked = 0
    for key in KEYS:
        if key.default is REQUIRED or key.default is None or "NAME" in key.section:
            continue
        value = "pooled" if key.path == "model.preset" else json.loads(json.dumps(key.default))
        assert look_up(parsed, key.path) == value == drop_nulls(look_up(default_config, key.path)), key.path
        checked += 1
    assert checked > 40


def test_toml_without_a_preset_leaves_out_what_presets_set() -> None:
    """With "auto", keys of the file hold for every preset, and would leave all but one out."""
    config = parse_config(merge(tomllib.loads(render_toml()), REQUIRED_SECTIONS))
    assert config.model.preset == "auto"
    for preset in PRESETS:
        assert config.with_preset(preset) == parse_config(REQUIRED_SECTIONS | {"model": {"preset": preset}})


def test_every_key_is_in_the_toml_and_in_the_markdown() -> None:
    toml, markdown = render_toml(), render_markdown(KEYS)
    for key in KEYS:
        assert f"{key.name} =" in toml
        assert f"| `{key.name}` |" in markdown
    assert toml.count("# required; ") == sum(key.default is REQUIRED for key in KEYS)


def test_uncommented_feature_is_valid_toml() -> None:
    lines = render_toml().splitlines()
    start = lines.index("# [schema.items.features.NAME]  # tags")
    block = [line.removeprefix("# ") for line in lines[start : start + 4]]
    feature = tomllib.loads("\n".join(block))["schema"]["items"]["features"]["NAME"]
    assert feature == {"kind": "tags", "separator": "|", "max_tags": 64}


def test_presets_are_shown_with_their_values() -> None:
    by_path = {key.path: key for key in KEYS}
    assert by_path["model.dim"].preset_overrides == {"set": 512, "sequence": 256}  # that of dssm is the default
    assert by_path["model.history.encoder"].preset_overrides == {"dssm": "none", "set": "set", "sequence": "causal"}
    assert "(presets: `set` 512, `sequence` 256)" in render_markdown(KEYS)
    parsed = tomllib.loads(render_toml("dssm"))
    assert (parsed["model"]["preset"], parsed["model"]["hidden"]) == ("dssm", [256, 128])
    assert parsed["training"]["negatives"]["uniform"] == 4


@pytest.mark.parametrize("preset", PRESET_NAMES)
def test_defaults_of_the_json_schema_are_those_of_the_toml(preset: str | None) -> None:
    schema, parsed = build_json_schema(preset), tomllib.loads(render_toml(preset or "pooled"))
    if preset is None:  # whose TOML has no values of presets; those of "pooled" are the defaults of the models
        parsed["model"]["preset"] = "auto"
    sections = {"data", "schema", "model", "training", "index", "channels", "ranking", "evaluation"}
    assert set(schema["properties"]) == sections
    for section in ("model", "training"):
        default = schema["properties"][section]["default"]
        assert default == parsed[section]
        fields = schema["$defs"][f"{section.title()}Settings"]["properties"]
        assert {name: field["default"] for name, field in fields.items()} == default
    assert schema["$defs"]["TrainingSettings"]["properties"]["lr"]["exclusiveMinimum"] == 0


def test_command_prints_toml_or_the_json_schema() -> None:
    assert invoke("config").stdout == render_toml()
    assert invoke("config", "--preset", "sequence").stdout == render_toml("sequence")
    assert json.loads(invoke("config", "--json").stdout) == build_json_schema()
    assert json.loads(invoke("config", "--preset", "dssm", "--json").stdout) == build_json_schema("dssm")


def test_unknown_preset_is_wrong_usage() -> None:
    result = invoke("config", "--preset", "deep")
    assert result.exit_code == 2
    assert "no preset 'deep'; expected one of auto, dssm, set, pooled, sequence" in " ".join(
        result.output.replace("│", "").split()
    )
