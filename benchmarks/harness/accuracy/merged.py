"""The channels of a run and their merge on its test users, without the baselines that `evaluate` fits."""

from typing import Any

from vecall.data.dataset import read_dataset
from vecall.evaluation.sampling import select_test_cases
from vecall.pipeline.channel_evaluation import evaluate_channels
from vecall.pipeline.channel_recall import ChannelRecaller
from vecall.pipeline.exact_model import build_exact_model
from vecall.pipeline.run import Run


def measure_merged(run: Run) -> dict[str, Any]:
    """Return the keys `merged` and `channels` of `evaluate --json`, of the users whom the model is evaluated for.

    The vectors are searched exactly.
    """
    config = run.config
    dataset = read_dataset(config.data, config.schema_)
    split = dataset.split(config.data)
    model = run.load_evaluated_model()
    scorer = model.build_scorer(dataset, split)
    served_model = build_exact_model(scorer, dataset, reads_history=model.towers.reads_history)
    recaller = ChannelRecaller.build(config.channels, dataset, split, served_model)
    plan = recaller.restrict(run.summary.merge)
    cases = select_test_cases(split.test, len(dataset.catalogue.items))
    return evaluate_channels(recaller, cases, plan, config.evaluation.ks).as_json()
