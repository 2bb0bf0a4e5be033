"""The channels of a run and their merge on its test users, without the baselines that `evaluate` fits."""

from typing import Any

from vecall.data.dataset import read_dataset
from vecall.evaluation.sampling import sample_cases
from vecall.pipeline.channel_evaluation import evaluate_channels
from vecall.pipeline.exact_model import build_exact_model
from vecall.pipeline.fit_serving import tune_channels
from vecall.pipeline.run import Run


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

    similar, plan, build_recaller = tune_channels(config, dataset, split, lambda: served_model)
    evaluation = evaluate_channels(build_recaller(), sample_cases(split.test), plan, config.evaluation.ks)
    return evaluation.as_json() | {"similar": similar.model_dump()}
