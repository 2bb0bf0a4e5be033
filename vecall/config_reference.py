"""Reference of every key of vecall.toml, generated from the settings models: type, default, range, meaning, presets."""

import json
import math
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from vecall.config import PRESETS, Config
from vecall.settings_base import to_toml

REQUIRED = object()  # default of a key that must be given

_TYPE_NAMES: dict[object, str] = {str: "string", int: "integer", float: "number", bool: "boolean", Path: "path"}
_BOUNDS = (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))


@dataclass(frozen=True)
class ConfigKey:
    """A key of a settings file.

    Attributes:
        section: path of its table, such as `model.history`; empty at the top.
        name: of the key.
        type: in words, such as `integer` or `"softmax" | "bce"`.
        default: `REQUIRED`, None where the key may be left out, or a value.
        bounds: range of a number, such as `> 0, ≤ 1`; empty where there is none.
        description: what it means.
        preset_overrides: preset name -> its value, only for presets whose value is not the default.
    """

    section: str
    name: str
    type: str
    default: object
    bounds: str
    description: str
    preset_overrides: Mapping[str, object] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """The key with its section, such as `model.history.length`."""
        return f"{self.section}.{self.name}" if self.section else self.name


def list_config_keys() -> list[ConfigKey]:
    """Every key of vecall.toml, in the order of its sections."""
    return [_with_presets(key) for key in list_model_keys(Config)]


def list_model_keys(model: type[BaseModel], section: str = "") -> list[ConfigKey]:
    """Every key of a settings model, sub-tables after the keys of their table.

    A table whose entries are tables that the user names, such as the features of items, is listed once for each kind of
    entry, in a section such as `schema.items.features.NAME (category)`.
    """
    keys, tables = [], []
    for field_name, info in model.model_fields.items():
        name = info.alias or field_name
        path = f"{section}.{name}" if section else name
        if submodel := _as_model_class(info.annotation):
            tables += list_model_keys(submodel, path)
        elif kinds := _get_entry_models(info.annotation):
            for kind in kinds:
                tables += list_model_keys(kind, f"{path}.NAME ({kind.model_fields['kind'].default})")
        else:
            keys.append(_describe_key(section, name, info))
    return [*keys, *tables]


def render_toml(preset: str | None = None) -> str:
    """Render a vecall.toml with every key, its default and its meaning.

    Keys without a default are commented out. So are those that presets set, unless a preset is named: with
    `preset = "auto"`, a key in the file holds for every preset.

    Args:
        preset: Name in `PRESETS` whose values replace the defaults; None for the defaults.
    """
    lines = ["# vecall.toml: every key with its default. Keys without a default are commented out."]
    if preset is None:
        lines.append("# So are keys that the chosen preset sets: what stands here holds for every preset.")
    section = None
    for key in list_config_keys():
        if key.section != section:
            section = key.section
            lines += ["", _render_toml_header(section)]
        lines.append(_render_toml_line(key, preset))
    return "\n".join(lines) + "\n"


def build_json_schema(preset: str | None = None) -> dict[str, Any]:
    """Build the JSON schema of vecall.toml.

    Args:
        preset: Name in `PRESETS` whose values replace the defaults; None for the defaults.
    """
    schema = Config.model_json_schema(by_alias=True)
    if preset is not None:
        values = {**PRESETS[preset], "model": {**PRESETS[preset].get("model", {}), "preset": preset}}
        _set_schema_defaults(schema, schema, json.loads(json.dumps(values)))
    return schema


def _set_schema_defaults(schema: dict[str, Any], node: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Replace the defaults of the keys of a node of the schema, and of the tables below it."""
    for name, value in values.items():
        property_schema = node["properties"][name]
        if isinstance(value, Mapping):
            _set_schema_defaults(schema, schema["$defs"][property_schema["$ref"].rpartition("/")[2]], value)
            property_schema["default"] = _merge(property_schema.get("default", {}), value)
        else:
            property_schema["default"] = value


def _merge(defaults: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    return {**defaults} | {
        name: _merge(defaults.get(name, {}), value) if isinstance(value, Mapping) else value
        for name, value in values.items()
    }


def render_markdown(keys: Sequence[ConfigKey]) -> str:
    """Tables of keys, one for each section."""
    lines: list[str] = []
    section = None
    for key in keys:
        if key.section != section:
            section = key.section
            title = [f"## `[{section}]`", ""] if section else []
            lines += ["", *title, "| key | type | default | range | meaning |", "| --- | --- | --- | --- | --- |"]
        cells = (
            f"`{key.name}`",
            key.type,
            _render_default(key.default),
            key.bounds,
            key.description + _render_presets(key.preset_overrides),
        )
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines).strip() + "\n"


def _with_presets(key: ConfigKey) -> ConfigKey:
    presets = {
        name: value
        for name, sections in PRESETS.items()
        if (value := _get_or_none(sections, key.path)) is not None and value != key.default
    }
    return ConfigKey(key.section, key.name, key.type, key.default, key.bounds, key.description, presets)


def _get_or_none(sections: Mapping[str, Any], path: str) -> object:
    """Return the value at a dotted path; None if it is missing."""
    value: Any = sections
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _describe_key(section: str, name: str, info: FieldInfo) -> ConfigKey:
    default = REQUIRED if info.is_required() else info.get_default(call_default_factory=True)
    if isinstance(default, BaseModel):
        default = default.model_dump(exclude_none=True)
    description = (info.description or "") + _describe_optional_table(info.annotation)
    return ConfigKey(
        section, name, _describe_type(info.annotation), default, _describe_bounds(info.metadata), description
    )


def _describe_optional_table(annotation: Any) -> str:  # noqa: ANN401 - a type
    """Describe the keys of a field that is a table or a value, such as false; empty for other fields."""
    tables = [model for model in get_args(annotation) if _as_model_class(model)]
    keys = [key for table in tables for key in list_model_keys(table)]
    parts = [
        f"`{key.name}` ({key.type}{'' if key.default is None else f', {to_toml(key.default)}'}): {key.description}"
        for key in keys
    ]
    return f"; keys: {'; '.join(parts)}" if parts else ""


def _describe_bounds(metadata: Sequence[object]) -> str:
    parts = [
        f"{sign} {_format_number(value)}"
        for attribute, sign in _BOUNDS
        for constraint in metadata
        if (value := getattr(constraint, attribute, None)) is not None
    ]
    return ", ".join(parts)


def _format_number(value: float) -> str:
    if isinstance(value, int) and value >= 2**20 and (power := math.log2(value)).is_integer():
        return f"2^{power:.0f}"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _describe_type(annotation: Any) -> str:  # noqa: ANN401 - a type
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _describe_type(arguments[0])
    if origin is Literal:
        return " | ".join(json.dumps(value) for value in arguments)
    if origin in (Union, types.UnionType):
        return " | ".join(_describe_type(part) for part in arguments if part is not type(None))
    if origin is tuple:
        return f"list of {_describe_type(arguments[0])}"
    if origin is dict:
        return f"table of {_describe_type(arguments[1])} by name"
    if _as_model_class(annotation):
        return "table"
    return _TYPE_NAMES.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _as_model_class(annotation: Any) -> type[BaseModel] | None:  # noqa: ANN401 - a type
    """Return the annotation if it is a model class itself; None for others, `Model | None` included."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _get_entry_models(annotation: Any) -> list[type[BaseModel]]:  # noqa: ANN401 - a type
    """Return the models that the entries of a dict field may be; empty for other fields."""
    if get_origin(annotation) is not dict:
        return []
    return [model for model in _iterate_leaf_types(get_args(annotation)[1]) if _as_model_class(model)]


def _iterate_leaf_types(annotation: Any) -> Iterator[Any]:  # noqa: ANN401 - a type
    arguments = get_args(annotation)
    if get_origin(annotation) is Annotated:
        yield from _iterate_leaf_types(arguments[0])
    elif arguments:
        for part in arguments:
            yield from _iterate_leaf_types(part)
    else:
        yield annotation


def _render_toml_header(section: str) -> str:
    """Render the header of a table; that of an entry by name is commented out, with the entry's kind."""
    name, _, kind = section.partition(" ")
    return f"# [{name}]  # {kind.strip('()')}" if kind else f"[{name}]"


def _render_toml_line(key: ConfigKey, preset: str | None) -> str:
    value = key.preset_overrides.get(preset, key.default) if preset else key.default
    if preset and key.path == "model.preset":
        value = preset
    comment = "; ".join(part for part in (key.type, key.bounds, key.description) if part)
    if value is REQUIRED or value is None or "NAME" in key.section:
        example = "" if value is REQUIRED or value is None else f" {to_toml(value)}"
        marker = "required; " if value is REQUIRED else ""
        return f"# {key.name} ={example}  # {marker}{comment}"
    if preset is None and key.preset_overrides:
        return f"# {key.name} = {to_toml(value)}  # {comment}"
    return f"{key.name} = {to_toml(value)}  # {comment}"


def _render_default(default: object) -> str:
    return "required" if default is REQUIRED else "" if default is None else f"`{to_toml(default)}`"


def _render_presets(presets: Mapping[str, object]) -> str:
    if not presets:
        return ""
    values = ", ".join(f"`{name}` {to_toml(value)}" for name, value in presets.items())
    return f" (presets: {values})"
