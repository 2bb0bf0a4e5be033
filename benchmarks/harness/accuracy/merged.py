"""The channels of a run and their merge on its test users, without the baselines that `evaluate` fits."""

from functools import cache
from typing import Any

from vecall.data.dataset import read_dataset
from vecall.evaluation.sampling import sample_cases
from vecall.pipeline.channel_evaluation import evaluate_channels
from vecall.pipeline.channel_recall import ChannelRecaller
from vecall.pipeline.exact_model import build_exact_model
from vecall.pipeline.merge_tuning import tune_merge
from vecall.pipeline.run import Run
from vecall.pipeline.similar_tuning import tune_similar


def measure_merged(run: Run) -> dict[str, Any]:
    """Return the keys `merged` and `channels` of `evaluate --json`, of at most 10,000 users, and `similar`.

    Vectors are searched exactly. What is comparable with the merge is the channel `vector`, not the metrics of the
    model, which are of all users. What `fit` finds on validation is found again: a run that was kept may be older than
    the code that finds it.
    """
    config = run.config
    dataset = read_dataset(config.data, config.schema_)
    split = dataset.split(config.data)
    model = run.load_evaluated_model()
    scorer = model.build_scorer(dataset, split)
    served_model = build_exact_model(scorer, dataset, reads_history=model.towers.reads_history)

    @cache
    def build_recaller(second_order: float) -> ChannelRecaller:
        return ChannelRecaller.build(config.channels.resolve_second_order(second_order), dataset, split, served_model)

    similar = tune_similar(config, dataset, split, build_recaller)
    recaller = build_recaller(similar.second_order)
    plan = tune_merge(config, dataset, split, lambda: recaller)
    evaluation = evaluate_channels(recaller, sample_cases(split.test), plan, config.evaluation.ks)
    return evaluation.as_json() | {"similar": similar.model_dump()}
