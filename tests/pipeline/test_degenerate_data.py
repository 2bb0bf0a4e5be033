"""Tables and settings at the edge of what can be learned from, from fit to recall: right, or refused in a sentence."""

import json

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from vecall.cli.app import app
from vecall.config import parse_config
from vecall.errors import ConfigError, TrainingError
from vecall.pipeline.evaluate import evaluate
from vecall.pipeline.fit import fit
from vecall.pipeline.publish import publish
from vecall.recall.query import Query
from vecall.recall.recaller import open_recaller


def walks(users=20, length=5, items=12):
    return [(f"u{u}", f"i{(u + step) % items}", step) for u in range(users) for step in range(length)]


@pytest.fixture
def settings(tmp_path):
    """Writes tables and gives their settings: `log` rows of user, item, time, and perhaps items and users."""

    def make(log, items=None, users=None, item_features=None, user_features=None, attributes=(), **sections):
        pl.DataFrame(log, schema=["user", "item", "time"], orient="row").write_csv(tmp_path / "log.csv")
        data = {"interactions": str(tmp_path / "log.csv")}
        for name, table in (("items", items), ("users", users)):
            if table is not None:
                suffix = "csv" if all(isinstance(cells, list) for cells in table.values()) else "parquet"
                path = tmp_path / f"{name}.{suffix}"
                frame = pl.DataFrame(table)
                frame.write_csv(path) if suffix == "csv" else frame.write_parquet(path)
                data[name] = str(path)
        parsed = {
            "data": data,
            "schema": {
                "interactions": {"user": "user", "item": "item", "time": "time"},
                "items": {
                    "id": "id",
                    "id_type": "string",
                    "features": item_features or {},
                    "attributes": list(attributes),
                },
                "users": {"id": "id", "id_type": "string", "features": user_features or {}},
            },
            "model": {"dim": 8, "history": {"encoder": "mean", "length": 4}},
            "training": {"epochs": 2, "batch": 16, "lr": 0.03},
            "evaluation": {"ks": [2, 5]},
            "index": {"ks": [5]},
        }
        for name, section in sections.items():
            parsed[name] |= section
        return parse_config(json.loads(json.dumps(parsed)))

    return make


def test_every_target_stands_in_its_history(settings, tmp_path):
    """What seen items included say is told; what they excluded say is nothing."""
    log = [(f"u{u}", f"i{item}", step) for u in range(9) for step, item in enumerate((1, 2, 3, 1, 2))]
    run = fit(settings(log), tmp_path / "run")
    assert run.summary.metrics["seen_excluded"]["recall@2"] is None
    assert run.summary.metrics["seen_included"]["recall@5"] == 1.0
    publish(tmp_path / "run", tmp_path / "store")
    told = evaluate(run=tmp_path / "run")
    assert told["model"]["seen_excluded"]["ndcg@10"] is None
    assert told["ease"]["seen_included"]["recall@5"] == 1.0
    report = tmp_path / "report.html"
    shown = CliRunner().invoke(app, ["evaluate", "--run", str(tmp_path / "run"), "--report", str(report)])
    assert shown.exit_code == 0, shown.output
    assert "–" in shown.output
    assert "nan" not in report.read_text(encoding="utf-8").lower().replace("finance", "")


def test_one_user_is_judged(settings, tmp_path):
    log = [("u0", "a", 0), ("u0", "b", 1), ("u0", "c", 2), *[(f"u{u}", "d", 0) for u in range(1, 9)], ("u1", "e", 1)]
    fit(settings(log), tmp_path / "run")
    told = evaluate(run=tmp_path / "run")
    assert told["model"]["seen_excluded"]["recall@5"] == 1.0
    assert (told["ann"]["queries"], told["ann"]["recall"], told["ann"]["recall_ci95"]) == (1, 1.0, None)


HIDDEN = {"hidden": [8], "norm": "batch"}


def test_batch_norm_needs_two(settings, tmp_path):
    items = {"id": [f"i{i}" for i in range(12)], "kind": ["a", "b"] * 6}
    features = {"kind": {"kind": "category"}}
    with pytest.raises(ConfigError, match=r"training\.batch = 1: model\.norm = 'batch' needs at least 2"):
        settings(walks(), items, item_features=features, model=HIDDEN, training={"batch": 1})
    one = [("u0", "i0", 0), ("u0", "i1", 1), ("u0", "i2", 2), ("u0", "i3", 3)]
    with pytest.raises(TrainingError, match="one sample to learn from"):
        fit(settings(one, items, item_features=features, model=HIDDEN), tmp_path / "run")
    odd = [("u0", "i0", 0), ("u0", "i1", 1), ("u0", "i2", 2), ("u0", "i3", 3), ("u0", "i4", 4)]  # two samples
    fit(settings(odd, items, item_features=features, model=HIDDEN, training={"batch": 3}), tmp_path / "odd")
    fit(settings(walks(), items, item_features=features, model=HIDDEN, training={"loss": "bce"}), tmp_path / "bce")


@pytest.mark.parametrize(("encoder", "length"), [("causal", 1), ("causal", 3), ("attention", 1)])
def test_short_histories_are_exported(settings, tmp_path, encoder, length):
    history = {"encoder": encoder, "length": length, "heads": 2}
    fit(settings(walks(), model={"history": history}, training={"epochs": 1}), tmp_path / "run")
    publish(tmp_path / "run", tmp_path / "store")
    with open_recaller(tmp_path / "store") as recaller:
        assert len(recaller.recall(Query(user_id="u1", k=3)).ids) == 3
        assert len(recaller.recall(Query(history=["i1", "i2", "i3", "i4", "i5"], k=3)).ids) == 3


@pytest.mark.parametrize("absurd", [1e200, -1.7976931348623157e308])
def test_an_absurd_number_ends_no_run_and_hides_no_other(settings, tmp_path, absurd):
    items = {"id": [f"i{i}" for i in range(12)], "price": [absurd, None, *[float(i) for i in range(10)]]}
    config = settings(walks(), items, item_features={"price": {"kind": "numeric"}}, training={"epochs": 1})
    run = fit(config, tmp_path / "run")
    state = run.load_evaluated_model().vocabulary.item_encoder.state.numeric["price"]
    assert (state.mean, state.std) == (pytest.approx(4.5), pytest.approx(np.std(range(10), ddof=1)))
    publish(tmp_path / "run", tmp_path / "store")
    assert evaluate(run=tmp_path / "run")["model"]


def test_only_absurd_numbers(settings, tmp_path):
    items = {"id": [f"i{i}" for i in range(12)], "price": [1e200] * 12}
    config = settings(walks(), items, item_features={"price": {"kind": "numeric"}}, training={"epochs": 1})
    assert np.isfinite(fit(config, tmp_path / "run").read_epoch_metrics()[0]["loss"])


def test_a_user_of_whom_nothing_is_known_gets_what_is_popular(settings, tmp_path):
    """Known by id alone, in neither table, or with nothing but nulls."""
    log = [*walks(users=10), *[(f"u{u}", "i5", 9) for u in range(10)]]
    users = {"id": [f"u{u}" for u in range(10)] + ["blank"], "town": ["x", "y"] * 5 + [None]}
    config = settings(log, users=users, user_features={"town": {"kind": "category"}}, training={"epochs": 1})
    fit(config, tmp_path / "run")
    publish(tmp_path / "run", tmp_path / "store")
    with open_recaller(tmp_path / "store") as recaller:
        stranger = recaller.recall(Query(user_id="stranger", k=3))
        assert (stranger.fallback, stranger.unknown.user, stranger.ids[0]) == ("popular", True, "i5")
        blank = recaller.recall(Query(user_id="blank", k=3))
        assert (blank.fallback, blank.unknown.user, blank.ids) == ("popular", False, stranger.ids)
        assert recaller.recall(Query(user_id="blank", user={"town": "x"}, k=3)).fallback is None
        assert recaller.recall(Query(user={"town": None}, k=3)).fallback == "popular"


@pytest.mark.parametrize(
    ("column", "values"),
    [
        (pl.Series([0.0, 1.0, None] * 4), ([0, 0.0, "0", "0.0"], [1, 1.0, "1"])),  # as pandas writes integers with gaps
        (["True", "False", None] * 4, ([True, "true", "True"], [False, "False"])),
        (pl.Series([True, False, None] * 4), ([True, "True"], [False])),
        (pl.Series([0.1, 1.5, None] * 4, dtype=pl.Float32), ([0.1, "0.1"], [1.5])),
    ],
    ids=["floats", "csv-flags", "flags", "float32"],
)
def test_a_request_s_value_is_the_table_s(settings, tmp_path, column, values):
    """Each spelling gives the same user vector; the two values do not."""
    users = {
        "id": pl.Series([f"u{u}" for u in range(12)]) if isinstance(column, pl.Series) else [f"u{u}" for u in range(12)]
    }
    config = settings(
        walks(users=12),
        users=users | {"seg": column},
        user_features={"seg": {"kind": "category"}},
        training={"epochs": 1},
    )
    fit(config, tmp_path / "run")
    publish(tmp_path / "run", tmp_path / "store")
    with open_recaller(tmp_path / "store") as recaller:
        scores = [
            {tuple(recaller.recall(Query(user={"seg": value}, k=12)).scores) for value in spelled} for spelled in values
        ]
        unseen = tuple(recaller.recall(Query(user={"seg": "never seen"}, k=12)).scores)
    assert [len(each) for each in scores] == [1, 1]
    assert len({unseen, *scores[0], *scores[1]}) == 3


def test_an_upsert_s_value_is_the_table_s(settings, tmp_path):
    items = {
        "id": pl.Series([f"i{i}" for i in range(12)]),
        "n": pl.Series([0.0, 1.0, None] * 4),
        "t": pl.Series([[1.0]] * 12),
    }
    features = {"n": {"kind": "category"}, "t": {"kind": "tags"}}
    config = settings(walks(), items, item_features=features, training={"epochs": 1})
    fit(config, tmp_path / "run")
    publish(tmp_path / "run", tmp_path / "store")
    with open_recaller(tmp_path / "store", writable=True, auto_compact=False) as recaller:
        spellings = [{"n": 1, "t": [1]}, {"n": 1.0, "t": ["1.0"]}, {"n": "1", "t": "1"}]
        recaller.upsert([{"id": f"new{n}", "fields": fields} for n, fields in enumerate(spellings)])
        view = recaller.live_index.snapshot
        vectors = view.get_vectors(view.to_rows(["new0", "new1", "new2"]))
    assert np.abs(vectors - vectors[0]).max() == 0


@pytest.mark.parametrize("bad_rows", ["error", "drop"])
def test_quoted_empty_cells_are_missing_values(settings, tmp_path, bad_rows):
    config = settings(
        walks(),
        {"id": ["x"], "n": ["1"], "c": ["a"]},
        item_features={"n": {"kind": "numeric"}, "c": {"kind": "category"}},
        data={},
    )
    lines = [f'"i{i}","{"" if i % 2 else i}","{"" if i % 3 else "a"}"' for i in range(12)]
    (tmp_path / "items.csv").write_text('"id","n","c"\n' + "\n".join(lines) + "\n")
    config = config.model_copy(update={"data": config.data.model_copy(update={"bad_rows": bad_rows})})
    run = fit(config, tmp_path / "run")
    assert "items.csv" not in str(run.summary.dropped)
    encoders = run.load_evaluated_model().vocabulary.item_encoder.state
    assert encoders.categorical["c"].values == ("a",)
