"""Kinds of interactions and splits without an order, from tables through fit and refit to evaluate and publish."""

import polars as pl
import pytest
from support import synthetic

from vecall.config import parse_config
from vecall.errors import TrainingError
from vecall.pipeline.evaluate import evaluate
from vecall.pipeline.fit import fit
from vecall.pipeline.publish import publish
from vecall.release.release import open_release
from vecall.release.store import Store


@pytest.fixture
def tables_dir(tmp_path):
    """The shop, where the first item of each user is viewed and the others are bought."""
    synthetic.write_tables(tmp_path)
    path = tmp_path / "taken.csv"
    frame = pl.read_csv(path).with_columns(
        kind=pl.when(pl.col("time") >= 1).then(pl.lit("buy")).otherwise(pl.lit("view"))
    )
    frame.with_columns(part=pl.when(pl.col("time") >= 5).then(pl.lit("test")).otherwise(pl.lit("train"))).write_csv(
        path
    )
    return tmp_path


def make_config(directory, interactions=None, **data):
    settings = synthetic.make_config(directory, training={"epochs": 1, "refit": True}).as_json()
    settings["data"] |= data
    settings["schema"]["interactions"] |= interactions or {}
    return parse_config(settings)


KINDS = {"event": "kind", "weights": {"view": 0.0, "buy": 1.0}}


@pytest.mark.examples
@pytest.mark.parametrize(
    ("interactions", "data", "protocol"),
    [
        (KINDS, {}, "leave-one-out: each user's last positive of kind buy"),
        (KINDS | {"targets": ["buy"]}, {"split": "random"}, "random: of each user's items of kind buy"),
        (
            {},
            {"split": "given", "split_column": "part", "repeats": "last"},
            "given: the parts that the table names, and",
        ),
    ],
)
def test_run_is_fitted_evaluated_and_published(tables_dir, interactions, data, protocol):
    run = fit(make_config(tables_dir, interactions, **data), tables_dir / "run")
    assert run.summary.protocol.startswith(protocol)
    assert evaluate(run=tables_dir / "run")["protocol"].startswith(protocol[0].upper() + protocol[1:])
    publish(tables_dir / "run", tables_dir / "store", allow_worse=True)
    release = open_release(Store.open(tables_dir / "store"))
    assert len(release.users.histories.values) == synthetic.USERS * synthetic.GROUP_SIZE


def test_random_split_after_another_split_is_a_leak(tables_dir):
    fit(make_config(tables_dir), tables_dir / "init")
    with pytest.raises(TrainingError, match=r"--init: .* was trained on \d+% of the interactions"):
        fit(make_config(tables_dir, split="random"), tables_dir / "run", init=tables_dir / "init")
