"""The ranker of a run: trained and compared after the model, kept in RUN/ranker/."""

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

from vecall import progress
from vecall.channels.merge_plan import MergePlan
from vecall.config import Config
from vecall.data.dataset import Dataset
from vecall.data.ragged import EvalCases
from vecall.data.split import Split
from vecall.errors import ConfigError
from vecall.pipeline.channel_recall import ChannelRecaller, sample_scanned_cases
from vecall.pipeline.merge_tuning import is_copy_too_large
from vecall.pipeline.ranker_candidates import RecalledLists
from vecall.pipeline.ranker_training import RankerSummary, TrainedRanker, train_ranker
from vecall.ranking.features import select_features
from vecall.ranking.ranker_info import RankerInfo
from vecall.ranking.settings import RankingSettings
from vecall.release.ranker_io import save_ranker

RANKER_DIR = "ranker"  # in the run directory; only of a ranker that is kept
CANDIDATE_COUNT = 500  # as `/v1/recommend` recalls by default
_TOO_LARGE_REASON = "nothing was trained, since a copy of the item vectors would take more than 2 GiB"
_MAX_USERS = 20_000  # validation users whose lists are recalled


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


def fit_ranker(
    config: Config,
    dataset: Dataset,
    split: Split,
    build_recaller: Callable[[], ChannelRecaller],
    plan: MergePlan,
    run_dir: Path,
) -> RankerSummary | None:
    """Train a ranker on what recall returns to validation users, and write it to RUN/ranker/ if it is kept.

    Model and channels know the training part alone, so that the targets are new to recall, as in a request.

    Args:
        config: Settings.
        dataset: Items and users.
        split: Its validation users are split into those that are trained on and those that decide.
        build_recaller: Returns what asks the channels of the evaluated model.
        plan: How the channels are merged.
        run_dir: The run directory.

    Returns:
        The summary; None if no ranker is to be trained.
    """
    directory = run_dir / RANKER_DIR
    shutil.rmtree(directory, ignore_errors=True)  # of an interrupted run
    if config.ranking.ranker == "none":
        return None
    cases = sample_scanned_cases(split.valid, len(dataset.catalogue.items), _MAX_USERS)
    summary, trained = _train(config, dataset, cases, build_recaller, plan)
    progress.announce(f"ranker: {summary.info.name}; {summary.info.reason}")
    if trained is not None and summary.info.name != "none":
        directory.mkdir()
        save_ranker(trained.spec, trained.model_text, directory)
    return summary


def _train(
    config: Config,
    dataset: Dataset,
    cases: EvalCases,
    build_recaller: Callable[[], ChannelRecaller],
    plan: MergePlan,
) -> tuple[RankerSummary, TrainedRanker | None]:
    if not len(cases):
        return RankerSummary(info=RankerInfo(reason="there are no validation users to train on")), None
    if is_copy_too_large(config, dataset):
        return RankerSummary(info=RankerInfo(reason=_TOO_LARGE_REASON)), None
    recaller = build_recaller()
    queries = recaller.build_queries(cases, exclude_seen=True)
    lists = RecalledLists(recaller.snapshot, queries, cases.targets, plan, CANDIDATE_COUNT)
    catalogue = dataset.catalogue
    features = select_features(
        lists[0].columns.to_frame(), plan.channels, catalogue.item_attributes, catalogue.user_features, cases.context
    )
    return train_ranker(lists, features, config.training.seed)
