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
from vecall.pipeline.evaluate import assess_run_or_store
from vecall.pipeline.fit import fit
from vecall.pipeline.publish import publish
from vecall.pipeline.run import Run
from vecall.quickstart.movielens import data_folder, founding_config, sections
from vecall.recall.query import Query
from vecall.recall.recaller import Recaller, open_recaller

logger = logging.getLogger(__name__)

# Three users for people to look at: a short, a middling and a long history.
_SHOWN_SHARES = (0.1, 0.5, 0.9)
_SHOWN_ITEMS = 10


@dataclass(frozen=True)
class Story:
    """What the quickstart came to.

    Attributes:
        release: the published one.
        assessment: of the model and its baselines, through the published release.
        founding: the founding design's model, by the same protocol.
        examples: three users.
        report: where the page is.
        seconds: of each stage.
    """

    release: str
    assessment: EvaluationReport
    founding: EvaluationResult
    examples: tuple[ExampleUser, ...]
    report: Path
    seconds: Mapping[str, float]

    def as_json(self) -> dict[str, object]:
        """As `vecall quickstart --json` prints it: metrics with seen items excluded."""
        judged = self.assessment.results
        names = ("model", "popularity", "ease", "cooccurrence")
        first = self.assessment.ann_results[0]
        return {
            "release": self.release,
            **{name: judged[name].seen_excluded for name in names},
            "founding_bce": self.founding.seen_excluded,
            "ann": {key: first.as_json()[key] for key in ("k", "recall", "p50_ms", "p99_ms", "engine")},
            "paths": dict(self.assessment.route_counts),
            "report": str(self.report),
            "seconds": dict(self.seconds),
        }

    def show(self) -> None:
        """For people."""
        for example in self.examples:
            taken, recalled = example.history[::-1], example.recalled
            rows = [[*pair] for pair in zip(taken, recalled, strict=False)]
            console.show_table(f"\n{example.user}", ["watched, newest first", "recalled"], rows, left=True)
        models = {name: one.seen_excluded for name, one in self.assessment.results.items()}
        shown = models | {"founding_bce": self.founding.seen_excluded}
        console.show_metrics("\nmodel recall over all items, seen items excluded", shown)
        ann = self.assessment.ann_results[0]
        console.out.print(
            f"\n{ann.engine}: ANN recall@{ann.k} {ann.recall:.4f}, one query {ann.p50_ms:.2f} ms (p50), "
            f"{ann.p99_ms:.2f} ms (p99)\n{self.assessment.route_summary}\n"
            f"release {self.release}; report: {self.report}\n"
            + ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in self.seconds.items())
        )


def tell(out: Path, data: Path | None = None) -> Story:
    """Fit, publish, evaluate and recall on MovieLens; writes `out/{run,store,report.html}`.

    Args:
        out: a folder of an earlier quickstart, which is replaced, or a new one.
        data: folder with MovieLens' ratings.csv and movies.csv; None is the repository's copy.

    Raises:
        ConfigError: the data are not there, or `out` holds something else.
    """
    config = parse_config(sections(data_folder(data).resolve()))
    _clear(out)
    clock = _Clock()
    run = fit(config, out / "run")
    clock.lap("fit")
    release = publish(out / "run", out / "store")
    clock.lap("publish")
    dataset = read_dataset(config.data, config.schema_)
    split = dataset.split(config.data)
    founding = _founding_floor(run, dataset, split, out / "founding")
    clock.lap("founding model")
    assessment = assess_run_or_store(store=out / "store", config=config)
    with open_recaller(out / "store") as recaller:
        examples = _examples(recaller, dataset)
    report = out / "report.html"
    more = {"founding_bce": founding}
    write_evaluation_report(report, assessment, title="vecall on MovieLens", epochs=run.epochs(), extra_results=more, examples=examples)
    clock.lap("evaluate")
    return Story(release, assessment, founding, examples, report, clock.laps)


class _Clock:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.laps[stage] = round(now - self._last, 1)
        self._last = now


def _clear(out: Path) -> None:
    """Delete an earlier quickstart, and nothing else."""
    ours = {"run", "store", "founding", "report.html"}
    strange = {path.name for path in out.iterdir()} - ours if out.is_dir() else set()
    if strange or out.is_file():
        raise ConfigError(f"{out}: holds {sorted(strange) or 'a file'}, not a quickstart; choose another --out")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)


def _founding_floor(main: Run, dataset: Dataset, split: Split, folder: Path) -> EvaluationResult:
    """The floor that every later model is compared with, judged on the same test."""
    config = founding_config(dataset, split.train, main.config, folder)
    run = fit(config, folder / "run")
    own = read_dataset(config.data, config.schema_)
    return evaluate_scorer(run.judged_model().scorer(own, split), split.test, len(own.catalogue.items), config.evaluation.ks)


def _examples(recaller: Recaller, dataset: Dataset) -> tuple[ExampleUser, ...]:
    histories = dataset.histories
    by_length = np.argsort(histories.lengths, kind="stable")
    titles = dataset.catalogue.item_attributes["title"]
    examples = []
    for share in _SHOWN_SHARES:
        row = int(by_length[int(share * (len(by_length) - 1))])
        user = dataset.catalogue.users.to_ids(np.array([row]))[0]
        recalled = recaller.candidates(Query(user_id=user, k=_SHOWN_ITEMS))["title"].to_list()
        taken = titles[histories[row][-_SHOWN_ITEMS:]].to_list()
        examples.append(ExampleUser(f"user {user}", tuple(taken), tuple(recalled)))
    return tuple(examples)
