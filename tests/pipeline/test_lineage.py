"""A fit goes on over its own tables alone; a run that it starts from has not learned what it is judged by."""

import numpy as np
import polars as pl
import pytest
from support import synthetic

from vecall.data.split import TRAIN
from vecall.errors import TrainingError
from vecall.pipeline import lineage
from vecall.pipeline.fit import fit
from vecall.training import callbacks


@pytest.fixture
def shop(tmp_path):
    synthetic.write_tables(tmp_path)
    return tmp_path


@pytest.fixture
def cut(shop, monkeypatch):
    """A fit that was cut short after an epoch, in `run`."""
    start = callbacks.EpochMetricsCallback.on_train_epoch_start

    def cut_short(self, trainer, recipe):
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt
        start(self, trainer, recipe)

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.EpochMetricsCallback, "on_train_epoch_start", cut_short)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            fit(synthetic.make_config(shop), shop / "run")
    return shop


def change(path, column, cell, value):
    """Write another value of the same length of table wherever `cell` stands."""
    table = pl.read_csv(path, infer_schema=False)
    changed = pl.when(pl.col(column) == cell).then(pl.lit(value)).otherwise(pl.col(column)).alias(column)
    table.with_columns(changed).write_csv(path)


def rename_item(shop):
    for name, column in (("items", "id"), ("taken", "item")):
        change(shop / f"{name}.csv", column, synthetic.make_item_id(3), "other")


def rename_user(shop):
    for name, column in (("users", "id"), ("taken", "user")):
        change(shop / f"{name}.csv", column, "user-3", "user-x")


CHANGES = {
    "item ids": rename_item,
    "user ids": rename_user,
    "interactions": lambda shop: change(shop / "taken.csv", "time", "0", "7"),
    "item features": lambda shop: change(shop / "items.csv", "type", "kind 1", "kind x"),
    "user features": lambda shop: change(shop / "users.csv", "type", "kind 1", "kind x"),
}


@pytest.mark.parametrize("part", sorted(CHANGES))
def test_a_fit_is_not_gone_on_with_over_other_tables(cut, part):
    """Their shapes are equal: only what stands in them is other."""
    CHANGES[part](cut)
    with pytest.raises(TrainingError, match=rf"its tables have other [a-z, ]*{part}"):
        fit(synthetic.make_config(cut), cut / "run")


def test_the_same_tables_are_gone_on_with(cut):
    (cut / "taken.csv").write_bytes((cut / "taken.csv").read_bytes())
    assert fit(synthetic.make_config(cut), cut / "run").summary.epochs == 4


def test_another_older_run_is_no_start_for_one_that_was_cut_short(cut, published):
    with pytest.raises(TrainingError, match=r"other older run of --init"):
        fit(synthetic.make_config(cut), cut / "run", init=published / "run")


def by_time(shop, valid_from, test_from):
    return synthetic.make_config(shop, data={"split": "global_time", "valid_from": valid_from, "test_from": test_from})


def test_a_run_that_has_learned_the_test_is_no_start(shop):
    """By another split, though nothing of its settings says so."""
    fit(synthetic.make_config(shop, training={"epochs": 1}), shop / "whole")  # all but each user's last two
    with pytest.raises(
        TrainingError, match=r"--init: \d+% of the interactions .*whole has learned from.*leave-one-out"
    ):
        fit(by_time(shop, 1, 3), shop / "run", init=shop / "whole")
    assert not (shop / "run").exists()


def test_what_an_older_run_had_learned_is_remembered(shop):
    """A run that was itself started from one has learned what that one had."""
    early = by_time(shop, 1, 2)
    fit(by_time(shop, 3, 4), shop / "late")
    late = np.load(shop / "late" / "learned.npy")
    fit(early, shop / "early")
    assert len(np.load(shop / "early" / "learned.npy")) < len(late)
    fit(by_time(shop, 4, 5), shop / "later", init=shop / "late")
    assert set(late) <= set(np.load(shop / "later" / "learned.npy"))
    with pytest.raises(TrainingError, match="has learned from"):
        fit(early, shop / "run", init=shop / "later")


def test_the_daily_loop_is_a_start(shop, caplog):
    """Everybody has taken one more item by then."""
    fit(synthetic.make_config(shop), shop / "yesterday")
    table = pl.read_csv(shop / "taken.csv")
    more = pl.DataFrame(
        [(f"user-{u}", synthetic.make_item_id((u + 6) % synthetic.ITEMS), 50, 5.0) for u in range(synthetic.USERS)],
        schema=table.schema,
        orient="row",
    )
    table.vstack(more).write_csv(shop / "taken.csv")
    fit(synthetic.make_config(shop), shop / "today", init=shop / "yesterday")
    assert "--init" not in caplog.text


def test_without_times_the_same_item_taken_again_is_another_interaction(shop):
    config = synthetic.make_config(shop)
    timeless = config.as_json()
    timeless["schema"]["interactions"] |= {"time": None}
    (shop / "taken.csv").write_text(
        "user,item,rating\n" + "user-1,item-1,5\n" * 4 + "user-2,item-1,5\nuser-2,item-2,5\n"
    )
    timeless["data"]["items"] = None
    timeless["schema"]["items"] |= {"features": {}, "attributes": [], "title": None}
    from vecall.config import parse_config
    from vecall.data.dataset import read_dataset

    dataset = read_dataset(parse_config(timeless).data, parse_config(timeless).schema_)
    assert len(np.unique(lineage.hash_interactions(dataset))) == 6


def test_a_sample_of_the_hashes_is_enough(shop, monkeypatch):
    monkeypatch.setattr(lineage, "_MAX_HASHES", 60)
    fit(synthetic.make_config(shop, training={"epochs": 1}), shop / "whole")
    assert len(np.load(shop / "whole" / "learned.npy")) == 60
    with pytest.raises(TrainingError, match=r"--init: \d+%"):
        fit(by_time(shop, 1, 3), shop / "run", init=shop / "whole")


def test_a_run_that_does_not_say_what_it_has_learned_is_no_start(shop):
    fit(synthetic.make_config(shop, training={"epochs": 1}), shop / "older")
    (shop / "older" / "learned.npy").unlink()
    with pytest.raises(TrainingError, match="does not say what it has learned from"):
        fit(synthetic.make_config(shop), shop / "run", init=shop / "older")


def test_the_parts_of_a_split_are_its_own(shop):
    for config in (synthetic.make_config(shop), by_time(shop, 2, 4)):
        dataset = synthetic.load_dataset(config)
        split = dataset.split(config.data)
        assert (split.positive_parts == TRAIN).sum() == len(split.train.values)
        positives = dataset.interactions.filter(dataset.interactions.is_positive)
        assert positives.items[split.positive_parts == TRAIN].tolist() == split.train.values.tolist()
