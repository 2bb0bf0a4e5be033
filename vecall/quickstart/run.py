"""The whole story on MovieLens, told in a few minutes: fit, publish, evaluate, recall, and a report."""

import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vecall import console
from vecall.config import parse_config
from vecall.data.dataset import Dataset, read_dataset
from vecall.data.split import Split
from vecall.errors import ConfigError
from vecall.evaluation.compare import EvaluationReport
from vecall.evaluation.evaluator import EvaluationResult, evaluate_scorer
from vecall.evaluation.report import ExampleUser
from vecall.evaluation.report_builder import write_evaluation_report
from vecall.pipeline.evaluate import evaluate_run_or_store
from vecall.pipeline.fit import fit
from vecall.pipeline.publish import publish
from vecall.pipeline.run import Run
from vecall.quickstart.movielens import build_dssm_config, build_settings, find_data_dir
from vecall.recall.query import Query
from vecall.recall.recaller import Recaller, open_recaller

logger = logging.getLogger(__name__)

# Three users for people to look at: a short, a middling and a long history.
_EXAMPLE_QUANTILES = (0.1, 0.5, 0.9)
_EXAMPLE_ITEMS = 10


@dataclass(frozen=True)
class QuickstartResult:
    """What the quickstart came to.

    Attributes:
        release: the published one.
        evaluation: of the model and its baselines, through the published release.
        dssm: the founding design's model, by the same protocol.
        examples: three users.
        report_path: where the page is.
        seconds_by_stage: of each stage.
    """

    release: str
    evaluation: EvaluationReport
    dssm: EvaluationResult
    examples: tuple[ExampleUser, ...]
    report_path: Path
    seconds_by_stage: Mapping[str, float]

    def as_json(self) -> dict[str, object]:
        """As `vecall quickstart --json` prints it: metrics with seen items excluded."""
        judged = self.evaluation.results
        names = ("model", "popularity", "ease", "cooccurrence")
        first = self.evaluation.ann_results[0]
        return {
            "release": self.release,
            **{name: judged[name].seen_excluded for name in names},
            "dssm": self.dssm.seen_excluded,
            "ann": {key: first.as_json()[key] for key in ("k", "recall", "p50_ms", "p99_ms", "engine")},
            "paths": dict(self.evaluation.route_counts),
            "report": str(self.report_path),
            "seconds": dict(self.seconds_by_stage),
        }

    def print_summary(self) -> None:
        """For people."""
        for example in self.examples:
            taken, recalled = example.history[::-1], example.recalled
            rows = [[*pair] for pair in zip(taken, recalled, strict=False)]
            console.print_table(f"\n{example.user}", ["watched, newest first", "recalled"], rows, align_left=True)
        models = {name: one.seen_excluded for name, one in self.evaluation.results.items()}
        shown = models | {"dssm": self.dssm.seen_excluded}
        console.print_metrics("\nmodel recall over all items, seen items excluded", shown)
        ann = self.evaluation.ann_results[0]
        console.out.print(
            f"\n{ann.engine}: ANN recall@{ann.k} {ann.recall:.4f}, one query {ann.p50_ms:.2f} ms (p50), "
            f"{ann.p99_ms:.2f} ms (p99)\n{self.evaluation.route_summary}\n"
            f"release {self.release}; report: {self.report_path}\n"
            + ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in self.seconds_by_stage.items())
        )


def run_quickstart(output_dir: Path, data_dir: Path | None = None) -> QuickstartResult:
    """Fit, publish, evaluate and recall on MovieLens; writes `out/{run,store,report.html}`.

    Args:
        output_dir: a folder of an earlier quickstart, which is replaced, or a new one.
        data_dir: folder with MovieLens' ratings.csv and movies.csv; None is the repository's copy.

    Raises:
        ConfigError: the data are not there, or `output_dir` holds something else.
    """
    config = parse_config(build_settings(find_data_dir(data_dir).resolve()))
    _clear_output_dir(output_dir)
    clock = _Stopwatch()
    run = fit(config, output_dir / "run")
    clock.lap("fit")
    release = publish(output_dir / "run", output_dir / "store")
    clock.lap("publish")
    dataset = read_dataset(config.data, config.schema_)
    split = dataset.split(config.data)
    dssm = _evaluate_dssm(run, dataset, split, output_dir / "dssm")
    clock.lap("founding model")
    assessment = evaluate_run_or_store(store=output_dir / "store", config=config)
    with open_recaller(output_dir / "store") as recaller:
        examples = _collect_examples(recaller, dataset)
    report = output_dir / "report.html"
    more = {"dssm": dssm}
    write_evaluation_report(
        report,
        assessment,
        title="vecall on MovieLens",
        epochs=run.read_epoch_metrics(),
        extra_results=more,
        examples=examples,
    )
    clock.lap("evaluate")
    return QuickstartResult(release, assessment, dssm, examples, report, clock.seconds_by_stage)


class _Stopwatch:
    def __init__(self) -> None:
        self.seconds_by_stage: dict[str, float] = {}
        self._last_lap_time = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds_by_stage[stage] = round(now - self._last_lap_time, 1)
        self._last_lap_time = now


def _clear_output_dir(output_dir: Path) -> None:
    """Delete an earlier quickstart, and nothing else."""
    ours = {"run", "store", "dssm", "report.html"}
    strange = {path.name for path in output_dir.iterdir()} - ours if output_dir.is_dir() else set()
    if strange or output_dir.is_file():
        raise ConfigError(f"{output_dir}: holds {sorted(strange) or 'a file'}, not a quickstart; choose another --out")
    shutil.rmtree(output_dir, ignore_errors=True)
    output_dir.mkdir(parents=True)


def _evaluate_dssm(main_run: Run, dataset: Dataset, split: Split, directory: Path) -> EvaluationResult:
    """The floor that every later model is compared with, judged on the same test."""
    config = build_dssm_config(dataset, split.train, main_run.config, directory)
    run = fit(config, directory / "run")
    own = read_dataset(config.data, config.schema_)
    return evaluate_scorer(
        run.load_evaluated_model().build_scorer(own, split), split.test, len(own.catalogue.items), config.evaluation.ks
    )


def _collect_examples(recaller: Recaller, dataset: Dataset) -> tuple[ExampleUser, ...]:
    histories = dataset.histories
    by_length = np.argsort(histories.lengths, kind="stable")
    titles = dataset.catalogue.item_attributes["title"]
    examples = []
    for share in _EXAMPLE_QUANTILES:
        row = int(by_length[int(share * (len(by_length) - 1))])
        user = dataset.catalogue.users.to_ids(np.array([row]))[0]
        recalled = recaller.candidates(Query(user_id=user, k=_EXAMPLE_ITEMS))["title"].to_list()
        taken = titles[histories[row][-_EXAMPLE_ITEMS:]].to_list()
        examples.append(ExampleUser(f"user {user}", tuple(taken), tuple(recalled)))
    return tuple(examples)
