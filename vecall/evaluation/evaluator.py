"""Judging a scorer over all items: full ranking, with and without what the user has seen."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vecall.data.ragged import Cases, Rows, Sequences
from vecall.errors import DataError
from vecall.evaluation.metrics import Ranks, Scores, coverage_at, ndcg_at, recall_at, target_ranks, top_rows

Scorer = Callable[[Cases], Scores]
"""Scores of all N items for a batch of cases: float32 [B, N], larger is better, no NaN."""

Metrics = dict[str, float]

SHORT_LIST = 10  # ndcg and coverage are read at this depth
SAMPLED_DEPTH = 100  # rows kept of each sampled user
RANDOM_ITEMS = 20  # scores of random unseen items kept per sampled user


@dataclass(frozen=True)
class Sample:
    """What plots and examples need of some users.

    Attributes:
        positions: [S] which of the judged cases, ascending.
        top: [S, 100] best unseen rows, best first; -1 where there are no more.
        hit_scores: [targets of the sample] scores of the held-out items that were not seen before.
        rest_scores: [about 20 S] scores of random items that the user has neither seen nor as a target.
    """

    positions: NDArray[np.int64]
    top: Rows
    hit_scores: Scores
    rest_scores: Scores


@dataclass(frozen=True)
class Judgement:
    """How well a scorer recalls what is held out.

    Attributes:
        seen_excluded: `recall@k` of each k, `ndcg@10`, `coverage@10`, ranked among unseen items; NaN where every target
            is a repeat, so that nothing can be said.
        seen_included: the same, ranked among all items.
        groups: both, of some of the users, by the group's name.
        users: users judged with seen items included.
        targets: their held-out items.
        users_dropped: users of whom no target is left once repeats are dropped.
        repeats_dropped: targets that stand in their user's history, which `seen_excluded` cannot judge.
        sample: of some users, for plots.
    """

    seen_excluded: Metrics
    seen_included: Metrics
    groups: Mapping[str, tuple[Metrics, Metrics]]
    users: int
    targets: int
    users_dropped: int
    repeats_dropped: int
    sample: Sample

    @property
    def main(self) -> Metrics:
        """Ranked among unseen items; among all items where every target is a repeat."""
        return self.seen_included if math.isnan(self.seen_excluded[f"ndcg@{SHORT_LIST}"]) else self.seen_excluded

    def as_json(self, group: str | None = None) -> dict[str, dict[str, float | None]]:
        """The metrics of all users or of a group, as `vecall evaluate --json` prints them; null where there is none."""
        excluded, included = (self.seen_excluded, self.seen_included) if group is None else self.groups[group]
        return {"seen_excluded": _or_null(excluded), "seen_included": _or_null(included)}


def _or_null(metrics: Metrics) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in metrics.items()}


def judge(
    scorer: Scorer,
    cases: Cases,
    n_items: int,
    ks: Sequence[int],
    *,
    groups: Mapping[str, NDArray[np.bool_]] | None = None,
    batch: int = 256,
    sample_users: int = 500,
    seed: int = 0,
) -> Judgement:
    """Rank all N items for each case and see where the held-out ones stand.

    Args:
        scorer: called with at most `batch` cases at a time.
        cases: users, histories (these are "the seen items") and held-out targets.
        n_items: N.
        ks: depths of recall, each >= 1.
        groups: by name, which of the cases are judged by themselves too, [cases].
        batch: cases scored together; [batch, N] float32 is held three times over.
        sample_users: users kept for plots, at most.
        seed: of the sample.

    Raises:
        DataError: there are no cases, or the scores are not [B, N].
        TrainingError: a score is NaN.
    """
    if not len(cases):
        raise DataError("there is no user to judge: the split held nothing out; check data.split and its times")
    rng = np.random.default_rng(seed)
    sampled = np.sort(rng.choice(len(cases), size=min(sample_users, len(cases)), replace=False))
    fresh = _without_repeats(cases, n_items)
    excluded, included, samples = _Ranking(), _Ranking(), []
    for start in range(0, len(cases), batch):
        positions = np.arange(start, min(start + batch, len(cases)))
        part = cases.take(positions)
        scores = _scored(scorer, part, n_items)
        new = fresh.take(positions)
        excluded.add(scores, new, part.histories)
        included.add(scores, part.targets, None)
        inside = sampled[(sampled >= start) & (sampled < start + batch)] - start
        samples.append(_sample(scores, part, new, inside, start, rng))
    rankings = ((excluded, fresh), (included, cases.targets))

    def metrics(chosen: NDArray[np.bool_]) -> tuple[Metrics, Metrics]:
        of_unseen, of_all = (ranking.metrics(targets, chosen, n_items, ks) for ranking, targets in rankings)
        return of_unseen, of_all

    seen_excluded, seen_included = metrics(np.ones(len(cases), dtype=np.bool_))
    return Judgement(
        seen_excluded=seen_excluded,
        seen_included=seen_included,
        groups={name: metrics(chosen) for name, chosen in (groups or {}).items()},
        users=len(cases),
        targets=len(cases.targets.rows),
        users_dropped=int((fresh.lengths == 0).sum()),
        repeats_dropped=len(cases.targets.rows) - len(fresh.rows),
        sample=_joined(samples),
    )


class _Ranking:
    """Ranks and best rows, gathered batch by batch."""

    def __init__(self) -> None:
        self._ranks: list[Ranks] = []
        self._tops: list[Rows] = []

    def add(self, scores: Scores, targets: Sequences, seen: Sequences | None) -> None:
        """Take in a batch."""
        self._ranks.append(target_ranks(scores, targets, seen))
        self._tops.append(top_rows(scores, seen, SHORT_LIST))

    def metrics(self, targets: Sequences, chosen: NDArray[np.bool_], n_items: int, ks: Sequence[int]) -> Metrics:
        """Of the chosen users, [B]; NaN where none of them has a target."""
        ranks = np.concatenate(self._ranks)[chosen[targets.owners]]
        offsets = np.concatenate([[0], np.cumsum(targets.lengths[chosen])])
        measured = {f"recall@{k}": recall_at(ranks, offsets, k) if len(ranks) else math.nan for k in ks}
        measured[f"ndcg@{SHORT_LIST}"] = ndcg_at(ranks, offsets, SHORT_LIST) if len(ranks) else math.nan
        measured[f"coverage@{SHORT_LIST}"] = coverage_at(np.concatenate(self._tops)[chosen], n_items, SHORT_LIST)
        return measured


def _scored(scorer: Scorer, cases: Cases, n_items: int) -> Scores:
    scores = scorer(cases)
    if scores.shape != (len(cases), n_items):
        raise DataError(
            f"the scorer gave scores of shape {scores.shape} for {len(cases)} users and {n_items} items; "
            "it must score every item for every user"
        )
    return scores


def _without_repeats(cases: Cases, n_items: int) -> Sequences:
    """The targets that are not in their user's history."""
    taken = cases.histories.owners * n_items + cases.histories.rows
    owners = cases.targets.owners
    new = ~np.isin(owners * n_items + cases.targets.rows, taken)
    return Sequences.grouped(owners[new], cases.targets.rows[new], len(cases))


def _sample(
    scores: Scores,
    cases: Cases,
    fresh: Sequences,
    inside: NDArray[np.int64],
    start: int,
    rng: np.random.Generator,
) -> Sample:
    """Of the users at `inside` of this batch."""
    n_items = scores.shape[1]
    users = np.repeat(inside, RANDOM_ITEMS)
    drawn = rng.integers(n_items, size=len(users))
    known = np.concatenate([lists.owners * n_items + lists.rows for lists in (cases.histories, cases.targets)])
    rest = ~np.isin(users * n_items + drawn, known)
    hits = np.isin(fresh.owners, inside)
    return Sample(
        positions=inside + start,
        top=top_rows(scores[inside], cases.histories.take(inside), SAMPLED_DEPTH),
        hit_scores=scores[fresh.owners[hits], fresh.rows[hits]],
        rest_scores=scores[users[rest], drawn[rest]],
    )


def _joined(samples: Sequence[Sample]) -> Sample:
    return Sample(
        positions=np.concatenate([sample.positions for sample in samples]),
        top=np.concatenate([sample.top for sample in samples]),
        hit_scores=np.concatenate([sample.hit_scores for sample in samples]),
        rest_scores=np.concatenate([sample.rest_scores for sample in samples]),
    )
