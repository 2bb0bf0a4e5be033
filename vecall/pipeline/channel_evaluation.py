"""Evaluation of the channels and of their merge on the test users: `merged` and `channels` of `vecall evaluate`."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from vecall.channels.merge_plan import MergePlan
from vecall.channels.settings import ChannelName, ChannelsSettings
from vecall.data.dataset import Dataset
from vecall.data.ragged import EvalCases
from vecall.data.split import Split
from vecall.evaluation.channel_metrics import (
    ChannelEvaluation,
    ChannelResult,
    compute_channel_metrics,
    compute_merged_metrics,
    select_targets,
)
from vecall.evaluation.compare import EvaluationReport, ServedModel
from vecall.evaluation.evaluator import TOP_LIST_K, Metrics
from vecall.evaluation.sampling import describe_users, sample_cases, select_test_cases
from vecall.pipeline.channel_recall import ChannelRankings, ChannelRecaller
from vecall.pipeline.rank_table import RankTable


def add_channels(
    report: EvaluationReport,
    settings: ChannelsSettings,
    plan: MergePlan,
    dataset: Dataset,
    split: Split,
    served_model: ServedModel,
    ks: Sequence[int],
) -> EvaluationReport:
    """Return an evaluation with that of the channels and of their merge, on at most 10,000 of its users.

    The channels' tables are built from the training part, those of a release, too: the release's own have the test.

    Args:
        report: The evaluation of the model.
        settings: The channels.
        plan: How they are merged; channels that the data do not allow are left out.
        dataset: Items and users.
        split: Its test cases are evaluated.
        served_model: The model and its index.
        ks: Depths of recall.
    """
    cases = sample_cases(select_test_cases(split.test, len(dataset.catalogue.items)))
    recaller = ChannelRecaller.build(settings, dataset, split, served_model)
    note = (
        f"Channels were built from the training part alone and asked as a service asks them, for "
        f"{describe_users(len(cases), len(split.test)).removesuffix(',')}; `merged` is {recaller.restrict(plan)}."
    )
    channels = evaluate_channels(recaller, cases, recaller.restrict(plan), ks, note)
    channels = dataclasses.replace(channels, is_sample=len(cases) < report.results["model"].evaluated_user_count)
    return dataclasses.replace(report, channels=channels, protocol=(*report.protocol, note))


def evaluate_channels(
    recaller: ChannelRecaller, cases: EvalCases, plan: MergePlan, ks: Sequence[int], note: str = ""
) -> ChannelEvaluation:
    """Evaluate every channel alone, beside the vectors, and the merge.

    Args:
        recaller: Asks the channels.
        cases: Users to evaluate.
        plan: How the channels are merged.
        ks: Depths of recall.
        note: Sentence for the protocol.
    """
    excluded, included = (_measure(recaller, cases, plan, ks, exclude_seen=exclude) for exclude in (True, False))
    results = {}
    for name, milliseconds in excluded[0].milliseconds.items():
        p50, p99 = np.percentile(milliseconds, [50, 99])
        results[name] = ChannelResult(
            excluded[2][name], included[2][name], float(p50), float(p99), plan.weights.get(name)
        )
    return ChannelEvaluation(plan, (excluded[1], included[1]), results, note)


def _measure(
    recaller: ChannelRecaller, cases: EvalCases, plan: MergePlan, ks: Sequence[int], *, exclude_seen: bool
) -> tuple[ChannelRankings, Metrics, Mapping[ChannelName, Metrics]]:
    """Return the rankings, the metrics of their merge, and those of each channel."""
    n_items = recaller.snapshot.release.vectors.size
    depths = sorted({min(k, n_items) for k in (*ks, TOP_LIST_K)})
    rankings = recaller.rank(cases, min(plan.get_channel_k(depths[-1]), n_items), exclude_seen=exclude_seen)
    targets = select_targets(cases, n_items, exclude_seen=exclude_seen)
    merged, rows_to_merge = {}, rankings.select_rows_to_merge(plan)
    for k in depths:
        channel_k = plan.get_channel_k(k)
        merged[k] = RankTable({name: rows[:, :channel_k] for name, rows in rows_to_merge.items()}).merge(plan, k)
    channels = {
        name: compute_channel_metrics(rows, rankings.rows["vector"], targets, n_items, ks)
        for name, rows in rankings.rows.items()
    }
    return rankings, compute_merged_metrics(merged, targets, n_items, ks), channels
