"""Sentences about validation errors name each field as a caller writes it."""

import math
from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError, field_validator

from vecall.errors import ConfigError
from vecall.settings_base import SettingsModel, describe_validation_error, read_toml


class Circle(SettingsModel):
    kind: Literal["circle"] = "circle"
    radius: float = Field(gt=0)


class Square(SettingsModel):
    kind: Literal["square"] = "square"
    side: float = Field(gt=0)


Shape = Annotated[Circle | Square, Field(discriminator="kind")]


class Canvas(SettingsModel):
    width: int = Field(3, ge=1)
    speed: float | Literal["learned"] = 1.0
    ids: tuple[int | str, ...] = ()
    sizes: tuple[int, ...] = ()
    prices: dict[str, Annotated[float, Field(gt=0)]] | None = None
    is_open: bool = True
    names: dict[str, None] = Field({})
    frame: Circle | None = None
    shapes: dict[str, Shape] = Field({})
    stack: list[Shape] = Field([])
    schema_: str = Field("", alias="schema")

    @field_validator("names", mode="before")
    @classmethod
    def _use_list_as_keys(cls, names: object) -> object:
        return dict.fromkeys(names) if isinstance(names, list) else names

    @field_validator("width")
    @classmethod
    def _require_odd(cls, width: int) -> int:
        if width % 2 == 0:
            raise ValueError("expected an odd width")
        return width


def describe(data, model=Canvas):
    with pytest.raises(ValidationError) as caught:
        model.model_validate(data)
    return list(map(str, describe_validation_error(caught.value, model, data)))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"width": 0}, "width: expected at least 1, got 0"),
        ({"width": "3"}, "width: expected an integer, got '3'"),
        ({"width": True}, "width: expected an integer, got True"),
        ({"speed": "2"}, "speed: expected a number or 'learned', got '2'"),
        ({"speed": False}, "speed: expected a number or 'learned', got False"),
        ({"frame": {"radius": "1"}}, "frame.radius: expected a number, got '1'"),
        ({"sizes": [1, True]}, "sizes[1]: expected an integer, got True"),
        ({"prices": {"a": "1"}}, "prices.a: expected a number, got '1'"),
        ({"is_open": "yes"}, "is_open: expected true or false, got 'yes'"),
        ({"width": 2}, "width: expected an odd width, got 2"),
        ({"frame": {"radius": -1}}, "frame.radius: expected more than 0.0, got -1"),
        ({"frame": 5}, "frame: expected a table of keys and values, got 5"),
        ({"frame": {}}, "frame.radius: is required"),
        ({"ids": [1, None]}, "ids[1]: expected an integer or text, got None"),
        ({"names": [5]}, "names: expected text, got 5"),
        ({"shapes": {"a": {"kind": "circle"}}}, "shapes.a.radius: is required"),
        ({"stack": [{"kind": "circle", "radius": 0}]}, "stack[0].radius: expected more than 0.0, got 0"),
        ({"stack": [{"kind": "oval"}]}, "stack[0]: expected 'kind' to be one of 'circle', 'square', got 'oval'"),
        ({"stack": [{"radius": 1}]}, "stack[0]: expected a key 'kind'"),
        ({"stack": "circle"}, "stack: expected a list, got 'circle'"),
        ({"width": "x" * 100}, "width: expected an integer, got 'xxx"),
        ([1], "expected a table of keys and values, got [1]"),
    ],
)
def test_sentence_names_path_expectation_and_value(data, expected):
    (sentence,) = describe(data)
    assert sentence[: len(expected)] == expected
    assert len(sentence) < 200


def test_alternatives_of_a_union_are_one_sentence_without_their_names():
    assert describe({"speed": "fast"}) == ["speed: expected a number or 'learned', got 'fast'"]
    (sentence,) = describe({"speed": {"a": 1}})
    assert sentence == "speed: expected a number or 'learned'"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"widht": 3}, "widht: unknown key; did you mean 'width'?"),
        ({"schema_": "x"}, "schema_: unknown key; did you mean 'schema'?"),
        ({"frame": {"radius": 1, "radios": 2}}, "frame.radios: unknown key; did you mean 'radius'?"),
        ({"frame": {"radius": 1, "xyz": 2}}, "frame.xyz: unknown key; the keys here are kind, radius"),
        (
            {"shapes": {"circle": {"kind": "square", "side": 1, "sied": 2}}},
            "shapes.circle.sied: unknown key; did you mean 'side'?",
        ),
        (
            {"stack": [{"kind": "square", "side": 1, "xyz": 2}]},
            "stack[0].xyz: unknown key; the keys here are kind, side",
        ),
    ],
)
def test_unknown_key_comes_with_a_near_key_or_all_keys_of_its_section(data, expected):
    assert describe(data) == [expected]


def test_unknown_key_of_an_unidentified_union_alternative_has_no_suggestion():
    class Model(SettingsModel):
        inner: Circle | list[Circle]

    assert "inner.x: unknown key; the keys here are kind, radius" in describe({"inner": {"radius": 1, "x": 1}}, Model)
    assert "inner[0].x: unknown key" in describe({"inner": [{"radius": 1, "x": 1}]}, Model)


def test_every_wrong_field_is_described():
    assert [sentence.split(":")[0] for sentence in describe({"width": 0, "frame": {}, "xyz": 1})] == [
        "width",
        "frame.radius",
        "xyz",
    ]


def test_settings_reject_numbers_that_are_not_finite():
    for value in (math.nan, math.inf):
        assert describe({"speed": value})[0].startswith("speed: expected a finite number")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read: No such file"), (b"[data", "is not TOML: "), (b"\xff", "is not TOML")],
)
def test_unreadable_toml_is_an_error_with_the_path(tmp_path, content, message):
    path = tmp_path / "settings.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_toml(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_toml_of_an_editor_that_begins_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "a.toml").write_bytes(b'\xef\xbb\xbfread = "key"\n')
    assert read_toml(tmp_path / "a.toml", is_secret=True) == {"read": "key"}


def test_error_of_a_secret_toml_file_quotes_nothing(tmp_path):
    path = tmp_path / "keys.toml"
    path.write_text("hunter2 is no TOML")
    with pytest.raises(ConfigError) as caught:
        read_toml(path, is_secret=True)
    assert str(caught.value) == f"{path}: is not TOML"
    assert caught.value.__cause__ is None
