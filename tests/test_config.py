import json
import tomllib
from datetime import date, datetime
from pathlib import Path

import pytest

from vecall.config import PRESETS, Config, load_config, parse_config
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


def sections(**changes):
    """TOML's sections; `model__history__length=5` sets one key."""
    made = tomllib.loads(TOML)
    for path, value in changes.items():
        *parents, last = path.split("__")
        section = made
        for key in parents:
            section = section.setdefault(key, {})
        section[last] = value
    return made


def refused(**changes):
    with pytest.raises(ConfigError) as caught:
        parse_config(sections(**changes), source="vecall.toml")
    return str(caught.value)


def test_the_founding_preset_is_the_founding_model():
    config = parse_config(sections(model__preset="founding"))
    assert (config.model.hidden, config.model.norm, config.model.dropout, config.model.dim) == (
        (256, 128),
        "batch",
        0.3,
        128,
    )
    assert (config.model.item_id, config.model.history.encoder) == (False, "none")
    assert (config.training.loss, config.training.lr, config.training.weight_decay) == ("bce", 1e-3, 0.0)  # Adam


def test_a_causal_history_is_not_learned_by_bce():
    said = refused(model__history__encoder="causal", training__loss="bce")
    assert "model.history.encoder = 'causal' learns by a softmax" in said


def test_a_key_of_the_file_overrides_its_preset_and_no_other_key():
    config = parse_config(
        sections(
            model__preset="founding",
            model__dim=16,
            model__history__length=7,
            training__lr=0.5,
            training__negatives__in_batch=3,
        )
    )
    founding = parse_config(sections(model__preset="founding"))
    assert (config.model.dim, config.training.lr) == (16, 0.5)
    assert (config.model.history.encoder, config.model.history.length) == ("none", 7)
    assert (config.training.negatives.uniform, config.training.negatives.in_batch) == (
        founding.training.negatives.uniform,
        3,
    )
    assert config.model.hidden == (256, 128)
    assert config.index == founding.index == Config.model_fields["index"].default


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_are_valid_and_stay_as_they_are(preset):
    before = json.dumps(PRESETS, default=list)
    given = sections(model__preset=preset, model__history__length=9)
    asked = json.dumps(given)
    assert parse_config(given).model.preset == preset
    assert (json.dumps(PRESETS, default=list), json.dumps(given)) == (before, asked)


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
        ({"evaluation__xyz": 1}, "evaluation.xyz: unknown key; the keys here are ks"),
    ],
)
def test_an_unknown_key_is_told_with_its_path_and_a_near_one(changes, message):
    assert refused(**changes) == f"vecall.toml: {message}"


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"model__dim": 1}, ["model.dim: ", "greater than or equal to 2", "got 1"]),
        ({"model__preset": "fonding"}, ["model.preset: ", "'founding'", "got 'fonding'"]),
        ({"model__preset": ["founding"]}, ["model.preset: ", "got ['founding']"]),
        ({"model": 5}, ["model: ", "got 5"]),
        ({"training__temperature": "cold"}, ["training.temperature: ", "valid number", "'learned'"]),
        ({"training__lr": float("nan")}, ["training.lr: ", "got nan"]),
        ({"index__engine": "milvus"}, ["index.engine: ", "not built yet"]),
        ({"index__ks": [5, 1]}, ["index.ks: ", "ascend"]),
        ({"evaluation__ks": [0]}, ["evaluation.ks: ", "at least 1"]),
        ({"data__interactions": []}, ["data.interactions: ", "at least 1 item"]),
        ({"data__bad_rows": "skip"}, ["data.bad_rows: ", "'error' or 'drop'", "got 'skip'"]),
        ({"data__valid_from": "2018-01-01"}, ["data: ", "go with split = 'global_time'"]),
        ({"data__split": "global_time", "data__valid_from": 3}, ["data: ", "needs both valid_from and test_from"]),
        ({"data__test_from": "June"}, ["data.test_from: ", "ISO 8601", "got 'June'"]),
        ({"data__test_from": True}, ["data.test_from: ", "ISO 8601", "got True"]),
        ({"schema__users": {"id": "u"}}, ["schema.users.id_type: is required"]),
        ({"schema__items__features__photo": {"kind": "vector"}}, ["schema.items.features.photo.size: is required"]),
        ({"schema__items__features__photo": {"kind": "image"}}, ["schema.items.features.photo: ", "'image'"]),
        ({"schema__items__title": "score"}, ["schema.items: ", "['score'] clash"]),
        ({"data__items": None}, ["schema.items.features names columns, but there is no data.items table"]),
        (
            {"model__history__encoder": "none", "schema__users__features": {}},
            ["model.history.encoder = 'none' needs user features"],
        ),
        ({"model__item_id": False, "schema__items__features": {}}, ["model.item_id = false needs item features"]),
    ],
)
def test_a_bad_value_is_told_with_its_path(changes, messages):
    told = refused(**changes)
    assert told.startswith("vecall.toml: ")
    assert [part for part in messages if part not in told] == []


def test_all_mistakes_are_told_at_once():
    told = refused(model__dimm=3, model__dropout=2, training__batch=0).splitlines()
    assert [line.split(": ")[1] for line in told] == ["model.dropout", "model.dimm", "training.batch"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model__preset": "founding"},
        {"training__temperature": "learned", "index__M": 8, "evaluation__ks": [3]},
        {
            "data__split": "global_time",
            "data__valid_from": date(2018, 1, 1),
            "data__test_from": datetime(2018, 6, 1, 5),
        },
        {"data__split": "global_time", "data__valid_from": 3, "data__test_from": 4.5},
        {"data__split": "global_time", "data__valid_from": "2018-01-01", "data__test_from": "2018-06-01T00:00:00Z"},
    ],
)
def test_settings_survive_json(changes):
    config = parse_config(sections(**changes))
    assert parse_config(json.loads(json.dumps(config.as_json()))) == config


def test_paths_are_relative_to_the_files_own_folder(tmp_path, monkeypatch):
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "vecall.toml").write_text(TOML, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for path in (folder / "vecall.toml", "project/vecall.toml"):
        config = load_config(path)
        assert config.data.interactions == (folder / "log.csv", Path("/abs/log.parquet"))
        assert (config.data.items, config.data.users) == (folder / "tables" / "items.csv", folder / "users.csv")
    assert parse_config(config.as_json()) == config


def test_one_interactions_file_needs_no_list(tmp_path):
    (tmp_path / "vecall.toml").write_text(
        TOML.replace('["log.csv", "/abs/log.parquet"]', '"log.csv"'), encoding="utf-8"
    )
    assert load_config(tmp_path / "vecall.toml").data.interactions == (tmp_path / "log.csv",)


@pytest.mark.parametrize(
    ("content", "error"),
    [(None, "cannot be read"), (b"[data", "is not TOML"), (b"\xff", "is not TOML"), (b"", "data: is required")],
)
def test_a_file_that_is_no_config(tmp_path, content, error):
    path = tmp_path / "vecall.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=error) as caught:
        load_config(path)
    assert str(path) in str(caught.value)


def test_it_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        parse_config(sections()).model.dim = 3
