"""The channels of a run and their merge on its test users, without the baselines that `evaluate` fits."""

from typing import Any

from vecall.data.dataset import read_dataset
from vecall.evaluation.sampling import sample_cases
from vecall.pipeline.channel_evaluation import evaluate_channels
from vecall.pipeline.channel_recall import ChannelRecaller
from vecall.pipeline.exact_model import build_exact_model
from vecall.pipeline.run import Run


def measure_merged(run: Run) -> dict[str, Any]:
    """Return the keys `merged` and `channels` of `evaluate --json`, of at most 10,000 users.

    Vectors are searched exactly. What is comparable with the merge is the channel `vector`, not the metrics of the
    model, which are of all users.
    """
    config = run.config
    dataset = read_dataset(config.data, config.schema_)
    split = dataset.split(config.data)
    model = run.load_evaluated_model()
    scorer = model.build_scorer(dataset, split)
    served_model = build_exact_model(scorer, dataset, reads_history=model.towers.reads_history)
    recaller = ChannelRecaller.build(config.channels, dataset, split, served_model)
    plan = recaller.restrict(run.summary.merge)
    return evaluate_channels(recaller, sample_cases(split.test), plan, config.evaluation.ks).as_json()
