"""End-to-end demo on MovieLens in a few minutes: fit, publish, evaluate, recall, and a report."""

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vecall.config import parse_config
from vecall.data.dataset import Dataset, read_dataset
from vecall.data.split import Split
from vecall.errors import ConfigError
from vecall.evaluation.baseline_evaluation import BASELINES
from vecall.evaluation.compare import EvaluationReport
from vecall.evaluation.evaluator import EvaluationResult, evaluate_scorer
from vecall.evaluation.report import ExampleUser
from vecall.evaluation.report_builder import write_evaluation_report
from vecall.pipeline.evaluate import evaluate_run_or_store
from vecall.pipeline.fit import fit
from vecall.pipeline.publish import publish
from vecall.pipeline.run import Run
from vecall.pipeline.selection_report import read_selection_section
from vecall.quickstart.movielens import build_dssm_config, build_settings, find_data_dir
from vecall.recall.query import Query
from vecall.recall.recaller import Recaller, open_recaller

_EXAMPLE_QUANTILES = (0.1, 0.5, 0.9)  # of the history length: a short, a median and a long history
_EXAMPLE_ITEMS = 10
_DSSM_DIR = "dssm"  # created first, so that it marks the output of a quickstart
_OUTPUT_NAMES = {"run", "store", _DSSM_DIR, "report.html"}


@dataclass(frozen=True)
class QuickstartResult:
    """Result of the quickstart.

    Attributes:
        release: Name of the published release.
        evaluation: Evaluation of the release and the baselines.
        dssm: Test metrics of the DSSM baseline, by the same protocol.
        examples: Histories and recalls of three users.
        report_path: Path of the HTML report.
        seconds_by_stage: Wall time of each stage.
    """

    release: str
    evaluation: EvaluationReport
    dssm: EvaluationResult
    examples: tuple[ExampleUser, ...]
    report_path: Path
    seconds_by_stage: Mapping[str, float]

    def as_json(self) -> dict[str, object]:
        """Return the object that `vecall quickstart --json` prints; metrics are those with seen items excluded."""
        results, channels = self.evaluation.results, self.evaluation.channels
        ann = self.evaluation.ann_results[0].as_json()
        return {
            "release": self.release,
            **{name: results[name].as_json()["seen_excluded"] for name in ("model", *BASELINES) if name in results},
            "merged": None if channels is None else channels.merged_as_json()["seen_excluded"],
            "dssm": self.dssm.as_json()["seen_excluded"],
            "ann": {key: ann[key] for key in ("k", "recall", "p50_ms", "p99_ms", "engine")},
            "paths": dict(self.evaluation.first_k_route_counts),
            "report": str(self.report_path),
            "seconds": dict(self.seconds_by_stage),
        }


def run_quickstart(output_dir: Path, data_dir: Path | None = None) -> QuickstartResult:
    """Fit, publish, evaluate and recall on MovieLens; writes `run`, `store`, `dssm` and `report.html`.

    Args:
        output_dir: A new directory, or that of an earlier quickstart, whose files are deleted.
        data_dir: Directory with MovieLens' ratings.csv and movies.csv; None for the copy in the repository.

    Raises:
        ConfigError: The data are not there, or `output_dir` holds other files.
    """
    config = parse_config(build_settings(find_data_dir(data_dir).resolve()))
    _clear_output_dir(output_dir)
    stopwatch = _Stopwatch()
    run = fit(config, output_dir / "run")
    stopwatch.lap("fit")
    release = publish(output_dir / "run", output_dir / "store")
    stopwatch.lap("publish")
    dataset = read_dataset(config.data, config.schema_)
    split = dataset.split(config.data)
    dssm = _evaluate_dssm(run, dataset, split, output_dir / _DSSM_DIR)
    stopwatch.lap("dssm")
    evaluation = evaluate_run_or_store(store=output_dir / "store", config=config)
    with open_recaller(output_dir / "store") as recaller:
        examples = _collect_examples(recaller, dataset)
    report_path = output_dir / "report.html"
    write_evaluation_report(
        report_path,
        evaluation,
        title="vecall on MovieLens",
        epochs=run.read_epoch_metrics(),
        extra_results={"dssm": dssm},
        examples=examples,
        selection=read_selection_section(run.directory),
    )
    stopwatch.lap("evaluate")
    return QuickstartResult(release, evaluation, dssm, examples, report_path, stopwatch.seconds_by_stage)


class _Stopwatch:
    def __init__(self) -> None:
        self.seconds_by_stage: dict[str, float] = {}
        self._last_lap_time = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds_by_stage[stage] = round(now - self._last_lap_time, 1)
        self._last_lap_time = now


def _clear_output_dir(output_dir: Path) -> None:
    """Delete the output of an earlier quickstart; refuse a directory that holds anything else."""
    names = {path.name for path in output_dir.iterdir()} if output_dir.is_dir() else set()
    is_own = not names or _DSSM_DIR in names  # a run and a store may be the user's own
    if output_dir.is_file() or names - _OUTPUT_NAMES or not is_own:
        raise ConfigError(
            f"{output_dir}: expected a new directory or that of an earlier quickstart, but it "
            f"{f'holds {sorted(names)[:5]}' if names else 'is a file'}; choose another --out"
        )
    for name in names - {_DSSM_DIR}:
        _delete(output_dir / name)
    _delete(output_dir / _DSSM_DIR)  # last, so that an interrupted deletion can be repeated
    (output_dir / _DSSM_DIR).mkdir(parents=True)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _evaluate_dssm(main_run: Run, dataset: Dataset, split: Split, directory: Path) -> EvaluationResult:
    """Fit the DSSM baseline and evaluate it on the test split of the main model."""
    config = build_dssm_config(dataset, split.train, main_run.config, directory)
    run = fit(config, directory / "run")
    dssm_dataset = read_dataset(config.data, config.schema_)
    scorer = run.load_evaluated_model().build_scorer(dssm_dataset, split)
    return evaluate_scorer(scorer, split.test, len(dssm_dataset.catalogue.items), config.evaluation.ks)


def _collect_examples(recaller: Recaller, dataset: Dataset) -> tuple[ExampleUser, ...]:
    histories = dataset.histories
    rows_by_length = np.argsort(histories.lengths, kind="stable")
    titles = dataset.catalogue.item_attributes["title"]
    examples = []
    for quantile in _EXAMPLE_QUANTILES:
        row = int(rows_by_length[int(quantile * (len(rows_by_length) - 1))])
        user_id = dataset.catalogue.users.to_ids(np.array([row]))[0]
        final_ids = recaller.recommend(Query(user_id=user_id), k=_EXAMPLE_ITEMS).ids
        final_titles = titles[dataset.catalogue.items.to_rows(final_ids)].to_list()
        history_titles = titles[histories[row][-_EXAMPLE_ITEMS:]].to_list()
        examples.append(ExampleUser(f"user {user_id}", tuple(history_titles), tuple(final_titles)))
    return tuple(examples)
