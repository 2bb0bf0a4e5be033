"""Judging a scorer over all items: full ranking, with and without what the user has seen."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vecall.arrays import Rows, Scores
from vecall.data.ragged import EvalCases, RaggedArray
from vecall.errors import DataError
from vecall.evaluation.metrics import Ranks, coverage_at_k, ndcg_at_k, rank_targets, recall_at_k, select_top_rows

Scorer = Callable[[EvalCases], Scores]
"""Scores of all N items for a batch of cases: float32 [B, N], larger is better, no NaN."""

Metrics = dict[str, float]

TOP_LIST_K = 10  # ndcg and coverage are read at this depth
SAMPLE_TOP_K = 100  # rows kept of each sampled user
RANDOM_ITEMS_PER_USER = 20  # scores of random unseen items kept per sampled user


@dataclass(frozen=True)
class UserSample:
    """What plots and examples need of some users.

    Attributes:
        case_indices: [S] which of the judged cases, ascending.
        top_rows: [S, 100] best unseen rows, best first; -1 where there are no more.
        target_scores: [targets of the sample] scores of the held-out items that were not seen before.
        negative_scores: [about 20 S] scores of random items that the user has neither seen nor as a target.
    """

    case_indices: NDArray[np.int64]
    top_rows: Rows
    target_scores: Scores
    negative_scores: Scores


@dataclass(frozen=True)
class EvaluationResult:
    """How well a scorer recalls what is held out.

    Attributes:
        seen_excluded: `recall@k` of each k, `ndcg@10`, `coverage@10`, ranked among unseen items; NaN where every target
            is a repeat, so that nothing can be said.
        seen_included: the same, ranked among all items.
        group_metrics: both, of some of the users, by the group's name.
        user_count: users judged with seen items included.
        target_count: their held-out items.
        dropped_user_count: users of whom no target is left once repeats are dropped.
        repeat_target_count: targets that stand in their user's history, which `seen_excluded` cannot judge.
        sample: of some users, for plots.
    """

    seen_excluded: Metrics
    seen_included: Metrics
    group_metrics: Mapping[str, tuple[Metrics, Metrics]]
    user_count: int
    target_count: int
    dropped_user_count: int
    repeat_target_count: int
    sample: UserSample

    @property
    def primary_metrics(self) -> Metrics:
        """Ranked among unseen items; among all items where every target is a repeat."""
        return self.seen_included if math.isnan(self.seen_excluded[f"ndcg@{TOP_LIST_K}"]) else self.seen_excluded

    def as_json(self, group: str | None = None) -> dict[str, dict[str, float | None]]:
        """The metrics of all users or of a group, as `vecall evaluate --json` prints them; null where there is none."""
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
    group_masks: Mapping[str, NDArray[np.bool_]] | None = None,
    batch_size: int = 256,
    max_sample_users: int = 500,
    seed: int = 0,
) -> EvaluationResult:
    """Rank all N items for each case and see where the held-out ones stand.

    Args:
        scorer: called with at most `batch_size` cases at a time.
        cases: users, histories (these are "the seen items") and held-out targets.
        n_items: N.
        ks: depths of recall, each >= 1.
        group_masks: by name, which of the cases are judged by themselves too, [cases].
        batch_size: cases scored together; [batch, N] float32 is held three times over.
        max_sample_users: users kept for plots, at most.
        seed: of the sample.

    Raises:
        DataError: there are no cases, or the scores are not [B, N].
        TrainingError: a score is NaN.
    """
    if not len(cases):
        raise DataError("there is no user to judge: the split held nothing out; check data.split and its times")
    rng = np.random.default_rng(seed)
    sampled = np.sort(rng.choice(len(cases), size=min(max_sample_users, len(cases)), replace=False))
    fresh = _drop_repeat_targets(cases, n_items)
    excluded, included, samples = _MetricAccumulator(), _MetricAccumulator(), []
    for start in range(0, len(cases), batch_size):
        positions = np.arange(start, min(start + batch_size, len(cases)))
        part = cases.take(positions)
        scores = _score_cases(scorer, part, n_items)
        new = fresh.take(positions)
        excluded.add_batch(scores, new, part.histories)
        included.add_batch(scores, part.targets, None)
        inside = sampled[(sampled >= start) & (sampled < start + batch_size)] - start
        samples.append(_sample_users(scores, part, new, inside, start, rng))
    rankings = ((excluded, fresh), (included, cases.targets))

    def compute_metrics(user_mask: NDArray[np.bool_]) -> tuple[Metrics, Metrics]:
        of_unseen, of_all = (ranking.compute_metrics(targets, user_mask, n_items, ks) for ranking, targets in rankings)
        return of_unseen, of_all

    seen_excluded, seen_included = compute_metrics(np.ones(len(cases), dtype=np.bool_))
    return EvaluationResult(
        seen_excluded=seen_excluded,
        seen_included=seen_included,
        group_metrics={name: compute_metrics(chosen) for name, chosen in (group_masks or {}).items()},
        user_count=len(cases),
        target_count=len(cases.targets.values),
        dropped_user_count=int((fresh.lengths == 0).sum()),
        repeat_target_count=len(cases.targets.values) - len(fresh.values),
        sample=_concatenate_samples(samples),
    )


class _MetricAccumulator:
    """Ranks and best rows, gathered batch by batch."""

    def __init__(self) -> None:
        self._ranks: list[Ranks] = []
        self._top_rows: list[Rows] = []

    def add_batch(self, scores: Scores, targets: RaggedArray, seen: RaggedArray | None) -> None:
        """Take in a batch."""
        self._ranks.append(rank_targets(scores, targets, seen))
        self._top_rows.append(select_top_rows(scores, seen, TOP_LIST_K))

    def compute_metrics(
        self, targets: RaggedArray, user_mask: NDArray[np.bool_], n_items: int, ks: Sequence[int]
    ) -> Metrics:
        """Of the chosen users, [B]; NaN where none of them has a target."""
        ranks = np.concatenate(self._ranks)[user_mask[targets.segment_ids]]
        offsets = np.concatenate([[0], np.cumsum(targets.lengths[user_mask])])
        measured = {f"recall@{k}": recall_at_k(ranks, offsets, k) if len(ranks) else math.nan for k in ks}
        measured[f"ndcg@{TOP_LIST_K}"] = ndcg_at_k(ranks, offsets, TOP_LIST_K) if len(ranks) else math.nan
        measured[f"coverage@{TOP_LIST_K}"] = coverage_at_k(
            np.concatenate(self._top_rows)[user_mask], n_items, TOP_LIST_K
        )
        return measured


def _score_cases(scorer: Scorer, cases: EvalCases, n_items: int) -> Scores:
    scores = scorer(cases)
    if scores.shape != (len(cases), n_items):
        raise DataError(
            f"the scorer gave scores of shape {scores.shape} for {len(cases)} users and {n_items} items; "
            "it must score every item for every user"
        )
    return scores


def _drop_repeat_targets(cases: EvalCases, n_items: int) -> RaggedArray:
    """The targets that are not in their user's history."""
    taken = cases.histories.segment_ids * n_items + cases.histories.values
    owners = cases.targets.segment_ids
    new = ~np.isin(owners * n_items + cases.targets.values, taken)
    return RaggedArray.from_groups(owners[new], cases.targets.values[new], len(cases))


def _sample_users(
    scores: Scores,
    cases: EvalCases,
    new_targets: RaggedArray,
    user_indices: NDArray[np.int64],
    batch_start: int,
    rng: np.random.Generator,
) -> UserSample:
    """Of the users at `user_indices` of this batch."""
    n_items = scores.shape[1]
    users = np.repeat(user_indices, RANDOM_ITEMS_PER_USER)
    drawn = rng.integers(n_items, size=len(users))
    known = np.concatenate([lists.segment_ids * n_items + lists.values for lists in (cases.histories, cases.targets)])
    rest = ~np.isin(users * n_items + drawn, known)
    hits = np.isin(new_targets.segment_ids, user_indices)
    return UserSample(
        case_indices=user_indices + batch_start,
        top_rows=select_top_rows(scores[user_indices], cases.histories.take(user_indices), SAMPLE_TOP_K),
        target_scores=scores[new_targets.segment_ids[hits], new_targets.values[hits]],
        negative_scores=scores[users[rest], drawn[rest]],
    )


def _concatenate_samples(samples: Sequence[UserSample]) -> UserSample:
    return UserSample(
        case_indices=np.concatenate([sample.case_indices for sample in samples]),
        top_rows=np.concatenate([sample.top_rows for sample in samples]),
        target_scores=np.concatenate([sample.target_scores for sample in samples]),
        negative_scores=np.concatenate([sample.negative_scores for sample in samples]),
    )
