"""How the channels are merged, found on validation users and kept only if it gains beyond noise.

The objective is recall at k, the smallest of `[index] ks` (of fewer than 10 k items a tenth of them), and recall at the
largest of them must not fall below that of vectors alone. Each channel is asked for k items, as by a request for k.

The search is a coordinate ascent from vectors alone over `WEIGHTS` of each channel, with reciprocal ranks and with
quotas. It chooses among some hundred plans, so the users that it saw cannot tell what the choice gains. The validation
users are therefore divided in two halves; what is found on either is evaluated on the other, and the gain over vectors
is that of all users by the plan of the half that they are not in. It is noise up to two standard errors of its mean,
paired over users. What is kept is found on all of them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vecall import progress
from vecall.arrays import Mask, Rows
from vecall.channels.merge_plan import VECTORS_ALONE, MergePlan
from vecall.channels.settings import CHANNEL_NAMES, ChannelName, ChannelsSettings
from vecall.config import Config
from vecall.data.dataset import Dataset
from vecall.data.ragged import EvalCases, RaggedArray
from vecall.data.split import Split
from vecall.evaluation.channel_metrics import select_targets
from vecall.evaluation.compare import ServedModel
from vecall.evaluation.metrics import compute_standard_error, limit_depth
from vecall.evaluation.sampling import sample_cases
from vecall.pipeline.channel_recall import ChannelRecaller
from vecall.pipeline.rank_table import RankTable

WEIGHTS = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0)  # of a channel, beside 1 of the vectors
NOISE_ERRORS = 2.0  # standard errors that a gain must exceed
MAX_SCANNED_PAIRS = 10**10  # users x items: fewer users are asked of a catalogue beyond a million items
_MIN_CASES = 1_000
_SEED = 0
_MAX_SWEEPS = 3
_MIN_GAIN = 1e-9  # rounding

Method = Literal["rrf", "quota"]
METHODS: tuple[Method, ...] = ("rrf", "quota")


def tune_merge(
    config: Config, dataset: Dataset, split: Split, build_served_model: Callable[[], ServedModel]
) -> MergePlan:
    """Return how a release of the model should merge its channels, and announce it.

    Args:
        config: Settings; weights that they give are taken as they are.
        dataset: Items and users.
        split: The channels' tables are built from its training part, and evaluated on its validation users.
        build_served_model: Returns the model and its index; not called if all channels are turned off.
    """
    if not any(getattr(config.channels, name, False) for name in CHANNEL_NAMES):
        return VECTORS_ALONE
    recaller = ChannelRecaller.build(config.channels, dataset, split, build_served_model())
    if config.channels.weights is not None:
        plan = _take_given_weights(config.channels, recaller.channels)
    elif recaller.channels == ("vector",):
        return VECTORS_ALONE
    else:
        n_items = len(dataset.catalogue.items)
        cases = sample_cases(sample_cases(split.valid), max(_MIN_CASES, MAX_SCANNED_PAIRS // n_items))
        ks = [limit_depth(n_items, k) for k in (min(config.index.ks), max(config.index.ks))]
        plan = find_plan(recaller, cases, (ks[0], ks[1]), config.channels.merge)
    progress.announce(f"merge: {plan}; {plan.reason}")
    return plan


def _take_given_weights(settings: ChannelsSettings, available: Sequence[ChannelName]) -> MergePlan:
    plan = MergePlan(method="quota" if settings.merge == "quota" else "rrf", weights=settings.weights or {})
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
        ks: Depth at which the plan is to be best, and the depth at which it must not be worse.
        merge: A method that is taken whatever it gains, or "auto".
    """
    n_items = recaller.snapshot.release.index.size
    n_new = len(select_targets(cases, n_items, exclude_seen=True).values)
    is_auto, methods, plan = merge == "auto", METHODS if merge == "auto" else (merge,), VECTORS_ALONE
    channels = [name for name in recaller.channels if name != "vector" and (name != "repeat" or not n_new)]
    if channels:
        users = _build_users(recaller, cases, ks, exclude_seen=n_new > 0)
        plan = _choose(users, plan, channels, methods, is_guarded=is_auto)
    if "repeat" in recaller.channels and 0 < n_new < len(cases.targets.values):
        users = _build_users(recaller, cases, ks, exclude_seen=False)
        plan = _choose(users, plan, ["repeat"], methods if len(plan.weights) == 1 else (plan.method,), is_guarded=True)
    return plan


class _Users:
    """The recall of any plan for n users, computed once per plan.

    Args:
        rankings: By channel [n, K] rows.
        targets: n lists of targets, none of them empty.
        ks: Depth at which a plan is to be best, and the depth at which it must not be worse.
    """

    def __init__(self, rankings: Mapping[ChannelName, Rows], targets: RaggedArray, ks: tuple[int, int]) -> None:
        self.ks = ks
        self._tables = [RankTable(rankings, k) for k in ks]
        self._targets = [table.locate(targets) for table in self._tables]
        self._recalls: dict[tuple[object, ...], NDArray[np.float64]] = {}
        self.count = len(targets)

    def compute_recalls(self, plan: MergePlan, *, is_deep: bool = False) -> NDArray[np.float64]:
        """Return [n] recall at the first of `ks`, or at the second."""
        key = is_deep, plan.method if len(plan.weights) > 1 else "", *plan.weights.items()
        if key not in self._recalls:
            self._recalls[key] = self._tables[is_deep].compute_recalls(plan, self._targets[is_deep])
        return self._recalls[key]


def _build_users(recaller: ChannelRecaller, cases: EvalCases, ks: tuple[int, int], *, exclude_seen: bool) -> _Users:
    """Ask the channels for the users who have a target that can be recalled."""
    targets = select_targets(cases, recaller.snapshot.release.index.size, exclude_seen=exclude_seen)
    indices = np.flatnonzero(targets.lengths)
    rankings = recaller.rank(cases.take(indices), max(ks), exclude_seen=exclude_seen)
    return _Users(rankings.rows, targets.take(indices), ks)


def _choose(
    users: _Users, base: MergePlan, channels: Sequence[ChannelName], methods: Sequence[Method], *, is_guarded: bool
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
    metric = f"recall@{users.ks[0]} of {users.count:,} validation users"
    before, after = (float(users.compute_recalls(plan).mean()) for plan in (base, found))
    if found == base:
        reason = f"no merge with {', '.join(channels)} has a higher {metric} than {before:.4f}"
        return base.model_copy(update={"reason": _join(base.reason, reason)})
    gain, noise, is_kept = _measure_gain(users, base, channels, methods)
    measured = f"{gain:+.4f} ± {noise:.4f} for users whom the weights were not chosen by"
    if is_guarded and not is_kept:
        reason = f"no merge gains more than noise: {found} has {after:.4f} {metric}, {base} {before:.4f}; {measured}"
        return base.model_copy(update={"reason": _join(base.reason, reason)})
    reason = f"{metric} {after:.4f}, {base} {before:.4f}; {measured}"
    return found.model_copy(update={"reason": _join(base.reason, reason)})


def _join(first: str, second: str) -> str:
    return f"{first}; {second}" if first else second


def _measure_gain(
    users: _Users, base: MergePlan, channels: Sequence[ChannelName], methods: Sequence[Method]
) -> tuple[float, float, bool]:
    """Return the gain over another plan, its noise, and whether it is beyond noise and not a loss at the larger k.

    Each half of the users is merged by what is found on the other one.
    """
    is_first = np.zeros(users.count, dtype=np.bool_)
    is_first[np.random.default_rng(_SEED).permutation(users.count)[: users.count // 2]] = True
    gains, deep_gains = np.zeros(users.count), np.zeros(users.count)
    for is_own in (is_first, ~is_first):
        plan = _search(users, ~is_own, base, channels, methods)
        for is_deep, values in ((False, gains), (True, deep_gains)):
            difference = users.compute_recalls(plan, is_deep=is_deep) - users.compute_recalls(base, is_deep=is_deep)
            values[is_own] = difference[is_own]
    noise, deep_noise = (NOISE_ERRORS * compute_standard_error(values) for values in (gains, deep_gains))
    return float(gains.mean()), noise, bool(gains.mean() > noise and deep_gains.mean() >= -deep_noise)


def _search(
    users: _Users, mask: Mask, base: MergePlan, channels: Sequence[ChannelName], methods: Sequence[Method]
) -> MergePlan:
    """Return the best plan by coordinate ascent from `base` on the users of a mask; `base` if none is better."""
    best, best_recall = base, users.compute_recalls(base)[mask].mean()
    min_deep_recall = users.compute_recalls(base, is_deep=True)[mask].mean()
    for method in methods:
        plan, recall = base, users.compute_recalls(base)[mask].mean()
        for _ in range(_MAX_SWEEPS):
            start = plan
            for name, weight in ((name, weight) for name in channels for weight in WEIGHTS):
                candidate = _set_weight(plan, name, weight, method)
                candidate_recall = users.compute_recalls(candidate)[mask].mean()
                if candidate_recall > recall + _MIN_GAIN and (
                    users.compute_recalls(candidate, is_deep=True)[mask].mean() >= min_deep_recall
                ):
                    plan, recall = candidate, candidate_recall
            if plan == start:
                break
        if recall > best_recall + _MIN_GAIN:
            best, best_recall = plan, recall
    return best


def _set_weight(plan: MergePlan, name: ChannelName, weight: float, method: Method) -> MergePlan:
    weights = {channel: plan.weights.get(channel, 0.0) for channel in CHANNEL_NAMES} | {name: weight}
    return MergePlan(method=method, weights={channel: value for channel, value in weights.items() if value})
