"""How the channels are merged, found on validation users and kept only if it gains beyond noise.

The objective is the mean recall of `RankedUsers`. At the smallest and the largest of `ks` no recall may be lost beyond
noise. Each channel is asked for as many items as that largest k, also by a request for fewer: what stands a little
below k in two rankings is what merging brings above it.

The search is a coordinate ascent from vectors alone over `WEIGHTS` of each channel, with reciprocal ranks and with
quotas. It chooses among some hundred plans, so the users that it saw cannot tell what the choice gains. The validation
users are therefore divided in two halves; what is found on either is evaluated on the other, and the gain over vectors
is that of all users by the plan of the half that they are not in. It is noise up to two standard errors of its mean,
paired over users. What is kept is found on all of them.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vecall import progress
from vecall.arrays import Mask
from vecall.channels.merge_plan import VECTORS_ALONE, MergePlan
from vecall.channels.settings import CHANNEL_NAMES, ChannelName, ChannelsSettings
from vecall.config import Config
from vecall.data.dataset import Dataset
from vecall.data.ragged import EvalCases
from vecall.data.split import Split
from vecall.evaluation.channel_metrics import select_targets
from vecall.evaluation.metrics import compute_standard_error
from vecall.pipeline.channel_recall import ChannelRecaller, sample_scanned_cases
from vecall.pipeline.ranked_users import RankedUsers, limit_depths, rank_users

WEIGHTS = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0)  # of a channel, beside 1 of the vectors
NOISE_ERRORS = 2.0  # standard errors that a gain must exceed
MAX_USERS = 5_000
MAX_COPIED_BYTES = 2**31  # item vectors that are copied for the search; the towers are still in memory
_BYTES_PER_NUMBER = 2
_TOO_LARGE_REASON = (
    "nothing was measured, since a copy of the item vectors would take more than 2 GiB; give merge and weights in "
    "[channels] to merge"
)
MIN_DECIDING_USERS = 50  # of fewer, an estimate of the noise is itself noise
_SEED = 0
_MAX_SWEEPS = 3
_MIN_GAIN = 1e-9  # rounding

Method = Literal["rrf", "quota"]
METHODS: tuple[Method, ...] = ("rrf", "quota")


def tune_merge(
    config: Config, dataset: Dataset, split: Split, build_recaller: Callable[[], ChannelRecaller]
) -> MergePlan:
    """Return how a release of the model should merge its channels, and announce it.

    Args:
        config: Settings; weights that they give are taken as they are.
        dataset: Items and users.
        split: The channels are evaluated on its validation users.
        build_recaller: Returns what asks the channels; not called if all of them are turned off.
    """
    if not any(getattr(config.channels, name, False) for name in CHANNEL_NAMES):
        return VECTORS_ALONE
    n_items = len(dataset.catalogue.items)
    if is_copy_too_large(config, dataset):
        if config.channels.weights is None:
            plan = VECTORS_ALONE.model_copy(update={"reason": _TOO_LARGE_REASON})
        else:  # `publish` leaves out the channels for which there are no data
            plan = _use_configured_weights(config.channels, CHANNEL_NAMES)
        progress.announce(f"merge: {plan}; {plan.reason}")
        return plan
    recaller = build_recaller()
    if config.channels.weights is not None:
        plan = _use_configured_weights(config.channels, recaller.channels)
    elif recaller.channels == ("vector",):
        return VECTORS_ALONE
    else:
        cases = sample_scanned_cases(split.valid, n_items, MAX_USERS)
        plan = find_plan(recaller, cases, limit_depths(config, n_items), config.channels.merge)
    progress.announce(f"merge: {plan}; {plan.reason}")
    return plan


def is_copy_too_large(config: Config, dataset: Dataset) -> bool:
    """Whether a copy of all item vectors, beside the towers, would take more than `MAX_COPIED_BYTES`."""
    return len(dataset.catalogue.items) * config.model.dim * _BYTES_PER_NUMBER > MAX_COPIED_BYTES


def _use_configured_weights(settings: ChannelsSettings, available: Sequence[ChannelName]) -> MergePlan:
    configured = settings.weights or {}
    # In the order in which they are asked.
    weights = {name: configured[name] for name in CHANNEL_NAMES if name in configured}
    plan = MergePlan(method="quota" if settings.merge == "quota" else "rrf", weights=weights)
    missing = [name for name in plan.weights if name not in available]
    reason = "weights of [channels]"
    if missing:
        reason += f", without {', '.join(missing)}, for which there are no data"
    return plan.restrict(available).model_copy(update={"reason": reason})


def find_plan(
    recaller: ChannelRecaller, cases: EvalCases, ks: tuple[int, int], merge: Literal["auto", "rrf", "quota"] = "auto"
) -> MergePlan:
    """Find the plan on validation users.

    Channels are chosen with seen items excluded, as they are by default; then `repeat`, which recalls nothing but seen
    ones, with these included. If no user has a target outside the history, all are chosen with seen items included.

    Args:
        recaller: Asks the channels.
        cases: The users.
        ks: Smallest and largest depth of interest.
        merge: A method that is taken whatever it gains, or "auto".
    """
    n_items = recaller.snapshot.release.vectors.size
    n_new = len(select_targets(cases, n_items, exclude_seen=True).values)
    is_auto, methods, plan = merge == "auto", METHODS if merge == "auto" else (merge,), VECTORS_ALONE
    channels = [name for name in recaller.channels if name != "vector" and (name != "repeat" or not n_new)]
    if channels:
        users = rank_users(recaller, cases, ks, exclude_seen=n_new > 0)
        plan = _choose(users, plan, channels, methods, is_guarded=is_auto)
    if "repeat" in recaller.channels and 0 < n_new < len(cases.targets.values):
        users = rank_users(recaller, cases, ks, exclude_seen=False)
        plan = _choose(users, plan, ["repeat"], methods if len(plan.weights) == 1 else (plan.method,), is_guarded=True)
    return plan


def _choose(
    users: RankedUsers, base: MergePlan, channels: Sequence[ChannelName], methods: Sequence[Method], *, is_guarded: bool
) -> MergePlan:
    """Return the best plan that adds channels to another one, or that one, with the reason.

    Args:
        users: The users.
        base: The plan to be compared with.
        channels: Those that may be added.
        methods: Those that are tried.
        is_guarded: Whether a gain within noise is not taken.
    """
    found = _search(users, np.ones(users.count, dtype=np.bool_), base, channels, methods)
    if found == base:
        reason = f"no merge with {', '.join(channels)} is better for {users.count:,} validation users"
        return base.model_copy(update={"reason": _join(base.reason, reason)})
    recalls = ", ".join(
        f"recall@{k} {users.compute_recalls(base, k).mean():.4f} → {users.compute_recalls(found, k).mean():.4f}"
        for k in sorted(set(users.ks))
    )
    if is_guarded and users.count < MIN_DECIDING_USERS:
        reason = f"{users.count} validation users are too few to tell a gain from noise, expected {MIN_DECIDING_USERS}"
        return base.model_copy(update={"reason": _join(base.reason, reason)})
    gain, noise, is_kept = _measure_gain(users, base, channels, methods)
    seen = "" if users.exclude_seen else ", seen items included,"
    measured = (
        f"of {users.count:,} validation users{seen} {recalls}, recall over all k {gain:+.4f} ± {noise:.4f} for users "
        "whom the weights were not chosen by"
    )
    if is_guarded and not is_kept:
        reason = f"no merge gains more than noise; {found}: {measured}"
        return base.model_copy(update={"reason": _join(base.reason, reason)})
    return found.model_copy(update={"reason": _join(base.reason, measured), "depth": max(users.ks)})


def _join(first: str, second: str) -> str:
    return f"{first}; {second}" if first else second


def _measure_gain(
    users: RankedUsers, base: MergePlan, channels: Sequence[ChannelName], methods: Sequence[Method]
) -> tuple[float, float, bool]:
    """Return the gain over another plan, its noise, and whether it is beyond noise and no loss beyond noise at `ks`.

    Each half of the users is merged by what is found on the other one.
    """
    is_first = np.zeros(users.count, dtype=np.bool_)
    is_first[np.random.default_rng(_SEED).permutation(users.count)[: users.count // 2]] = True
    plans = [_search(users, mask, base, channels, methods) for mask in (~is_first, is_first)]

    def measure(compute: Callable[[MergePlan], NDArray[np.float64]]) -> tuple[float, float]:
        gains = np.where(is_first, compute(plans[0]), compute(plans[1])) - compute(base)
        return float(gains.mean()), NOISE_ERRORS * compute_standard_error(gains)

    gain, noise = measure(users.compute_objective)
    by_k = [measure(partial(users.compute_recalls, k=k)) for k in users.ks]
    return gain, noise, gain > noise and all(k_gain >= -k_noise for k_gain, k_noise in by_k)


def _search(
    users: RankedUsers, mask: Mask, base: MergePlan, channels: Sequence[ChannelName], methods: Sequence[Method]
) -> MergePlan:
    """Return the best plan by coordinate ascent from `base` on the users of a mask; `base` if none is better."""
    best = base
    best_value = base_value = users.compute_objective(base)[mask].mean()
    for method in methods:
        plan, value = base, base_value
        for _ in range(_MAX_SWEEPS):
            start = plan
            for name, weight in ((name, weight) for name in channels for weight in WEIGHTS):
                candidate = _set_weight(plan, name, weight, method)
                candidate_value = users.compute_objective(candidate)[mask].mean()
                if candidate_value > value + _MIN_GAIN:
                    plan, value = candidate, candidate_value
            if plan == start:
                break
        if value > best_value + _MIN_GAIN:
            best, best_value = plan, value
    return best


def _set_weight(plan: MergePlan, name: ChannelName, weight: float, method: Method) -> MergePlan:
    weights = {channel: plan.weights.get(channel, 0.0) for channel in CHANNEL_NAMES} | {name: weight}
    return MergePlan(method=method, weights={channel: value for channel, value in weights.items() if value})
