"""What all settings share: their base class, reading them from TOML, and sentences about what is wrong with them."""

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, NamedTuple, TypeGuard, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, ErrorDetails

from vecall.errors import ConfigError

# Errors of pydantic about a value that should be a mapping.
_TABLE_EXPECTED = frozenset({"dict_type", "mapping_type", "model_type", "model_attributes_type"})
# What is expected, by the type of pydantic's error, from its context. Other types have pydantic's own words.
_EXPECTED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "frozen_set_type": "a list",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "int_from_float": "an integer",
    "int_parsing": "an integer",
    "int_type": "an integer",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "list_type": "a list",
    "literal_error": "{expected}",
    "set_type": "a list",
    "string_pattern_mismatch": "text that matches {pattern}",
    "string_too_long": "at most {max_length} characters",
    "string_too_short": "{min_length} or more characters",
    "string_type": "text",
    "too_long": "at most {max_length} entries",
    "too_short": "{min_length} or more entries",
    "tuple_type": "a list",
    "union_tag_invalid": "{discriminator} to be one of {expected_tags}, got {tag!r}",
    "union_tag_not_found": "a key {discriminator}",
}


def _make_scalars_strict(schema: object) -> None:
    """Set `strict` for each number and boolean in a schema of pydantic's core, which is changed."""
    if isinstance(schema, dict):
        if schema.get("type") in ("bool", "float", "int"):
            schema["strict"] = True
        schema = list(schema.values())
    if isinstance(schema, list | tuple):
        for part in schema:
            _make_scalars_strict(part)


class SettingsModel(BaseModel):
    """Base of every settings section: frozen; unknown keys, NaN, infinity and numbers in quotes are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:  # noqa: ANN401
        """Refuse what pydantic would convert to numbers and booleans: text, booleans, and for integers 1.0."""
        schema = handler(source)
        _make_scalars_strict(schema)
        return schema


def to_nested(settings: BaseModel) -> dict[str, Any]:
    """Return the values of settings by key, of sections nested, as they would be validated.

    Those of unknown keys are among them: `model_copy` neither validates values nor refuses keys.
    """
    fields = type(settings).model_fields
    return {
        (fields[name].alias or name) if name in fields else name: (
            to_nested(value) if isinstance(value, SettingsModel) else value
        )
        for name, value in vars(settings).items()
    }


def read_toml(path: Path, *, is_secret: bool = False) -> dict[str, Any]:
    """Read a TOML file.

    Args:
        path: The file.
        is_secret: Whether the file holds secrets, so that no error text may quote it.

    Raises:
        ConfigError: The file cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # editors of Windows begin with a BOM
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: is not TOML" + ("" if is_secret else f": {error}")) from (
            None if is_secret else error
        )


def to_toml(value: object) -> str:
    """Render a value as TOML, tables inline."""
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(to_toml, value))}]"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{name} = {to_toml(entry)}" for name, entry in value.items()) + " }" if value else "{}"
    return json.dumps(value)


class FieldError(NamedTuple):
    """What is wrong with one field.

    Attributes:
        path: The field as a caller writes it, such as `where[0].op`; empty for the whole input.
        message: What was expected and what came.
    """

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


def describe_validation_error(error: ValidationError, model: type[BaseModel], data: object) -> list[FieldError]:
    """Describe the errors of a validation, one per field, in the order in which pydantic found them.

    Messages about the same field are joined with "or": pydantic reports every alternative of a union separately.

    Args:
        error: What `model.model_validate(data)` raised.
        model: The model, whose keys are suggested in place of an unknown one.
        data: The mappings, lists and scalars that were validated.
    """
    messages: dict[str, list[str]] = {}
    received: dict[str, str] = {}
    for details in error.errors(include_url=False):
        path = _format_path(details, data)
        messages.setdefault(path, []).append(_format_message(details, model))
        if details["type"] not in ("missing", "extra_forbidden") and not isinstance(details["input"], Mapping):
            received[path] = f", got {details['input']!r:.80}"
    return [
        FieldError(path, _join_alternatives(alternatives) + received.get(path, ""))
        for path, alternatives in messages.items()
    ]


def _join_alternatives(messages: Sequence[str]) -> str:
    """Join messages about one field: "expected a number or 'learned'"."""
    first, *others = dict.fromkeys(messages)
    common = "expected " if first.startswith("expected ") else ""
    return " or ".join([first, *(message.removeprefix(common) for message in others)])


def _format_path(details: ErrorDetails, data: object) -> str:
    """Format the location of an error without the names of union alternatives, which pydantic inserts into it."""
    location = details["loc"]
    path = ""
    value = data
    for depth, part in enumerate(location, start=1):
        is_missing_key = details["type"] == "missing" and depth == len(location)
        if isinstance(value, Mapping) and (part in value or is_missing_key):
            value = value.get(part)
            path += f".{part}" if path else str(part)
        elif isinstance(value, (list, tuple)) and isinstance(part, int) and part < len(value):
            value = value[part]
            path += f"[{part}]"
    return path


def _format_message(details: ErrorDetails, model: type[BaseModel]) -> str:
    if details["type"] == "missing":
        return "is required"
    if details["type"] == "extra_forbidden":
        *section, key = details["loc"]
        known = _list_keys(model, section)
        if near := difflib.get_close_matches(str(key), known, n=1):
            return f"unknown key; did you mean {near[0]!r}?"
        return f"unknown key; the keys here are {', '.join(known)}" if known else "unknown key"
    if details["type"] in _TABLE_EXPECTED:
        return "expected a table of keys and values"
    if (expected := _EXPECTED.get(details["type"])) is not None:
        return "expected " + expected.format_map(details.get("ctx", {}))
    return details["msg"].removeprefix("Value error, ")


def _list_keys(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """List the keys of the model at a location within a model, as pydantic reports locations."""
    annotation: Any = model
    for part in location:
        annotation = _descend(annotation, part)
    if not _is_model(annotation):
        return []
    return [field.alias or name for name, field in annotation.model_fields.items()]


def _descend(annotation: Any, part: str | int) -> Any:  # noqa: ANN401 - annotations have no common type
    """Return the annotation of a part of annotated data: of a field, an element or an alternative of a union."""
    if _is_model(annotation):
        fields = {field.alias or name: field.annotation for name, field in annotation.model_fields.items()}
        return _strip(fields.get(str(part)))
    arguments = get_args(annotation)
    if get_origin(annotation) in (Union, UnionType):
        models = [alternative for alternative in map(_strip, arguments) if _is_model(alternative)]
        return next((alternative for alternative in models if part in _list_tags(alternative)), None)
    return _strip(arguments[-1] if get_origin(annotation) is dict else arguments[0]) if arguments else None


def _strip(annotation: Any) -> Any:  # noqa: ANN401 - annotations have no common type
    """Return the annotation without metadata and without the alternative None: neither is part of a location."""
    if get_origin(annotation) is Annotated:
        return _strip(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        alternatives = [argument for argument in get_args(annotation) if argument is not NoneType]
        if len(alternatives) == 1:
            return _strip(alternatives[0])
    return annotation


def _list_tags(model: type[BaseModel]) -> list[object]:
    """List what pydantic may call a model in the location of a union: its name, or the value of its discriminator."""
    return [model.__name__, *(field.default for field in model.model_fields.values())]


def _is_model(annotation: object) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
