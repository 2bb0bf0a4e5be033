"""Lineage of runs: a fit resumes on equal tables only, and `--init` leaks no held-out interactions."""

import numpy as np
import polars as pl
import pytest
from support import synthetic

from vecall.config import parse_config
from vecall.data.split import TRAIN
from vecall.errors import TrainingError
from vecall.pipeline import lineage
from vecall.pipeline.evaluate import evaluate
from vecall.pipeline.fit import fit
from vecall.pipeline.interaction_hashes import get_time_key, hash_positives
from vecall.pipeline.lineage import TRAINED_HASHES_FILE, read_fingerprint, select_time_key
from vecall.training import callbacks


@pytest.fixture
def tables_dir(tmp_path):
    synthetic.write_tables(tmp_path)
    return tmp_path


@pytest.fixture
def interrupted_dir(tables_dir, monkeypatch):
    """A directory with tables and, in `run`, a fit of them that was interrupted after one epoch."""
    on_train_epoch_start = callbacks.EpochEndCallback.on_train_epoch_start

    def interrupt(self, trainer, module):
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt
        on_train_epoch_start(self, trainer, module)

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.EpochEndCallback, "on_train_epoch_start", interrupt)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            fit(synthetic.make_config(tables_dir), tables_dir / "run")
    return tables_dir


def get_interactions_path(tables_dir):
    return synthetic.make_config(tables_dir).data.interactions[0]


def replace_cells(path, column, old, new):
    """Replace a value of a column wherever it occurs."""
    table = pl.read_csv(path, infer_schema=False)
    replaced = pl.when(pl.col(column) == old).then(pl.lit(new)).otherwise(pl.col(column)).alias(column)
    table.with_columns(replaced).write_csv(path)


def rename_item(tables_dir):
    for path, column in ((tables_dir / "items.csv", "id"), (get_interactions_path(tables_dir), "item")):
        replace_cells(path, column, synthetic.make_item_id(3), "other")


def rename_user(tables_dir):
    for path, column in ((tables_dir / "users.csv", "id"), (get_interactions_path(tables_dir), "user")):
        replace_cells(path, column, "user-3", "user-x")


CHANGES = {
    "item ids": rename_item,
    "user ids": rename_user,
    "interactions": lambda tables_dir: replace_cells(get_interactions_path(tables_dir), "time", "0", "7"),
    "item features": lambda tables_dir: replace_cells(tables_dir / "items.csv", "type", "kind 1", "kind x"),
    "user features": lambda tables_dir: replace_cells(tables_dir / "users.csv", "type", "kind 1", "kind x"),
}


@pytest.mark.parametrize("part", sorted(CHANGES))
def test_fit_does_not_resume_on_changed_tables(interrupted_dir, part):
    """The changed tables have equal shapes; only their values differ."""
    CHANGES[part](interrupted_dir)
    with pytest.raises(TrainingError, match=rf"inputs differ from those of the interrupted fit here: [a-z, ]*{part}"):
        fit(synthetic.make_config(interrupted_dir), interrupted_dir / "run")


def test_fit_resumes_on_equal_tables(interrupted_dir):
    path = get_interactions_path(interrupted_dir)
    path.write_bytes(path.read_bytes())
    assert fit(synthetic.make_config(interrupted_dir), interrupted_dir / "run").summary.epochs == 4


def test_fit_does_not_resume_with_another_initial_run(interrupted_dir, published):
    with pytest.raises(TrainingError, match=r"inputs differ .*: weights of the --init run"):
        fit(synthetic.make_config(interrupted_dir), interrupted_dir / "run", init=published / "run")


def make_global_time_config(tables_dir, valid_from, test_from):
    data = {"split": "global_time", "valid_from": valid_from, "test_from": test_from}
    return synthetic.make_config(tables_dir, data=data)


def test_init_run_trained_on_held_out_interactions_raises(tables_dir):
    """The initial run has another split, which its weights do not tell."""
    # Trained on all but each user's last two interactions.
    fit(synthetic.make_config(tables_dir, training={"epochs": 1}), tables_dir / "init")
    with pytest.raises(TrainingError, match=r"--init: .*init was trained on \d+% of the .*leave-one-out"):
        fit(make_global_time_config(tables_dir, 1, 3), tables_dir / "run", init=tables_dir / "init")
    assert not (tables_dir / "run").exists()


def test_run_is_not_evaluated_on_what_it_was_trained_on(published, caplog):
    """By the settings of another split, or on tables that changed since."""
    config = make_global_time_config(published, 1, 3)
    with pytest.raises(
        TrainingError, match=r"run was trained on \d+% of the interactions that this evaluation holds out"
    ):
        evaluate(run=published / "run", config=config)
    assert not caplog.text
    protocol = evaluate(store=published / "store", config=config)["protocol"]
    assert "Release 'tiny' was trained with another split (leave-one-out: " in protocol
    assert "too high if it has learned" in caplog.text


def test_trained_hashes_include_those_of_the_initial_run(tables_dir):
    early_config = make_global_time_config(tables_dir, 1, 2)
    fit(make_global_time_config(tables_dir, 3, 4), tables_dir / "late")
    late_hashes = np.load(tables_dir / "late" / TRAINED_HASHES_FILE)
    fit(early_config, tables_dir / "early")
    assert len(np.load(tables_dir / "early" / TRAINED_HASHES_FILE)) < len(late_hashes)
    fit(make_global_time_config(tables_dir, 4, 5), tables_dir / "later", init=tables_dir / "late")
    assert set(late_hashes) <= set(np.load(tables_dir / "later" / TRAINED_HASHES_FILE))
    with pytest.raises(TrainingError, match="was trained on"):
        fit(early_config, tables_dir / "run", init=tables_dir / "later")


def test_run_of_yesterday_is_a_valid_initial_run(tables_dir, caplog):
    """In the meantime every user has one more interaction."""
    fit(synthetic.make_config(tables_dir), tables_dir / "yesterday")
    path = get_interactions_path(tables_dir)
    table = pl.read_csv(path)
    new_rows = pl.DataFrame(
        [
            (f"user-{user}", synthetic.make_item_id((user + 6) % synthetic.ITEMS), 50, 5.0)
            for user in range(synthetic.USERS)
        ],
        schema=table.schema,
        orient="row",
    )
    table.vstack(new_rows).write_csv(path)
    fit(synthetic.make_config(tables_dir), tables_dir / "today", init=tables_dir / "yesterday")
    assert "--init" not in caplog.text


def test_repeated_interactions_without_times_have_different_hashes(tables_dir):
    settings = synthetic.make_config(tables_dir).as_json()
    settings["schema"]["interactions"] |= {"time": None}
    settings["schema"]["items"] |= {"features": {}, "attributes": [], "title": None}
    settings["data"]["items"] = None
    get_interactions_path(tables_dir).write_text(
        "user,item,rating\n" + "user-1,item-1,5\n" * 4 + "user-2,item-1,5\nuser-2,item-2,5\n"
    )
    dataset = synthetic.load_dataset(parse_config(settings))
    assert len(np.unique(hash_positives(dataset, "occurrences"))) == 6


@pytest.fixture
def read_hashes(tmp_path):
    """Factory that writes a table of interactions and returns its dataset and the hashes of its positives."""

    def read(times, time_key, *, user_type="integer", **schema):
        table = pl.DataFrame({"user": [1, 1, 2, 2], "item": [1, 2, 1, 1]})
        if user_type == "string":
            table = table.with_columns(pl.col("user").cast(pl.String))
        table = table if times is None else table.with_columns(time=times)
        table.write_parquet(tmp_path / "log.parquet")
        names = {"user": "user", "item": "item"} | ({} if times is None else {"time": "time"}) | schema
        sides = {"items": {"id": "item", "id_type": "integer"}, "users": {"id": "user", "id_type": user_type}}
        config = {"data": {"interactions": str(tmp_path / "log.parquet")}, "schema": {"interactions": names} | sides}
        dataset = synthetic.load_dataset(parse_config(config))
        return dataset, hash_positives(dataset, time_key or get_time_key(dataset)).tolist()

    return read


def test_interactions_have_equal_hashes_however_their_times_and_ids_are_spelled(read_hashes):
    seconds = pl.Series([1_600_000_000, 1_600_000_001, 1_600_000_002, 1_600_000_003])
    datetimes = pl.from_epoch(seconds, time_unit="s")
    spellings = [
        (seconds, {"time_unit": "s"}),
        (seconds.cast(pl.Float64), {"time_unit": "s"}),
        (1000 * seconds, {"time_unit": "ms"}),
        (1_000_000_000 * seconds, {"time_unit": "ns"}),
        (datetimes, {}),
        (datetimes.dt.to_string("iso:strict"), {}),
        (datetimes, {"user_type": "string"}),
    ]
    _, expected = read_hashes(*spellings[0][:1], None, time_unit="s")
    assert len(set(expected)) == 4
    for times, schema in spellings:
        assert read_hashes(times, None, **schema)[1] == expected
    _, numbers = read_hashes(seconds, None)
    assert numbers != expected
    assert read_hashes(seconds.cast(pl.Float64), None)[1] == numbers
    assert read_hashes(seconds, "numbers", time_unit="s")[1] == numbers  # as an older run without a unit has them
    _, fractions = read_hashes(pl.Series([0.5, 0.25, 1e300, -1e300]), None)
    assert len(set(fractions)) == 4


def test_initial_run_whose_times_cannot_be_compared_raises(read_hashes, tables_dir):
    fit(synthetic.make_config(tables_dir, training={"epochs": 1}), tables_dir / "init")
    dataset, _ = read_hashes(pl.from_epoch(pl.Series([1, 2, 3, 4]), time_unit="s"), None)
    expected = "init have times of no known unit, those of this run times since 1970.*time_unit, or omit --init"
    with pytest.raises(TrainingError, match=expected):
        select_time_key(dataset, tables_dir / "init")
    dataset, _ = read_hashes(None, None)
    with pytest.raises(TrainingError, match="those of this run no times"):
        select_time_key(dataset, tables_dir / "init")
    dataset, _ = read_hashes(pl.Series([1, 2, 3, 4]), None, time_unit="s")
    assert select_time_key(dataset, tables_dir / "init") == "numbers"


def test_sample_of_hashes_detects_a_leak(tables_dir, monkeypatch):
    monkeypatch.setattr(lineage, "_MAX_HASHES", 60)
    fit(synthetic.make_config(tables_dir, training={"epochs": 1}), tables_dir / "init")
    assert len(np.load(tables_dir / "init" / TRAINED_HASHES_FILE)) == 60
    with pytest.raises(TrainingError, match=r"--init: .* \d+% of the interactions"):
        fit(make_global_time_config(tables_dir, 1, 3), tables_dir / "run", init=tables_dir / "init")


def test_init_run_without_trained_hashes_raises(tables_dir):
    fit(synthetic.make_config(tables_dir, training={"epochs": 1}), tables_dir / "init")
    path = tables_dir / "init" / TRAINED_HASHES_FILE
    for damage in (lambda: path.write_bytes(b""), path.unlink):
        damage()
        with pytest.raises(
            TrainingError, match=r"trained_interactions.npy cannot be read .*fit .* again, or omit --init"
        ):
            fit(synthetic.make_config(tables_dir), tables_dir / "run", init=tables_dir / "init")


def test_positive_parts_match_the_training_histories(tables_dir):
    at_random = synthetic.make_config(tables_dir, data={"split": "random"})
    for config in (synthetic.make_config(tables_dir), make_global_time_config(tables_dir, 2, 4), at_random):
        dataset = synthetic.load_dataset(config)
        split = dataset.split(config.data)
        assert (split.positive_parts == TRAIN).sum() == len(split.train.values)
        positives = dataset.interactions.filter(dataset.interactions.is_positive)
        assert positives.items[split.positive_parts == TRAIN].tolist() == split.train.values.tolist()


@pytest.mark.parametrize("content", ["{", '{"protocol": "leave-one-out", "digests": {}}', "[]"])
def test_record_of_training_data_that_is_damaged_or_of_another_version_is_one_line(tmp_path, content):
    assert read_fingerprint(tmp_path) is None
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(TrainingError, match=r"^[^\n]*data.json: is damaged, or of another version[^\n]*; fit .*again$"):
        read_fingerprint(tmp_path)
