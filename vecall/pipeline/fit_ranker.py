"""The ranker of a run: trained and compared after the model, kept in RUN/ranker/."""

import importlib.util
import shutil
from pathlib import Path

import polars as pl

from vecall import progress
from vecall.errors import ConfigError
from vecall.pipeline.ranker_candidates import RecalledLists
from vecall.pipeline.ranker_training import RankerSummary, train_ranker
from vecall.ranking.features import select_features
from vecall.ranking.settings import RankingSettings
from vecall.release.ranker_io import save_ranker

RANKER_DIR = "ranker"  # in the run directory; only of a ranker that is kept
CANDIDATE_COUNT = 500  # as `/v1/recommend` recalls by default
MAX_USERS = 20_000  # validation users whose lists are recalled


def check_ranker_installed(settings: RankingSettings) -> None:
    """Check that the package of the ranker is installed.

    Raises:
        ConfigError: It is not; the message names the command that installs it.
    """
    if settings.ranker == "lightgbm" and importlib.util.find_spec("lightgbm") is None:
        raise ConfigError(
            "ranking.ranker: 'lightgbm' requires lightgbm: run pip install 'vecall[ranking]', or set ranking.ranker to "
            "'none'"
        )


def fit_ranker(lists: RecalledLists, user_features: pl.DataFrame, run_dir: Path, *, seed: int) -> RankerSummary:
    """Train a ranker on what recall returned, decide whether it is kept, and write it to RUN/ranker/ if it is.

    Args:
        lists: Of at least one validation user.
        user_features: [U] rows with a column per user feature.
        run_dir: The run directory.
        seed: Of the split of the users and of the training.
    """
    example, attributes = lists[0].build_table(), lists.snapshot.release.attributes
    features = select_features(example, lists.plan.channels, attributes, user_features)
    summary, trained = train_ranker(lists, features, seed)
    progress.announce(f"ranker: {summary.info.name}; {summary.info.reason}")
    directory = run_dir / RANKER_DIR
    shutil.rmtree(directory, ignore_errors=True)  # of an interrupted run
    if trained is not None and summary.info.name != "none":
        directory.mkdir()
        save_ranker(trained.spec, trained.model_text, directory)
    return summary
