"""`preset = "auto"`: candidates, trials that are resumed, and what runs and releases know of the choice."""

import tomllib
from pathlib import Path
from typing import cast

import numpy as np
import polars as pl
import pytest
import torch
from support import cli, synthetic

from vecall.config import Config, parse_config
from vecall.data.ragged import EvalCases
from vecall.errors import ConfigError, TrainingError
from vecall.pipeline.evaluate import evaluate
from vecall.pipeline.fit import fit
from vecall.pipeline.publish import publish
from vecall.pipeline.run import Run
from vecall.pipeline.selection import find_candidates, resolve_preset
from vecall.pipeline.selection_record import SELECTION_DIR, TrialRecord, format_seconds, read_selection, write_trial
from vecall.pipeline.selection_trial import TrialRunner
from vecall.release.release import open_release
from vecall.release.store import Store
from vecall.training.data import TooLittleDataError, TrainingData


@pytest.fixture
def tables_dir(tmp_path):
    synthetic.write_tables(tmp_path)
    return tmp_path


def make_config(directory, *, model=None, training=None, context=False) -> Config:
    """Make settings with `preset = "auto"` in which no other key of `model` and `training` is in the file."""
    settings = synthetic.make_config(directory).as_json()
    if context:
        settings["schema"]["interactions"]["context"] = {"time": {"kind": "numeric"}}
    return parse_config(settings | {"model": model or {}, "training": training or {}})


@pytest.mark.parametrize(
    ("changes", "candidates", "left_out"),
    [
        ({}, ["set", "pooled", "sequence"], {}),
        ({"model": {"dim": 32}}, ["set", "pooled", "sequence"], {}),
        ({"model": {"hidden": [8]}}, ["set", "pooled", "sequence"], {}),
        ({"model": {"history": {"length": 9}}}, ["set", "pooled", "sequence"], {}),
        (
            {"model": {"history": {"encoder": "attention"}}},
            ["pooled"],
            {"set": "encoder = 'attention' is given", "sequence": "encoder = 'attention' is given"},
        ),
        (
            {"model": {"history": {"encoder": "causal"}}},
            ["sequence"],
            {"set": "encoder = 'causal' is given", "pooled": "encoder = 'causal' is given"},
        ),
        (
            {"training": {"loss": "bce"}},
            ["pooled"],
            {"set": "is trained with a softmax loss", "sequence": "is trained with a softmax loss"},
        ),
        ({"context": True}, ["pooled", "sequence"], {"set": "cannot read the context of each"}),
        ({"model": {"dim": 9}}, ["set", "pooled"], {"sequence": "dim"}),  # 9 dimensions are not two models
    ],
)
def test_preset_that_cannot_take_a_key_of_the_file_is_left_out_and_named(tmp_path, changes, candidates, left_out):
    found, reasons = find_candidates(make_config(tmp_path, **changes))
    assert list(found) == candidates
    assert reasons.keys() == left_out.keys()
    assert all(text in reasons[preset] for preset, text in left_out.items())
    for preset, config in found.items():
        assert config.model.preset == preset
        for section in ("model", "training"):
            for key, value in changes.get(section, {}).items():
                chosen = config.as_json()[section][key]
                assert chosen == value if not isinstance(value, dict) else value.items() <= chosen.items()


def test_settings_that_no_preset_can_take_raise_with_each_reason(tmp_path):
    with pytest.raises(ConfigError, match=r"(?s)no preset .*set: .*pooled: .*sequence: "):
        find_candidates(make_config(tmp_path, model={"dim": 9, "history": {"encoder": "causal", "heads": 1}}))


class PlantedRunner:
    """In place of `TrialRunner`: writes planted scores instead of training, and keeps what it was asked for."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir, self.group = run_dir, None
        self.scores = {"set": 0.1, "pooled": 0.3}
        self.error: BaseException = KeyboardInterrupt()
        self.presets: list[str] = []
        self.samples: list[TrainingData] = []
        self.best_scores: list[float] = []
        self.seconds = 1.0

    def run(self, config: Config, data: TrainingData, cases: EvalCases, best_score: float) -> TrialRecord:
        assert len(cases) == synthetic.USERS
        score = self.scores.get(config.model.preset)
        if score is None:
            raise self.error
        self.presets.append(config.model.preset)
        self.samples.append(data)
        self.best_scores.append(best_score)
        trial = TrialRecord(
            preset=config.model.preset,
            settings={},
            users=1,
            interactions=1,
            metrics={f"{way}{name}": score for way in ("", "shuffled_") for name in ("score", "recall", "ndcg@10")},
            standard_error=0.0,
            seconds=self.seconds,
        )
        write_trial(trial, self.run_dir)
        return trial


@pytest.fixture
def runner(tmp_path):
    (tmp_path / "run" / SELECTION_DIR).mkdir(parents=True)
    return PlantedRunner(tmp_path / "run")


@pytest.fixture
def select(tables_dir, runner):
    """Function that selects with the planted runner."""
    dataset = synthetic.load_dataset(make_config(tables_dir))
    split = dataset.split(make_config(tables_dir).data)

    def run_selection(config=None):
        return resolve_preset(
            config or make_config(tables_dir), synthetic.make_training_data(), split, cast("TrialRunner", runner), None
        )

    return run_selection


def test_better_trial_wins_and_budget_and_choice_are_announced(select, runner, caplog):
    caplog.set_level("INFO")
    config = select()
    assert (config.model.preset, runner.presets) == ("pooled", ["set", "pooled"])
    assert caplog.messages[0].startswith('preset = "auto": choosing takes about 1 s; training the choice')
    assert caplog.messages[-1].startswith("  chosen: pooled: it finds the most, and the order of histories is worth")
    record = read_selection(runner.run_dir)
    assert (record.preset, record.parse_config()) == ("pooled", config)
    assert list(record.baselines) == ["popularity", "cooccurrence"]
    assert [trial.preset for trial in record.trials] == ["set", "pooled"]


def test_interrupted_selection_repeats_no_trial_that_has_ended(select, runner):
    runner.scores = {"set": 0.1}
    with pytest.raises(KeyboardInterrupt):
        select()
    assert read_selection(runner.run_dir) is None
    runner.scores = {"pooled": 0.3}
    assert select().model.preset == "pooled"
    assert runner.presets == ["set", "pooled"]


def test_preset_that_cannot_be_trained_is_left_out_and_named(select, runner):
    runner.error, runner.scores = TrainingError("too few items"), {"pooled": 0.3}
    assert select().model.preset == "pooled"
    assert read_selection(runner.run_dir).left_out == {"set": "too few items"}


class GroupOfOne:
    """Processes that train together, of which this is the only one."""

    rank, size, shares_memory = 0, 1, False

    def broadcast_object(self, value):
        return value


def test_of_several_processes_a_preset_is_left_out_only_for_what_all_of_them_find(select, runner):
    runner.group, runner.scores = GroupOfOne(), {"pooled": 0.3}
    runner.error = TrainingError("disk full")  # of this process alone, perhaps
    with pytest.raises(TrainingError, match="disk full"):
        select()
    runner.error = TooLittleDataError("too few items")
    assert select().model.preset == "pooled"
    assert read_selection(runner.run_dir).left_out == {"set": "too few items"}


def test_preset_that_does_not_fit_in_memory_is_left_out_and_named(select, runner, monkeypatch):
    def check(data, model, training, **options):
        if model.history.encoder == "set":
            raise TrainingError("needs 99 GiB")

    monkeypatch.setattr("vecall.pipeline.selection.check_training_memory", check)
    assert select().model.preset == "pooled"
    assert runner.presets == ["pooled"]
    assert read_selection(runner.run_dir).left_out == {"set": "needs 99 GiB"}


def test_what_trials_left_behind_is_deleted(select, runner):
    leftover = runner.run_dir / SELECTION_DIR / "set" / "last.ckpt"
    leftover.parent.mkdir()
    leftover.touch()
    select()
    assert not leftover.parent.exists()
    assert read_selection(runner.run_dir) is not None


def test_error_of_all_trials_is_raised(select, runner):
    runner.error, runner.scores = TrainingError("disk full"), {}
    with pytest.raises(TrainingError, match="disk full"):
        select()
    assert read_selection(runner.run_dir) is None


def test_finished_selection_is_not_repeated(select, runner):
    config = select()
    assert select() == config
    assert runner.presets == ["set", "pooled"]


def test_another_preset_and_a_single_candidate_need_no_trial(select, runner, tables_dir):
    pooled = make_config(tables_dir, model={"preset": "pooled"})
    assert select(pooled) is pooled
    assert read_selection(runner.run_dir) is None
    config = select(make_config(tables_dir, model={"history": {"encoder": "attention"}}))
    assert (config.model.preset, config.model.history.encoder) == ("pooled", "attention")
    assert read_selection(runner.run_dir).left_out.keys() == {"set", "sequence"}
    assert runner.presets == []


def test_minutes_limit_the_users_of_a_trial(select, runner, tables_dir, monkeypatch):
    """All trials get the same users, however long the first one took."""
    monkeypatch.setattr("vecall.pipeline.selection_plan._MIN_SAMPLE", 50)
    select(make_config(tables_dir, training={"minutes": 1e-6}))
    sample, other = runner.samples
    assert 0 < len(sample.histories.values) < 100  # of 300; 50 are expected
    assert len(sample.histories) == synthetic.USERS
    assert other is sample


def test_second_trial_knows_the_score_of_the_first(select, runner):
    select()
    assert runner.best_scores == [0.0, 0.1]


def test_announced_time_is_corrected_where_the_first_trial_takes_longer(select, runner, caplog):
    caplog.set_level("INFO")
    runner.seconds = 40.0
    select()
    assert "this machine is 1" in caplog.messages[1]
    assert "times slower than was assumed, or busy: choosing takes about" in caplog.messages[1]
    assert sum("slower than was assumed" in message for message in caplog.messages) == 1
    record = read_selection(runner.run_dir)
    assert any(f"{format_seconds(record.announced_seconds)} were announced" in message for message in caplog.messages)


def have_equal_weights(run: Run, other: Run) -> bool:
    weights, others = run.load_evaluated_model().state_dict(), other.load_evaluated_model().state_dict()
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


def write_sequences(directory, sequences: list[list[int]]) -> Config:
    """Write interactions alone, oldest first."""
    rows = [(user, item) for user, sequence in enumerate(sequences) for item in sequence]
    pl.DataFrame(rows, schema=["user", "item"], orient="row").write_csv(directory / "log.csv")
    ids = {"id": "id", "id_type": "integer"}
    return parse_config(
        {
            "data": {"interactions": str(directory / "log.csv")},
            "schema": {"interactions": {"user": "user", "item": "item"}, "items": ids, "users": ids},
            "index": {"ks": [10]},
            "evaluation": {"ks": [10]},
        }
    )


def make_unordered_sequences(rng: np.random.Generator) -> list[list[int]]:
    """Make users who each take items of three out of 40 groups of 10, in random order."""
    sequences = []
    for _ in range(600):
        groups = rng.choice(40, 3, replace=False)
        sequences.append(rng.permutation([10 * g + i for g in groups for i in rng.choice(10, 5, replace=False)]))
    return [sequence.tolist() for sequence in sequences]


def make_ordered_sequences(rng: np.random.Generator) -> list[list[int]]:
    """Make users who go up from item to item by 1 to 3, and jump anywhere now and then."""
    sequences = []
    for _ in range(600):
        items = [int(rng.integers(400))]
        while len(items) < 15:
            item = int(rng.integers(400)) if rng.random() < 0.3 else (items[-1] + int(rng.integers(1, 4))) % 400
            if item not in items:
                items.append(item)
        sequences.append(items)
    return sequences


@pytest.mark.examples
@pytest.mark.parametrize(
    ("make_sequences", "preset"), [(make_unordered_sequences, "set"), (make_ordered_sequences, "pooled")]
)
def test_planted_data_get_the_preset_that_suits_them_and_it_can_be_pinned(tmp_path, make_sequences, preset):
    """Through fit, pinning by chosen.toml, publish, evaluate and a warm start."""
    config = write_sequences(tmp_path, make_sequences(np.random.default_rng(0)))
    config = parse_config(config.as_json() | {"training": {"epochs": 3, "minutes": 0.5}})
    run = fit(config, tmp_path / "run")
    record = read_selection(tmp_path / "run")
    assert (record.preset, run.config) == (preset, record.parse_config())
    assert {path.name for path in (tmp_path / "run" / SELECTION_DIR).iterdir()} == {
        "set.json",
        "pooled.json",
        "choice.json",
        "chosen.toml",
    }
    for trial in record.trials:
        assert (trial.settings["model"]["dim"], trial.settings["training"]["epochs"]) in ((64, 3), (64, 2))
    assert [trial.metrics["score"] > trial.metrics["shuffled_score"] for trial in record.trials] == [
        False,
        preset == "pooled",
    ]

    chosen = tomllib.loads((tmp_path / "run" / SELECTION_DIR / "chosen.toml").read_text(encoding="utf-8"))
    pinned = fit(parse_config(config.as_json() | chosen), tmp_path / "pinned")
    assert have_equal_weights(run, pinned)
    assert run.summary.metrics == pinned.summary.metrics

    publish(tmp_path / "run", tmp_path / "store")
    open_release(Store.open(tmp_path / "store")).check_golden_queries()
    report = tmp_path / "report.html"
    result = cli.invoke("evaluate", "--run", tmp_path / "run", "--report", report)
    assert result.exit_code == 0, result.output
    assert f"chose <strong>{preset}</strong>" in report.read_text(encoding="utf-8")
    served, trained = evaluate(store=tmp_path / "store", config=config), evaluate(run=tmp_path / "run")
    assert served["model"]["seen_excluded"] == pytest.approx(trained["model"]["seen_excluded"], abs=0.01)

    again = fit(config, tmp_path / "again", init=tmp_path / "run")
    assert again.config.model == run.config.model
    assert read_selection(tmp_path / "again").reason == "the preset of the run that the weights come from"


@pytest.mark.examples
def test_interrupted_trial_and_training_resume_bit_equal(tmp_path, monkeypatch):
    config = write_sequences(tmp_path, make_ordered_sequences(np.random.default_rng(0)))
    config = parse_config(config.as_json() | {"training": {"epochs": 2}})
    complete = fit(config, tmp_path / "complete")
    for interrupted_call in ("vecall.pipeline.selection_trial.evaluate_scorer", "vecall.pipeline.fit.train"):
        with monkeypatch.context() as patch:
            patch.setattr(interrupted_call, lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                fit(config, tmp_path / "run")
    run = fit(config, tmp_path / "run")
    assert have_equal_weights(run, complete)
    with pytest.raises(ConfigError):
        parse_config(config.as_json() | {"model": {"dim": 1}})


@pytest.mark.examples
def test_two_processes_choose_together(tmp_path):
    config = write_sequences(tmp_path, make_unordered_sequences(np.random.default_rng(0)))
    config = parse_config(config.as_json() | {"training": {"epochs": 2, "devices": 2, "minutes": 0.5}})
    run = fit(config, tmp_path / "run")
    assert (run.config.model.preset, run.config.training.devices) == ("set", 2)
    assert [trial.preset for trial in read_selection(tmp_path / "run").trials] == ["set", "pooled"]
