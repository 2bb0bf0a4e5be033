"""Context from tables to requests: what a user takes depends on the hour alone, so that nothing else can tell it."""

import numpy as np
import polars as pl
import pytest
from torch import nn

import vecall
from vecall.config import parse_config
from vecall.errors import ConfigError
from vecall.pipeline.evaluate import evaluate
from vecall.pipeline.fit import fit
from vecall.pipeline.publish import publish
from vecall.pipeline.publish_towers import publish_towers

HOURS, ITEMS_PER_HOUR, USERS, LENGTH = 6, 8, 200, 9


@pytest.fixture
def tables_dir(tmp_path):
    """At hour h a user takes one of the items 8 h to 8 h + 7; hours are in random order."""
    rng = np.random.default_rng(0)
    hours = rng.integers(0, HOURS, USERS * LENGTH)
    items = hours * ITEMS_PER_HOUR + rng.integers(0, ITEMS_PER_HOUR, len(hours))
    users = np.repeat(np.arange(USERS), LENGTH)
    pl.DataFrame({"user": users, "item": items, "hour": hours}).write_csv(tmp_path / "log.csv")
    return tmp_path


def make_config(directory, encoder, *, context=True, **data):
    ids = {"id_type": "integer"}
    interactions = {"user": "user", "item": "item"}
    if context:
        interactions["context"] = {"hour": {"kind": "category"}}
    return parse_config(
        {
            "data": {"interactions": str(directory / "log.csv")} | data,
            "schema": {
                "interactions": interactions,
                "items": {"id": "item"} | ids,
                "users": {"id": "user"} | ids,
            },
            "model": {"preset": "pooled", "dim": 16, "dropout": 0.0, "history": {"encoder": encoder, "length": 5}},
            "training": {"epochs": 12, "batch": 64, "lr": 0.02, "refit": encoder == "none"},
            "index": {"ks": [5]},
            "evaluation": {"ks": [8]},
        }
    )


def get_recall(metrics):
    return metrics["seen_included"]["recall@8"]


@pytest.mark.examples
@pytest.mark.parametrize("encoder", ["none", "mean", "causal"])
def test_model_predicts_the_items_of_the_hour_that_is_asked_for(tables_dir, encoder):
    run = fit(make_config(tables_dir, encoder), tables_dir / "run")
    assert get_recall(run.summary.metrics) > 0.9
    assert get_recall(evaluate(run=tables_dir / "run")["model"]) == pytest.approx(get_recall(run.summary.metrics))
    publish(tables_dir / "run", tables_dir / "store", allow_worse=True)
    if encoder != "none":  # that one is trained again on everything
        released = evaluate(store=tables_dir / "store", config=run.config)
        assert get_recall(released["model"]) == pytest.approx(get_recall(run.summary.metrics), abs=0.02)
    with vecall.open_recaller(tables_dir / "store") as recaller:
        for hour in range(HOURS):
            query = vecall.Query(user_id=3, user={"hour": hour}, k=8, exclude_seen=False)
            assert sum(item // ITEMS_PER_HOUR == hour for item in recaller.recall(query).ids) >= 7
        assert len(recaller.recall(vecall.Query(history=[1, 2], k=8)).ids) == 8
        with pytest.raises(vecall.VecallError, match=r"user.day: unknown feature; this release has \['hour'\]"):
            recaller.recall(vecall.Query(user_id=3, user={"day": 1}))


@pytest.mark.examples
def test_without_context_the_hour_cannot_be_told(tables_dir):
    run = fit(make_config(tables_dir, "mean", context=False), tables_dir / "run")
    assert get_recall(run.summary.metrics) < 0.4


def test_towers_of_ones_own_refuse_context(tables_dir):
    schema = make_config(tables_dir, "mean").schema_
    with pytest.raises(ConfigError, match=r"schema\.interactions\.context: is read by towers that `fit` trains"):
        publish_towers(
            tables_dir / "store", nn.Identity(), nn.Identity(), schema=schema, items=pl.DataFrame({"item": [1]})
        )
