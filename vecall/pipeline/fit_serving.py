"""What a run finds out for serving after the model is trained: tables, merge and ranker."""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

from vecall.channels.merge_plan import MergePlan
from vecall.channels.similar_plan import SimilarPlan
from vecall.config import Config
from vecall.data.dataset import Dataset
from vecall.data.split import Split
from vecall.evaluation.compare import ServedModel
from vecall.pipeline.channel_recall import ChannelRecaller
from vecall.pipeline.exact_model import build_exact_model
from vecall.pipeline.fit_ranker import fit_ranker
from vecall.pipeline.merge_tuning import tune_merge
from vecall.pipeline.ranker_training import RankerSummary
from vecall.pipeline.similar_tuning import tune_similar
from vecall.training.scoring import TowerScorer


def fit_serving(
    config: Config, dataset: Dataset, split: Split, scorer: TowerScorer, run_dir: Path
) -> tuple[SimilarPlan, MergePlan, RankerSummary | None]:
    """Find how a release builds and merges its channels, and train its ranker, by an exact search of the vectors.

    Args:
        config: Settings.
        dataset: Items and users.
        split: Its validation users decide; the channels' tables are built from its training part.
        scorer: The evaluated towers.
        run_dir: The run directory, which takes a ranker that is kept.
    """

    @cache
    def build_model() -> ServedModel:
        return build_exact_model(scorer, dataset, reads_history=config.model.history.encoder != "none")

    similar, merge, build_recaller = tune_channels(config, dataset, split, build_model)
    return similar, merge, fit_ranker(config, dataset, split, build_recaller, merge, run_dir)


def tune_channels(
    config: Config, dataset: Dataset, split: Split, build_model: Callable[[], ServedModel]
) -> tuple[SimilarPlan, MergePlan, Callable[[], ChannelRecaller]]:
    """Find how a release builds and merges its channels; return both, and what builds the channels found, once.

    Args:
        config: Settings.
        dataset: Items and users.
        split: As for `fit_serving`.
        build_model: Returns the evaluated model; not called if no channel is to be measured.
    """

    @cache
    def build_recaller(second_order: float) -> ChannelRecaller:
        return ChannelRecaller.build(config.channels.resolve_second_order(second_order), dataset, split, build_model())

    similar = tune_similar(config, dataset, split, build_recaller)
    build_chosen = partial(build_recaller, similar.second_order)
    return similar, tune_merge(config, dataset, split, build_chosen), build_chosen
