"""Whether the table of similar items also counts neighbours of neighbours, found on validation users.

Where most items were taken by few users, the lists of the table are short, and what was taken near their neighbours
fills them: on two such data sets the channel `similar` then recalls 5 and 30 % more at 100. Where items were taken by
many users, it drives out what was taken with the item itself: on MovieLens the channel loses a fifth.
"""

from collections.abc import Callable

import numpy as np

from vecall import progress
from vecall.channels.merge_plan import MergePlan
from vecall.channels.similar_plan import SimilarPlan
from vecall.config import Config
from vecall.data.dataset import Dataset
from vecall.data.split import Split
from vecall.evaluation.channel_metrics import select_targets
from vecall.evaluation.metrics import compute_standard_error
from vecall.pipeline.channel_recall import ChannelRecaller, sample_scanned_cases
from vecall.pipeline.merge_tuning import MAX_USERS, MIN_DECIDING_USERS, NOISE_ERRORS, is_copy_too_large
from vecall.pipeline.ranked_users import limit_depths, rank_users

TRIED_WEIGHT = 1.0  # of weights from 0.3 to 10 the best or near it on the data sets where any gained
MAX_TRIED_ITEMS = 1_000_000  # whose table takes 2 minutes on 2 cores, six times as long as without
_ALONE = MergePlan(weights={"similar": 1.0})


def tune_similar(
    config: Config, dataset: Dataset, split: Split, build_recaller: Callable[[float], ChannelRecaller]
) -> SimilarPlan:
    """Return how the table of similar items is to be built, and announce it if it was measured.

    Args:
        config: Settings; a weight that they give is taken as it is.
        dataset: Items and users.
        split: The channel is evaluated on its validation users, alone.
        build_recaller: Returns what asks the channels, given the weight of neighbours of neighbours.
    """
    if config.channels.similar is False:
        return SimilarPlan()
    if config.channels.similar.second_order != "auto":
        return SimilarPlan(second_order=config.channels.similar.second_order, reason="second_order of [channels]")
    if is_copy_too_large(config, dataset) or len(dataset.catalogue.items) > MAX_TRIED_ITEMS:
        return SimilarPlan(
            reason=f"neighbours of neighbours were not tried: of more than {MAX_TRIED_ITEMS:,} items, or 2 GiB of item "
            "vectors, building takes minutes; set similar.second_order in [channels]"
        )
    if "similar" not in build_recaller(0.0).channels:
        return SimilarPlan()
    plan = _measure(config, dataset, split, build_recaller)
    progress.announce(f"similar: {plan.reason}")
    return plan


def _measure(
    config: Config, dataset: Dataset, split: Split, build_recaller: Callable[[float], ChannelRecaller]
) -> SimilarPlan:
    n_items = len(dataset.catalogue.items)
    cases, ks = sample_scanned_cases(split.valid, n_items, MAX_USERS), limit_depths(config, n_items)
    has_new = len(select_targets(cases, n_items, exclude_seen=True).values) > 0
    n_users = np.count_nonzero(select_targets(cases, n_items, exclude_seen=has_new).lengths)
    if n_users < MIN_DECIDING_USERS:
        return SimilarPlan(
            reason=f"{n_users} validation users are too few to tell whether neighbours of neighbours gain, expected "
            f"{MIN_DECIDING_USERS}"
        )
    first, second = (
        rank_users(build_recaller(weight), cases, ks, exclude_seen=has_new, channels=["similar"])
        for weight in (0.0, TRIED_WEIGHT)
    )
    gains = second.compute_objective(_ALONE) - first.compute_objective(_ALONE)
    noise = NOISE_ERRORS * compute_standard_error(gains)
    is_kept = bool(gains.mean() > noise)
    recalls = ", ".join(
        f"recall@{k} {first.compute_recalls(_ALONE, k).mean():.4f} → {second.compute_recalls(_ALONE, k).mean():.4f}"
        for k in sorted(set(ks))
    )
    reason = (
        f"{'with' if is_kept else 'without'} neighbours of neighbours, which take the channel alone from {recalls}; of "
        f"{first.count:,} validation users recall over all k {gains.mean():+.4f} ± {noise:.4f}"
    )
    return SimilarPlan(second_order=TRIED_WEIGHT if is_kept else 0.0, reason=reason)
