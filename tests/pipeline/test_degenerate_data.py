"""Degenerate tables and settings, from fit to recall: results are right, or an error says what is wrong."""

import json

import numpy as np
import polars as pl
import pytest
from support import cli

from vecall.config import parse_config
from vecall.errors import ConfigError, TrainingError
from vecall.pipeline.evaluate import evaluate
from vecall.pipeline.fit import fit
from vecall.pipeline.publish import publish
from vecall.recall.query import Query
from vecall.recall.recaller import open_recaller


def make_interactions(users=20, length=5, items=12):
    return [(f"u{u}", f"i{(u + step) % items}", step) for u in range(users) for step in range(length)]


@pytest.fixture
def make_config(tmp_path):
    """Factory that writes tables and returns settings for them."""

    def make(interactions, items=None, users=None, item_features=None, user_features=None, attributes=(), **sections):
        """Write rows of user, item and time, and tables of items and users if given; `sections` override settings."""
        log_path = tmp_path / "log.csv"
        pl.DataFrame(interactions, schema=["user", "item", "time"], orient="row").write_csv(log_path)
        data = {"interactions": str(log_path)}
        for name, table in (("items", items), ("users", users)):
            if table is not None:
                suffix = "csv" if all(isinstance(cells, list) for cells in table.values()) else "parquet"
                path = tmp_path / f"{name}.{suffix}"
                frame = pl.DataFrame(table)
                frame.write_csv(path) if suffix == "csv" else frame.write_parquet(path)
                data[name] = str(path)
        settings = {
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
            "model": {"preset": "pooled", "dim": 8, "history": {"encoder": "mean", "length": 4}},
            "training": {"epochs": 2, "batch": 16, "lr": 0.03},
            "evaluation": {"ks": [2, 5]},
            "index": {"ks": [5]},
        }
        for name, section in sections.items():
            settings[name] |= section
        return parse_config(json.loads(json.dumps(settings)))

    return make


@pytest.mark.examples
def test_targets_that_are_all_seen_have_no_metrics_with_seen_items_excluded(make_config, tmp_path):
    interactions = [(f"u{u}", f"i{item}", step) for u in range(9) for step, item in enumerate((1, 2, 3, 1, 2))]
    run = fit(make_config(interactions), tmp_path / "run")
    assert run.summary.metrics["seen_excluded"]["recall@2"] is None
    assert run.summary.metrics["seen_included"]["recall@5"] == 1.0
    publish(tmp_path / "run", tmp_path / "store")
    evaluation = evaluate(run=tmp_path / "run")
    assert evaluation["model"]["seen_excluded"]["ndcg@10"] is None
    assert evaluation["ease"]["seen_included"]["recall@5"] == 1.0
    report = tmp_path / "report.html"
    result = cli.invoke("evaluate", "--run", tmp_path / "run", "--report", report)
    assert result.exit_code == 0, result.output
    assert "–" in result.output
    assert "nan" not in report.read_text(encoding="utf-8").lower().replace("finance", "")


def test_single_test_user_has_metrics_without_confidence_interval(make_config, tmp_path):
    test_user = [("u0", "a", 0), ("u0", "b", 1), ("u0", "c", 2)]
    interactions = [*test_user, *[(f"u{u}", "d", 0) for u in range(1, 9)], ("u1", "e", 1)]
    fit(make_config(interactions), tmp_path / "run")
    evaluation = evaluate(run=tmp_path / "run")
    assert evaluation["model"]["seen_excluded"]["recall@5"] == 1.0
    ann = evaluation["ann"]
    assert (ann["queries"], ann["recall"], ann["recall_ci95"]) == (1, 1.0, None)


BATCH_NORM = {"hidden": [8], "norm": "batch"}


def test_batch_norm_needs_two_samples_per_step(make_config, tmp_path):
    items = {"id": [f"i{i}" for i in range(12)], "kind": ["a", "b"] * 6}
    features = {"kind": {"kind": "category"}}
    with pytest.raises(ConfigError, match=r"training\.batch = 1: model\.norm = 'batch' needs at least 2"):
        make_config(make_interactions(), items, item_features=features, model=BATCH_NORM, training={"batch": 1})
    one_sample = [("u0", f"i{step}", step) for step in range(4)]  # the last two are held out, the first is history
    with pytest.raises(TrainingError, match="one sample"):
        fit(make_config(one_sample, items, item_features=features, model=BATCH_NORM), tmp_path / "run")
    two_samples = [("u0", f"i{step}", step) for step in range(5)]
    config = make_config(two_samples, items, item_features=features, model=BATCH_NORM, training={"batch": 3})
    fit(config, tmp_path / "two")
    config = make_config(make_interactions(), items, item_features=features, model=BATCH_NORM, training={"loss": "bce"})
    fit(config, tmp_path / "bce")


@pytest.mark.parametrize(
    ("encoder", "length"),
    [
        ("causal", 1),
        *(pytest.param(*case, marks=pytest.mark.examples) for case in (("causal", 3), ("attention", 1), ("set", 1))),
    ],
)
def test_models_of_short_histories_are_exported_and_recall(make_config, tmp_path, encoder, length):
    history = {"encoder": encoder, "length": length, "heads": 2}
    fit(make_config(make_interactions(), model={"history": history}, training={"epochs": 1}), tmp_path / "run")
    publish(tmp_path / "run", tmp_path / "store")
    with open_recaller(tmp_path / "store") as recaller:
        assert recaller.live_index.snapshot.release.encoder.state.distinct_history == (encoder == "set")
        assert len(recaller.recall(Query(user_id="u1", k=3)).ids) == 3
        assert len(recaller.recall(Query(history=["i1", "i2", "i3", "i4", "i5"], k=3)).ids) == 3


@pytest.mark.parametrize("outlier", [1e200, -1.7976931348623157e308])
@pytest.mark.examples
def test_extreme_outlier_is_left_out_of_mean_and_std(make_config, tmp_path, outlier):
    items = {"id": [f"i{i}" for i in range(12)], "price": [outlier, None, *[float(i) for i in range(10)]]}
    config = make_config(
        make_interactions(), items, item_features={"price": {"kind": "numeric"}}, training={"epochs": 1}
    )
    run = fit(config, tmp_path / "run")
    state = run.load_evaluated_model().vocabulary.item_encoder.state.numeric["price"]
    assert (state.mean, state.std) == (pytest.approx(4.5), pytest.approx(np.std(range(10), ddof=1)))
    publish(tmp_path / "run", tmp_path / "store")
    assert evaluate(run=tmp_path / "run")["model"]


def test_feature_of_extreme_values_only_gives_a_finite_loss(make_config, tmp_path):
    items = {"id": [f"i{i}" for i in range(12)], "price": [1e200] * 12}
    config = make_config(
        make_interactions(), items, item_features={"price": {"kind": "numeric"}}, training={"epochs": 1}
    )
    assert np.isfinite(fit(config, tmp_path / "run").read_epoch_metrics()[0]["loss"])


def test_user_without_history_and_features_gets_popular_items(make_config, tmp_path):
    """The user is in neither table, or in the users table with nulls only."""
    interactions = [*make_interactions(users=10), *[(f"u{u}", "i5", 9) for u in range(10)]]
    users = {"id": [f"u{u}" for u in range(10)] + ["blank"], "town": ["x", "y"] * 5 + [None]}
    config = make_config(
        interactions, users=users, user_features={"town": {"kind": "category"}}, training={"epochs": 1}
    )
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
@pytest.mark.examples
def test_category_in_a_request_matches_every_spelling_of_the_table(make_config, tmp_path, column, values):
    """All spellings of a value give the same user vector, and the two values give different ones."""
    vectors = {"k": 12, "channels": ["vector"]}
    users = {
        "id": pl.Series([f"u{u}" for u in range(12)]) if isinstance(column, pl.Series) else [f"u{u}" for u in range(12)]
    }
    config = make_config(
        make_interactions(users=12),
        users=users | {"seg": column},
        user_features={"seg": {"kind": "category"}},
        training={"epochs": 1},
    )
    fit(config, tmp_path / "run")
    publish(tmp_path / "run", tmp_path / "store")
    with open_recaller(tmp_path / "store") as recaller:
        scores = [
            {tuple(recaller.recall(Query(user={"seg": spelling}, **vectors)).scores) for spelling in spellings}
            for spellings in values
        ]
        unseen = tuple(recaller.recall(Query(user={"seg": "never seen"}, **vectors)).scores)
    assert [len(distinct) for distinct in scores] == [1, 1]
    assert len({unseen, *scores[0], *scores[1]}) == 3


def test_category_in_an_upsert_matches_every_spelling_of_the_table(make_config, tmp_path):
    items = {
        "id": pl.Series([f"i{i}" for i in range(12)]),
        "n": pl.Series([0.0, 1.0, None] * 4),
        "t": pl.Series([[1.0]] * 12),
    }
    features = {"n": {"kind": "category"}, "t": {"kind": "tags"}}
    config = make_config(make_interactions(), items, item_features=features, training={"epochs": 1})
    fit(config, tmp_path / "run")
    publish(tmp_path / "run", tmp_path / "store")
    with open_recaller(tmp_path / "store", writable=True, auto_compact=False) as recaller:
        spellings = [{"n": 1, "t": [1]}, {"n": 1.0, "t": ["1.0"]}, {"n": "1", "t": "1"}]
        recaller.upsert([{"id": f"new{n}", "fields": fields} for n, fields in enumerate(spellings)])
        snapshot = recaller.live_index.snapshot
        vectors = snapshot.get_vectors(snapshot.to_rows(["new0", "new1", "new2"]))
    assert np.abs(vectors - vectors[0]).max() == 0


@pytest.mark.parametrize("bad_rows", ["error", "drop"])
def test_quoted_empty_cells_are_missing_values(make_config, tmp_path, bad_rows):
    config = make_config(
        make_interactions(),
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
