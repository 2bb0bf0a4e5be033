"""A model that is below a baseline is never passed over in silence: in fit, publish and the report."""

import logging

import pytest
from support import cli, synthetic

from vecall import progress
from vecall.evaluation import baseline_memory
from vecall.pipeline import publish as publish_module
from vecall.pipeline.evaluate import evaluate_run_or_store
from vecall.pipeline.fit import fit
from vecall.pipeline.publish import publish
from vecall.pipeline.run import Run
from vecall.release.store import Store
from vecall.service.ui.release_cards import build_release_cards

BELOW = "is below that of ease, 1.000"


class LineRecorder:
    """Progress listener that keeps the lines of text."""

    def __init__(self):
        self.lines = []

    def start_task(self, task, total):
        return lambda steps=1, note="": None

    def stop_task(self):
        pass

    def write_line(self, text):
        self.lines.append(text)


@pytest.fixture(scope="module")
def tables_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tables")
    synthetic.write_tables(directory)
    return directory


@pytest.fixture(scope="module")
def untrained(tables_dir, tmp_path_factory):
    """A run whose model has learned next to nothing, with the warnings and lines of its fit."""
    recorder, records, run_dir = LineRecorder(), [], tmp_path_factory.mktemp("untrained") / "run"
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: records.append(record.getMessage())
    logging.getLogger("vecall").addHandler(handler)
    with progress.report_to(recorder):
        run = fit(synthetic.make_config(tables_dir, training={"epochs": 1, "lr": 1e-7}), run_dir)
    logging.getLogger("vecall").removeHandler(handler)
    return run, records, recorder.lines


def test_fit_says_what_it_read_and_warns_of_a_model_below_ease(untrained):
    run, warnings, lines = untrained
    assert lines[0] == "read 420 interactions, 360 of them positive, of 60 users and 36 items"
    assert lines[1] == "dropped or not evaluated: nothing"
    assert lines[3] == (
        "training: 240 positives of 60 users and 36 items; validation: 60 of 60 users; test: 60 of 60 users"
    )
    assert lines[4].startswith("baselines: popularity, EASE and co-occurrence of 240 positives, on 60 users")
    (warning,) = warnings
    assert BELOW in warning
    assert "model.preset" in warning
    assert run.summary.comparison.level == "below"
    assert run.summary.comparison.message in warning
    assert run.summary.baseline_notes[0].startswith("EASE has l2 = ")
    assert run.summary.data["training_positives"] == 240


def test_summary_holds_the_metrics_of_the_baselines_that_evaluate_has(untrained):
    run, _, _ = untrained
    assert list(run.summary.baselines) == ["ease", "cooccurrence", "popularity"]
    report = evaluate_run_or_store(run=run.directory)
    for name, metrics in run.summary.baselines.items():
        assert metrics == report.results[name].as_json()
    assert report.comparison == run.summary.comparison
    assert set(report.as_json()["segments"]) == {"user_age", "history_length", "item_popularity"}


class ExportStartedError(Exception):
    """The release would be written now."""


@pytest.fixture
def publish_up_to_export(monkeypatch, tmp_path, caplog):
    """Function that publishes a run up to the export of the towers, and returns the warnings before it."""

    def fail(*_):
        raise ExportStartedError

    def run_publish(run, **options):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="vecall"), pytest.raises(ExportStartedError):
            publish(run.directory, tmp_path / "store", **options)
        return [record.getMessage() for record in caplog.records if record.name.startswith("vecall")]

    monkeypatch.setattr(publish_module, "_export_encoder", fail)
    return run_publish


def test_publish_warns_of_a_model_below_ease_unless_it_is_allowed(untrained, publish_up_to_export):
    run, _, _ = untrained
    (warning,) = publish_up_to_export(run)
    assert BELOW in warning
    for text in ("model.preset", "vecall doctor", "--allow-worse"):
        assert text in warning
    assert publish_up_to_export(run, allow_worse=True) == []


def test_release_has_the_metrics_of_the_baselines_for_its_card(published):
    manifest = Store.open(published / "store").verify("tiny")
    assert set(manifest.metrics) == {"model", "ease", "cooccurrence", "popularity", "refit", "split"}
    (card,) = build_release_cards([manifest])
    assert card.metrics.references == ("popularity", "ease", "cooccurrence")


def test_report_and_console_say_that_the_model_is_below_ease(untrained, tmp_path):
    run, _, _ = untrained
    path = tmp_path / "report.html"
    result = cli.invoke("evaluate", "--run", run.directory, "--report", path)
    assert result.exit_code == 0, result.output
    assert BELOW in " ".join(result.stdout.split())
    assert "recall@10 by history_length" in result.stdout
    page = path.read_text("utf-8")
    assert page.index("<h1>") < page.index(BELOW) < page.index('<p class="lead">')


def test_trained_model_gives_no_warning(tables_dir, tmp_path, caplog, publish_up_to_export):
    config = synthetic.make_config(tables_dir, training={"epochs": 30, "patience": 30})
    with caplog.at_level(logging.WARNING, logger="vecall"):
        run = fit(config, tmp_path / "run")
    assert run.summary.comparison.level != "below"
    assert not caplog.records
    assert publish_up_to_export(run) == []


def test_baselines_that_do_not_fit_or_are_switched_off_are_left_out(tables_dir, tmp_path, monkeypatch):
    quick = {"training": {"epochs": 1}}
    off = fit(synthetic.make_config(tables_dir, evaluation={"baselines": False}, **quick), tmp_path / "off")
    assert (off.summary.baselines, off.summary.comparison) == ({}, None)
    monkeypatch.setattr(baseline_memory, "available_memory_bytes", lambda: 100)
    run = fit(synthetic.make_config(tables_dir, **quick), tmp_path / "run")
    assert list(run.summary.baselines) == ["popularity"]
    assert [note[:20] for note in run.summary.baseline_notes] == ["ease was skipped: EA", "cooccurrence was ski"]
    assert Run.open(tmp_path / "run").summary == run.summary
