"""vecall.toml: presets, validation, error texts and paths."""

import json
import tomllib
from datetime import date, datetime
from pathlib import Path

import pytest

from vecall.config import PRESETS, Config, check_config, load_config, parse_config
from vecall.errors import ConfigError

TOML = """
[data]
interactions = ["log.csv", "/abs/log.parquet"]
items = "tables/items.csv"
users = "users.csv"
[schema.interactions]
user = "u"
item = "i"
[schema.items]
id = "i"
id_type = "integer"
attributes = ["year"]
[schema.items.features]
genres = { kind = "tags", separator = "," }
photo = { kind = "vector", size = 8 }
[schema.users]
id = "u"
id_type = "string"
[schema.users.features]
age = { kind = "numeric" }
"""


def make_settings(**changes):
    """Return the settings of TOML with changed keys: `model__history__length=5` sets one."""
    settings = tomllib.loads(TOML)
    for path, value in changes.items():
        *parents, last = path.split("__")
        section = settings
        for key in parents:
            section = section.setdefault(key, {})
        section[last] = value
    return settings


def parse_invalid(**changes):
    """Return the error text of settings with invalid changes."""
    with pytest.raises(ConfigError) as caught:
        parse_config(make_settings(**changes), source="vecall.toml")
    return str(caught.value)


def test_dssm_preset():
    config = parse_config(make_settings(model__preset="dssm"))
    assert (config.model.hidden, config.model.norm, config.model.dropout, config.model.dim) == (
        (256, 128),
        "batch",
        0.3,
        128,
    )
    assert (config.model.item_id, config.model.history.encoder) == (False, "none")
    assert (config.training.loss, config.training.lr, config.training.weight_decay) == ("bce", 1e-3, 0.0)  # Adam


@pytest.mark.parametrize("encoder", ["causal", "set"])
def test_encoder_with_a_softmax_of_its_own_and_bce_raises(encoder):
    message = parse_invalid(model__history__encoder=encoder, training__loss="bce")
    assert f"model.history.encoder = '{encoder}' is trained with a softmax loss, got training.loss = 'bce'" in message


def test_set_preset():
    config = parse_config(make_settings(model__preset="set"))
    assert (config.model.dim, config.model.history.encoder, config.model.history.length) == (512, "set", 500)
    assert (config.model.item_init, config.training.hidden_share) == ("spectral", 0.5)


def test_set_encoder_with_item_dropout_or_context_raises():
    message = parse_invalid(model__preset="set", model__history__item_dropout=0.2)
    assert "item_dropout is not for history.encoder = 'set', got 0.2; set training.hidden_share instead" in message
    context = {"hour": {"kind": "category"}}
    message = parse_invalid(model__preset="set", schema__interactions__context=context)
    assert "model.history.encoder = 'set' predicts several items of a user at once" in message


def test_key_of_the_file_overrides_the_preset_and_no_other_key():
    config = parse_config(
        make_settings(
            model__preset="dssm",
            model__dim=16,
            model__history__length=7,
            training__lr=0.5,
            training__negatives__in_batch=3,
        )
    )
    dssm = parse_config(make_settings(model__preset="dssm"))
    assert (config.model.dim, config.training.lr) == (16, 0.5)
    assert (config.model.history.encoder, config.model.history.length) == ("none", 7)
    assert (config.training.negatives.uniform, config.training.negatives.in_batch) == (
        dssm.training.negatives.uniform,
        3,
    )
    assert config.model.hidden == (256, 128)
    assert config.index == dssm.index == Config.model_fields["index"].default


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_parsing_a_preset_changes_neither_presets_nor_settings(preset):
    presets_before = json.dumps(PRESETS, default=list)
    settings = make_settings(model__preset=preset, model__history__length=9)
    settings_before = json.dumps(settings)
    assert parse_config(settings).model.preset == preset
    assert (json.dumps(PRESETS, default=list), json.dumps(settings)) == (presets_before, settings_before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__dimm": 3}, "model.dimm: unknown key; did you mean 'dim'?"),
        ({"model__history__lenght": 3}, "model.history.lenght: unknown key; did you mean 'length'?"),
        ({"training__negatives__unifrom": 3}, "training.negatives.unifrom: unknown key; did you mean 'uniform'?"),
        ({"modle": {}}, "modle: unknown key; did you mean 'model'?"),
        ({"schema_": {}}, "schema_: unknown key; did you mean 'schema'?"),
        ({"schema__items__atributes": []}, "schema.items.atributes: unknown key; did you mean 'attributes'?"),
        (
            {"schema__items__features__genres__separtor": "|"},
            "schema.items.features.genres.separtor: unknown key; did you mean 'separator'?",
        ),
        ({"evaluation__xyz": 1}, "evaluation.xyz: unknown key; the keys here are ks, segments, baselines"),
    ],
)
def test_unknown_key_is_named_with_its_path_and_a_similar_key(changes, message):
    assert parse_invalid(**changes) == f"vecall.toml: {message}"


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"model__dim": 1}, ["model.dim: ", "expected at least 2", "got 1"]),
        ({"model__preset": "dsm"}, ["model.preset: ", "'dssm'", "got 'dsm'"]),
        ({"model__preset": ["dssm"]}, ["model.preset: ", "got ['dssm']"]),
        ({"model": 5}, ["model: ", "got 5"]),
        ({"training__temperature": "cold"}, ["training.temperature: ", "expected a number or 'learned'"]),
        ({"training__lr": float("nan")}, ["training.lr: ", "got nan"]),
        ({"index__milvus__uri": "milvus:19530"}, ["index.milvus.uri: ", "expected http://HOST:PORT"]),
        ({"index__ks": [5, 1]}, ["index.ks: ", "ascend"]),
        ({"evaluation__ks": [0]}, ["evaluation.ks: ", "at least 1"]),
        ({"data__interactions": []}, ["data.interactions: ", "expected 1 or more entries"]),
        ({"data__bad_rows": "skip"}, ["data.bad_rows: ", "'error' or 'drop'", "got 'skip'"]),
        ({"data__valid_from": "2018-01-01"}, ["data: ", "go with split = 'global_time'"]),
        ({"data__split": "global_time", "data__valid_from": 3}, ["data: ", "needs both valid_from and test_from"]),
        ({"data__split": "random", "data__test_from": 3}, ["data: ", "go with split = 'global_time'"]),
        ({"data__split": "given"}, ["data: ", "needs split_column"]),
        ({"data__split_column": "part"}, ["data: ", "split_column goes with split = 'given'"]),
        ({"data__split_seed": 1}, ["data: ", "split_seed goes with split = 'random'"]),
        ({"data__repeats": "newest"}, ["data.repeats: ", "'keep', 'first' or 'last'", "got 'newest'"]),
        ({"data__test_from": "June"}, ["data.test_from: ", "ISO 8601", "got 'June'"]),
        ({"data__test_from": True}, ["data.test_from: ", "ISO 8601", "got True"]),
        ({"schema__users": {"id": "u"}}, ["schema.users.id_type: is required"]),
        ({"schema__items__features__photo": {"kind": "vector"}}, ["schema.items.features.photo.size: is required"]),
        ({"schema__items__features__photo": {"kind": "image"}}, ["schema.items.features.photo: ", "'image'"]),
        ({"schema__items__title": "score"}, ["schema.items: ", "['score'] clash"]),
        ({"data__items": None}, ["schema.items.features names columns, but no data.items table is given; add it"]),
        (
            {"model__history__encoder": "none", "schema__users__features": {}},
            ["model.history.encoder = 'none' needs user features; without them all users"],
        ),
        (
            {"model__history__encoder": "set", "schema__interactions__context": {"hour": {"kind": "category"}}},
            [
                "model.history.encoder = 'set' predicts several items of a user at once",
                "leave schema.interactions.context",
            ],
        ),
        ({"model__item_id": False, "schema__items__features": {}}, ["model.item_id = false needs item features"]),
    ],
)
def test_invalid_value_is_named_with_its_path(changes, messages):
    message = parse_invalid(**changes)
    assert message.startswith("vecall.toml: ")
    assert [part for part in messages if part not in message] == []


def test_all_errors_are_reported_at_once():
    lines = parse_invalid(model__dimm=3, model__dropout=2, training__batch=0).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["model.dropout", "model.dimm", "training.batch"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model__preset": "dssm"},
        {"training__temperature": "learned", "index__M": 8, "evaluation__ks": [3]},
        {
            "data__split": "global_time",
            "data__valid_from": date(2018, 1, 1),
            "data__test_from": datetime(2018, 6, 1, 5),
        },
        {"data__split": "global_time", "data__valid_from": 3, "data__test_from": 4.5},
        {"data__split": "random", "data__split_seed": 1, "data__repeats": "first"},
        {"data__split": "given", "data__split_column": "part"},
        {"data__split": "global_time", "data__valid_from": "2018-01-01", "data__test_from": "2018-06-01T00:00:00Z"},
    ],
)
def test_settings_round_trip_through_json(changes):
    config = parse_config(make_settings(**changes))
    assert parse_config(json.loads(json.dumps(config.as_json()))) == config


def test_auto_is_the_default_and_keeps_only_the_keys_of_the_file():
    assert parse_config(make_settings()).model.preset == "auto"
    config = parse_config(make_settings(model__history__length=9, training__lr=0.5, training__epochs=4))
    stored = config.as_json()
    assert (stored["model"], stored["training"]) == ({"history": {"length": 9}}, {"lr": 0.5, "epochs": 4})
    assert parse_config(json.loads(json.dumps(stored))) == config
    assert parse_config(stored).as_json() == stored
    assert parse_config(make_settings()).as_json()["training"] == {}


@pytest.mark.parametrize("preset", sorted(set(PRESETS) - {"dssm"}))
def test_preset_in_place_of_auto_takes_the_keys_of_the_file(preset):
    """Also where their value is the default, which a preset would replace otherwise."""
    keys = {"model__history__length": 9, "model__dim": 128, "training__temperature": 0.05, "training__epochs": 4}
    auto = parse_config(parse_config(make_settings(**keys)).as_json())
    assert auto.with_preset(preset) == parse_config(make_settings(model__preset=preset, **keys))
    defaults = {"model": {"dim": 8, "norm": "none", "history": {"length": 3}}}
    config = auto.with_preset(preset, defaults)
    assert (config.model.dim, config.model.norm, config.model.history.length) == (128, "none", 9)
    assert config.model.history.encoder == parse_config(make_settings(model__preset=preset)).model.history.encoder


def test_preset_that_cannot_take_the_keys_of_the_file_raises_with_its_name():
    with pytest.raises(ConfigError, match=r"model\.preset = 'set': .*training\.loss = 'bce'"):
        parse_config(make_settings(training__loss="bce")).with_preset("set")


def test_paths_are_resolved_against_the_directory_of_the_file(tmp_path, monkeypatch):
    directory = tmp_path / "project"
    directory.mkdir()
    (directory / "vecall.toml").write_text(TOML, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for path in (directory / "vecall.toml", "project/vecall.toml"):
        config = load_config(path)
        assert config.data.interactions == (directory / "log.csv", Path("/abs/log.parquet"))
        assert (config.data.items, config.data.users) == (directory / "tables" / "items.csv", directory / "users.csv")
    assert parse_config(config.as_json()) == config


def test_single_interactions_file_needs_no_list(tmp_path):
    (tmp_path / "vecall.toml").write_text(
        TOML.replace('["log.csv", "/abs/log.parquet"]', '"log.csv"'), encoding="utf-8"
    )
    assert load_config(tmp_path / "vecall.toml").data.interactions == (tmp_path / "log.csv",)


@pytest.mark.parametrize(
    ("content", "error"),
    [(None, "cannot be read"), (b"[data", "is not TOML"), (b"\xff", "is not TOML"), (b"", "data: is required")],
)
def test_unreadable_file_or_invalid_toml_raises_with_the_path(tmp_path, content, error):
    path = tmp_path / "vecall.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=error) as caught:
        load_config(path)
    assert str(path) in str(caught.value)


def test_config_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        parse_config(make_settings()).model.dim = 3


def test_settings_changed_in_python_are_validated_and_their_paths_resolved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = parse_config(make_settings())
    checked = check_config(config)
    assert checked.data.interactions == (tmp_path / "log.csv", Path("/abs/log.parquet"))
    assert check_config(checked) == checked
    assert checked.as_json() == parse_config(checked.as_json()).as_json()


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("training", {"epoch": 5}, "training.epoch: unknown key; did you mean 'epochs'?"),
        ("training", {"lr": "0.01"}, "training.lr: expected a number, got '0.01'"),
        ("model", {"dim": -3}, "model.dim: expected at least 2, got -3"),
        ("evaluation", {"ks": (10, 5)}, "evaluation.ks: expected ascending numbers"),
        ("model", {"norm": "batch", "hidden": (8,)}, "training.batch = 1"),
    ],
)
def test_settings_that_were_changed_to_invalid_ones_are_refused(section, changes, message):
    config = parse_config(make_settings())
    part = getattr(config, section).model_copy(update=changes)
    if "training.batch" in message:
        config = config.model_copy(update={"training": config.training.model_copy(update={"batch": 1})})
    with pytest.raises(ConfigError) as caught:
        check_config(config.model_copy(update={section: part}))
    assert message in str(caught.value)


def test_a_path_is_no_config():
    with pytest.raises(ConfigError, match=r"expected a vecall.Config, got str; load_config\(path\) reads one"):
        check_config("vecall.toml")
