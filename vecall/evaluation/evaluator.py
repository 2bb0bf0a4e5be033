"""Evaluation of a scorer by full ranking over all items, with seen items excluded and included."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import Mask, Rows, Scores
from vecall.data.ragged import EvalCases, RaggedArray
from vecall.errors import DataError
from vecall.evaluation.metrics import Ranks, coverage_at_k, ndcg_at_k, rank_targets, recall_at_k, select_top_rows

Scorer = Callable[[EvalCases], Scores]
"""Scores of all N items for a batch of cases: float32 [B, N], larger is better, no NaN."""

Metrics = dict[str, float]

TOP_LIST_K = 10  # depth of ndcg and coverage
SAMPLE_TOP_K = 100  # best rows kept per sampled user
RANDOM_ITEMS_PER_USER = 20  # random items drawn per sampled user, whose scores are kept if unseen


@dataclass(frozen=True)
class UserSample:
    """Rankings and scores of a random sample of S users, for plots.

    Attributes:
        case_indices: [S] indices of the sampled cases, ascending.
        top_rows: [S, 100] best unseen rows, best first; padded with -1 if a user has fewer.
        target_scores: [targets of the sample] scores of held-out items that are not in the user's history.
        negative_scores: [about 20 S] scores of random items that are neither seen nor held out.
    """

    case_indices: NDArray[np.int64]
    top_rows: Rows
    target_scores: Scores
    negative_scores: Scores


@dataclass(frozen=True)
class EvaluationResult:
    """Metrics of a scorer on held-out items.

    Attributes:
        seen_excluded: `recall@k` for each k, `ndcg@10` and `coverage@10`, ranked among unseen items. Recall and NDCG
            are NaN if no user has a target outside the history.
        seen_included: The same, ranked among all items.
        group_metrics: Group name -> `seen_excluded` and `seen_included` of the users in the group.
        evaluated_user_count: Users in `seen_included`: all of them, those of `all_repeat_user_count` too.
        target_count: Held-out items of these users.
        all_repeat_user_count: Users who count in `seen_included` alone, since all their targets are in their history.
        repeat_target_count: Targets that count in `seen_included` alone, since they are in their user's history.
        sample: Sample of users, for plots.
    """

    seen_excluded: Metrics
    seen_included: Metrics
    group_metrics: Mapping[str, tuple[Metrics, Metrics]]
    evaluated_user_count: int
    target_count: int
    all_repeat_user_count: int
    repeat_target_count: int
    sample: UserSample

    @property
    def seen_excluded_or_included(self) -> Metrics:
        """`seen_excluded`, or `seen_included` if the former is NaN: then no user has a target outside the history.

        All scorers on the same cases have the same of the two, so they can be compared.
        """
        return self.seen_included if math.isnan(self.seen_excluded[f"ndcg@{TOP_LIST_K}"]) else self.seen_excluded

    def as_json(self, group: str | None = None) -> dict[str, dict[str, float | None]]:
        """Return the metrics of all users or of a group as `evaluate --json` prints them, None instead of NaN."""
        excluded, included = (self.seen_excluded, self.seen_included) if group is None else self.group_metrics[group]
        return {"seen_excluded": _nan_to_none(excluded), "seen_included": _nan_to_none(included)}


def _nan_to_none(metrics: Metrics) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in metrics.items()}


def evaluate_scorer(
    scorer: Scorer,
    cases: EvalCases,
    n_items: int,
    ks: Sequence[int],
    *,
    group_masks: Mapping[str, Mask] | None = None,
    batch_size: int = 256,
    max_sample_users: int = 500,
    seed: int = 0,
) -> EvaluationResult:
    """Rank all N items for each case and measure where the held-out ones rank.

    Args:
        scorer: Called with at most `batch_size` cases at a time.
        cases: Users with their histories, which are the seen items, and their held-out targets.
        n_items: N.
        ks: Depths of recall, each at least 1.
        group_masks: Masks [cases] by name; each group's metrics are computed too.
        batch_size: Cases scored together; three arrays [batch_size, N] of float32 are held in memory.
        max_sample_users: Upper bound on the users sampled for plots.
        seed: Seed of the sample.

    Raises:
        DataError: There are no cases, or the scores are not [B, N].
        TrainingError: A score is NaN.
    """
    if not len(cases):
        raise DataError("no user to evaluate: the split holds out no interactions; check data.split and its times")
    rng = np.random.default_rng(seed)
    sampled = np.sort(rng.choice(len(cases), size=min(max_sample_users, len(cases)), replace=False))
    new_targets = _drop_repeat_targets(cases, n_items)
    excluded, included, samples = _MetricAccumulator(), _MetricAccumulator(), []
    for start in range(0, len(cases), batch_size):
        batch_indices = np.arange(start, min(start + batch_size, len(cases)))
        batch, batch_new_targets = cases.take(batch_indices), new_targets.take(batch_indices)
        scores = _score_cases(scorer, batch, n_items)
        excluded.add_batch(scores, batch_new_targets, batch.histories)
        included.add_batch(scores, batch.targets, None)
        user_indices = sampled[(sampled >= start) & (sampled < start + batch_size)] - start
        samples.append(_sample_users(scores, batch, batch_new_targets, user_indices, start, rng))

    def compute_metrics(user_mask: Mask) -> tuple[Metrics, Metrics]:
        return (
            excluded.compute_metrics(new_targets, user_mask, n_items, ks),
            included.compute_metrics(cases.targets, user_mask, n_items, ks),
        )

    seen_excluded, seen_included = compute_metrics(np.ones(len(cases), dtype=np.bool_))
    return EvaluationResult(
        seen_excluded=seen_excluded,
        seen_included=seen_included,
        group_metrics={name: compute_metrics(mask) for name, mask in (group_masks or {}).items()},
        evaluated_user_count=len(cases),
        target_count=len(cases.targets.values),
        all_repeat_user_count=int((new_targets.lengths == 0).sum()),
        repeat_target_count=len(cases.targets.values) - len(new_targets.values),
        sample=_concatenate_samples(samples),
    )


class _MetricAccumulator:
    """Ranks of targets and best rows, collected batch by batch."""

    def __init__(self) -> None:
        self._ranks: list[Ranks] = []
        self._top_rows: list[Rows] = []

    def add_batch(self, scores: Scores, targets: RaggedArray, seen: RaggedArray | None) -> None:
        """Rank one batch: scores [B, N], B lists of targets, and B lists of seen items or None."""
        self._ranks.append(rank_targets(scores, targets, seen))
        self._top_rows.append(select_top_rows(scores, seen, TOP_LIST_K))

    def compute_metrics(self, targets: RaggedArray, user_mask: Mask, n_items: int, ks: Sequence[int]) -> Metrics:
        """Compute the metrics of the users in a mask.

        Args:
            targets: Targets of all users, as added.
            user_mask: [users] whether a user counts.
            n_items: N.
            ks: Depths of recall.

        Returns:
            Metrics by name; recall and NDCG are NaN if none of the users has a target.
        """
        ranks = np.concatenate(self._ranks)[user_mask[targets.segment_ids]]
        offsets = np.concatenate([[0], np.cumsum(targets.lengths[user_mask])])
        metrics = {f"recall@{k}": recall_at_k(ranks, offsets, k) if len(ranks) else math.nan for k in ks}
        metrics[f"ndcg@{TOP_LIST_K}"] = ndcg_at_k(ranks, offsets, TOP_LIST_K) if len(ranks) else math.nan
        metrics[f"coverage@{TOP_LIST_K}"] = coverage_at_k(
            np.concatenate(self._top_rows)[user_mask], n_items, TOP_LIST_K
        )
        return metrics


def _score_cases(scorer: Scorer, cases: EvalCases, n_items: int) -> Scores:
    scores = scorer(cases)
    if scores.shape != (len(cases), n_items):
        raise DataError(
            f"the scorer returned scores of shape {scores.shape}; expected (users, items) = {(len(cases), n_items)}"
        )
    return scores


def _drop_repeat_targets(cases: EvalCases, n_items: int) -> RaggedArray:
    """Return the targets that are not in their user's history."""
    seen_pairs = cases.histories.segment_ids * n_items + cases.histories.values
    owners = cases.targets.segment_ids
    is_new = ~np.isin(owners * n_items + cases.targets.values, seen_pairs)
    return RaggedArray.from_sorted_pairs(owners[is_new], cases.targets.values[is_new], len(cases))


def _sample_users(
    scores: Scores,
    cases: EvalCases,
    new_targets: RaggedArray,
    user_indices: NDArray[np.int64],
    batch_start: int,
    rng: np.random.Generator,
) -> UserSample:
    """Collect the sample of the users at `user_indices` of a batch.

    Args:
        scores: [B, N].
        cases: The batch.
        new_targets: B lists of targets that are not in the history.
        user_indices: Sampled users of the batch, ascending.
        batch_start: Index of the batch's first case among all cases.
        rng: Draws the random items.
    """
    n_items = scores.shape[1]
    users = np.repeat(user_indices, RANDOM_ITEMS_PER_USER)
    drawn = rng.integers(n_items, size=len(users))
    known_pairs = np.concatenate(
        [lists.segment_ids * n_items + lists.values for lists in (cases.histories, cases.targets)]
    )
    is_negative = ~np.isin(users * n_items + drawn, known_pairs)
    is_sampled = np.isin(new_targets.segment_ids, user_indices)
    return UserSample(
        case_indices=user_indices + batch_start,
        top_rows=select_top_rows(scores[user_indices], cases.histories.take(user_indices), SAMPLE_TOP_K),
        target_scores=scores[new_targets.segment_ids[is_sampled], new_targets.values[is_sampled]],
        negative_scores=scores[users[is_negative], drawn[is_negative]],
    )


def _concatenate_samples(samples: Sequence[UserSample]) -> UserSample:
    return UserSample(
        case_indices=np.concatenate([sample.case_indices for sample in samples]),
        top_rows=np.concatenate([sample.top_rows for sample in samples]),
        target_scores=np.concatenate([sample.target_scores for sample in samples]),
        negative_scores=np.concatenate([sample.negative_scores for sample in samples]),
    )
