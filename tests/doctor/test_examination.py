"""`vecall doctor` from end to end: on a healthy run and its store nothing is above info; faults in them are found."""

import json
import shutil

import numpy as np
import polars as pl
import pytest
from support import cli, synthetic
from support.cli import run_json
from support.movielens import MOVIELENS_DIR

from vecall.config import parse_config
from vecall.doctor import examination
from vecall.doctor.examination import CHECKS, examine
from vecall.doctor.known_gaps import KnownGaps
from vecall.doctor.report_rows import build_finding_rows
from vecall.errors import ConfigError
from vecall.evaluation.report import FindingRow
from vecall.pipeline.evaluate import evaluate_run_or_store
from vecall.pipeline.publish_vectors import publish_vectors
from vecall.pipeline.run import Run


def list_serious(findings):
    return [finding for finding in findings if finding.level != "info"]


@pytest.fixture
def config(published):
    return synthetic.make_config(published)


def test_healthy_run_has_nothing_above_info(published):
    findings = examine(run=published / "run")
    assert list_serious(findings) == []
    assert {"own_protocol", "unexamined"} <= {finding.check for finding in findings}


def test_healthy_store_has_nothing_above_info(published, config):
    with_tables = examine(store=published / "store", config=config)
    assert list_serious(with_tables) == []
    alone = examine(store=published / "store")
    assert list_serious(alone) == []
    assert any("--config" in finding.message.en for finding in alone if finding.check == "unexamined")


def test_every_check_has_the_name_of_its_file():
    names = [check.__module__.rpartition(".")[2] for check in CHECKS]
    files = {path.stem for path in (examination.Path(examination.__file__).parent / "checks").glob("*.py")}
    assert sorted(names) == sorted(files - {"__init__"})
    for check in CHECKS:
        source = examination.Path(check.__code__.co_filename).read_text(encoding="utf-8")
        assert f'Finding("{check.__module__.rpartition(".")[2]}"' in source


@pytest.mark.parametrize("arguments", [{}, {"run": "a", "store": "b"}])
def test_neither_or_both_of_run_and_store_raise(arguments):
    with pytest.raises(ConfigError, match="either a run or a store"):
        examine(**arguments)


def test_command_prints_findings_in_both_languages(published):
    findings = json.loads(cli.invoke("doctor", "--run", published / "run", "--json").stdout)["findings"]
    assert [set(finding) for finding in findings] == [{"check", "level", "message", "value", "setting"}] * len(findings)
    chinese = cli.invoke("doctor", "--run", published / "run", "--lang", "zh").stdout
    assert "错误 0，警告 0" in chinese
    assert "own_protocol: 我们的评测口径" in chinese


def test_run_trained_on_other_tables_is_found(published, tmp_path):
    """The run's tables lose the last interaction of each user: what is held out now was trained on."""
    shutil.copytree(published, tmp_path / "copy")
    lines = (tmp_path / "copy" / "taken.csv").read_text().splitlines()
    kept = [line for line in lines if line.split(",")[2] not in ("3", "4", "5")]
    (tmp_path / "copy" / "taken.csv").write_text("\n".join(kept) + "\n")
    config = synthetic.make_config(tmp_path / "copy")
    findings = examine(run=tmp_path / "copy" / "run", config=config)
    [finding] = [finding for finding in findings if finding.check == "trained_on_test"]
    assert finding.level == "error"


def test_run_of_other_items_is_told(published, tmp_path):
    shutil.copytree(published, tmp_path / "copy")
    synthetic.write_tables(tmp_path / "copy", more_items=3)
    findings = examine(run=tmp_path / "copy" / "run", config=synthetic.make_config(tmp_path / "copy"))
    assert any("fit again" in finding.message.en for finding in findings if finding.check == "unexamined")


def test_tables_that_have_moved_on_are_found_beside_a_store(published, tmp_path):
    """Other interactions and features than those that were published."""
    synthetic.write_tables(tmp_path)
    items = (tmp_path / "items.csv").read_text().replace("kind 1", "kind 2").replace("Word3", "Word4 other")
    (tmp_path / "items.csv").write_text(items)
    log = pl.read_csv(tmp_path / "taken.csv")  # each user has the history of the next, who is of another group
    next_users = {f"user-{user}": f"user-{(user + 1) % synthetic.USERS}" for user in range(synthetic.USERS)}
    log.with_columns(pl.col("user").replace(next_users)).write_csv(tmp_path / "taken.csv")
    findings = examine(store=published / "store", config=synthetic.make_config(tmp_path))
    differing = [finding for finding in findings if finding.check == "served_vectors_differ"]
    assert len(differing) == 2
    assert "users" in differing[0].message.en
    assert "items" in differing[1].message.en


def test_settings_without_a_feature_of_the_release_leave_the_model_unmeasured(published, config):
    settings = config.as_json()
    settings["schema"]["items"]["features"].popitem()
    findings = examine(store=published / "store", config=parse_config(settings))
    unexamined = [finding.message.en for finding in findings if finding.check == "unexamined"]
    assert any("read features that the settings do not name" in message for message in unexamined)


def test_index_of_low_recall_is_found(published_with_index, published, config, monkeypatch):
    from vecall.index.hnsw import HnswIndex

    search = HnswIndex.search

    def search_badly(self, queries, k, **options):
        hits = search(self, queries, k, **options)
        rows = hits.rows.copy()
        rows[:, : k // 2] = -1
        return type(hits)(rows, np.where(rows < 0, -np.inf, hits.scores))

    monkeypatch.setattr(HnswIndex, "search", search_badly)
    for settings in (None, config):
        levels = {finding.check: finding.level for finding in examine(store=published_with_index, config=settings)}
        assert levels["ann_recall_low"] == "error"
        assert levels["index_tuned_elsewhere"] == "warning"


def test_baselines_of_the_run_and_of_an_evaluation_are_not_fitted_again(published):
    evaluation = evaluate_run_or_store(run=published / "run")
    measured = KnownGaps.from_evaluation(evaluation)
    recorded = KnownGaps.from_summary(Run.open(published / "run").summary)
    assert recorded.recall_key == measured.recall_key
    assert set(recorded.gaps) == set(measured.gaps) == {"popularity", "ease", "cooccurrence"}
    for name, gap in measured.gaps.items():
        result = evaluation.results[name].seen_excluded[measured.recall_key]
        assert gap.other_recall == pytest.approx(result)
        assert recorded.gaps[name].other_recall == pytest.approx(result)
        assert recorded.gaps[name].recall == pytest.approx(gap.recall)
    assert list_serious(examine(run=published / "run", evaluation=evaluation)) == []


def test_report_of_evaluate_has_the_findings(published, tmp_path):
    assert cli.invoke("evaluate", "--run", published / "run", "--report", tmp_path / "report.html").exit_code == 0
    assert "Findings of vecall doctor" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_rows_of_the_report_are_those_above_info(published):
    findings = examine(run=published / "run")
    assert build_finding_rows(findings) == []
    bad = [type(findings[0])("hubs", "error", findings[0].message, 1.0, "x"), *findings]
    assert build_finding_rows(bad) == [FindingRow("error", "hubs", findings[0].message.en, "x")]


def test_release_of_vectors_alone_is_examined(tmp_path):
    vectors = np.random.default_rng(0).standard_normal((200, 8)).astype(np.float32)
    publish_vectors(tmp_path / "store", [f"i{row}" for row in range(200)], vectors, queries=vectors[:20])
    assert list_serious(examine(store=tmp_path / "store")) == []


@pytest.mark.slow
def test_quickstart_of_movielens_has_nothing_above_info(tmp_path):
    run_json("quickstart", "--out", tmp_path / "out")
    arguments = (
        ("--run", tmp_path / "out" / "run"),
        ("--store", tmp_path / "out" / "store", "--config", MOVIELENS_DIR / "vecall.toml"),
    )
    for options in arguments:
        assert [finding for finding in run_json("doctor", *options)["findings"] if finding["level"] != "info"] == []
