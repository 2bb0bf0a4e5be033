"""A model beside its baselines and through its index, all judged by one protocol: what `evaluate` answers."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vecall import progress
from vecall.data.dataset import Dataset
from vecall.data.ragged import Cases
from vecall.data.split import Split
from vecall.errors import ConfigError
from vecall.evaluation.ann import AnnReport, measure_ann
from vecall.evaluation.baselines import Ease, Popularity, RecentCooccurrence
from vecall.evaluation.evaluator import Judgement, Scorer, judge
from vecall.evaluation.fallback import WithFallback
from vecall.evaluation.metrics import Scores
from vecall.index.base import Effort, Index, Vectors
from vecall.index.planner import Costs, decide
from vecall.index.search_params import EffortCurve

logger = logging.getLogger(__name__)

WITH_HISTORY = "with_history"  # the group of users that have one
_MEASURED_USERS = 1_000  # whose vectors the index is measured with


@dataclass(frozen=True)
class Served:
    """A model as it is served.

    Attributes:
        user_vectors: [B, D] for B cases.
        index: over the item vectors.
        effort: how hard to search for k rows; None where the index scans them all.
        engine: what kind of index it is, for people.
        costs: of searching and of scanning, by which recall chooses between them.
        has_features: [U] users of whom the user tower reads some feature.
        reads_history: whether the user tower reads histories.
        frontier: efforts that were tried when the index was tuned: `k`, `recall`, `recall_ci95`, `p50_ms` of each.
    """

    user_vectors: Callable[[Cases], Vectors]
    index: Index
    effort: EffortCurve | None
    engine: str
    costs: Costs
    has_features: NDArray[np.bool_]
    reads_history: bool
    frontier: Sequence[Mapping[str, float]] = ()

    def with_fallback(self, scorer: Scorer, popularity: Scores) -> WithFallback:
        """The model's scores, and what is popular where recall would answer with that."""
        return WithFallback(scorer, popularity, reads_history=self.reads_history, has_features=self.has_features)

    def effort_at(self, k: int) -> Effort | None:
        """How hard to search for k rows."""
        return None if self.effort is None else self.effort.at(k)


class ThroughIndex:
    """Scores as recall sees them: of the rows that the index returns, and -inf for all others."""

    def __init__(self, served: Served, depth: int) -> None:
        self._served, self._depth = served, depth

    def __call__(self, cases: Cases) -> NDArray[np.float32]:
        """[B, N]; each case is searched for `depth` rows beyond its history, as a request with exclusions is."""
        index = self._served.index
        scores = np.full((len(cases), index.size), -np.inf, dtype=np.float32)
        for place, vector in enumerate(self._served.user_vectors(cases)):
            k = min(self._depth + len(np.unique(cases.histories[place])), index.size)
            hits = index.search(vector[None], k, effort=self._served.effort_at(k))
            found = hits.rows[0] >= 0
            scores[place, hits.rows[0][found]] = hits.scores[0][found]
        return scores


@dataclass(frozen=True)
class Assessment:
    """All that was measured.

    Attributes:
        protocol: split and ranking, a sentence each.
        dropped: what was left out, by reason.
        judgements: `model`, then `index` (the model through its index), then the baselines, by name.
        ann: of the index alone, one for each k.
        paths: how many of the judged users' recalls at the first of these k would be answered in which way, see
            `vecall.recall.query.Plan`.
        frontier: as in `Served`.
        item_counts: [N] how many users took each item in training.
    """

    protocol: tuple[str, ...]
    dropped: Mapping[str, int]
    judgements: Mapping[str, Judgement]
    ann: tuple[AnnReport, ...]
    paths: Mapping[str, int]
    frontier: Sequence[Mapping[str, float]]
    item_counts: NDArray[np.float32]

    @property
    def paths_sentence(self) -> str:
        """How the judged users' recalls are answered, for people."""
        words = {
            "index": "search the index",
            "scan": "scan all items, which is exact and here the quicker way",
            "all": "return all items",
            "popular": "return what is popular",
        }
        told = ", ".join(f"{count:,} {words[path]}" for path, count in self.paths.items() if count)
        return f"of these users' recalls at k = {self.ann[0].k}: {told}"

    def as_json(self) -> dict[str, object]:
        """As `vecall evaluate --json` prints it; a baseline that was left out is null."""
        first, *others = [one.as_json() for one in self.ann]
        return {
            "protocol": " ".join(self.protocol),
            "dropped": dict(self.dropped),
            **self._judged(None),
            "with_history": self._judged(WITH_HISTORY),
            "ann": first | {"paths": dict(self.paths), "others": others},
        }

    def _judged(self, group: str | None) -> dict[str, object]:
        names = ("model", "popularity", "ease", "cooccurrence", "index")
        return {name: self.judgements[name].as_json(group) if name in self.judgements else None for name in names}


def assess(
    dataset: Dataset, split: Split, scorer: Scorer, served: Served, ks: Sequence[int], ann_ks: Sequence[int]
) -> Assessment:
    """Judge a model, its index and the baselines on the test cases.

    Args:
        dataset: for its counts.
        split: baselines are fitted on `train` alone, as the model was, and read the same histories.
        scorer: of the model, exact.
        served: the same model with its index.
        ks: depths of model recall.
        ann_ks: depths of ANN recall; those beyond N are left out.
    """
    n_items = len(dataset.catalogue.items)
    popularity = Popularity(split.train, n_items)
    contenders: dict[str, Callable[[], Scorer]] = {
        "model": lambda: served.with_fallback(scorer, popularity.counts),
        "index": lambda: served.with_fallback(ThroughIndex(served, max(ks)), popularity.counts),
        "ease": lambda: WithFallback(Ease(split.train, n_items), popularity.counts),
        "cooccurrence": lambda: WithFallback(RecentCooccurrence(split.train, n_items), popularity.counts),
        "popularity": lambda: popularity,
    }
    groups = {WITH_HISTORY: split.test.histories.lengths > 0}
    dropped = dict(dataset.dropped) | dict(split.dropped)
    judgements, left_out = {}, []
    with progress.task("judging", len(contenders)) as advance:
        for name, make in contenders.items():
            try:
                judgements[name] = judge(make(), split.test, n_items, ks, groups=groups)
            except ConfigError as error:  # a baseline too large for its data
                logger.warning("%s is left out: %s", name, error)
                left_out.append(f"{name} is left out: {error}.")
            advance(1, note=name)
    if repeats := judgements["model"].repeats_dropped:
        dropped["targets already in the history (not judged with seen items excluded)"] = repeats
    return Assessment(
        protocol=(
            split.protocol[0].upper() + split.protocol[1:] + ".",
            f"{len(split.test):,} users judged over {n_items:,} items; a target ranks below all items with its score.",
            "Model, EASE, co-occurrence and popularity were fitted on the training part alone and read the same "
            "histories; `index` is the model through its index.",
            *_without_history(groups[WITH_HISTORY]),
            *left_out,
        ),
        dropped=dropped,
        judgements=judgements,
        ann=_measure(split.test, served, popularity.counts, ann_ks),
        paths=_paths(split.test, served, popularity.counts, ann_ks),
        frontier=served.frontier,
        item_counts=popularity.counts,
    )


def _without_history(with_history: NDArray[np.bool_]) -> list[str]:
    """What is said of users without a history, where there are some."""
    count = int((~with_history).sum())
    if not count:
        return []
    return [
        f"{count:,} of these users have no history: models are judged by what would be served to them, which is what "
        "is popular where nothing else is known; `with_history` is of the others alone."
    ]


def _measure(cases: Cases, served: Served, popularity: Scores, ks: Sequence[int]) -> tuple[AnnReport, ...]:
    """ANN recall and latency of the index's own search, on the vectors of the test's users."""
    known = np.flatnonzero(~served.with_fallback(ThroughIndex(served, 1), popularity).is_unknown(cases))
    chosen = (known if len(known) else np.arange(len(cases)))[:_MEASURED_USERS]
    queries = served.user_vectors(cases.take(chosen))
    return tuple(
        measure_ann(served.index, queries, k, engine=served.engine, effort=served.effort_at(k))
        for k in _depths(served, ks)
    )


def _depths(served: Served, ks: Sequence[int]) -> list[int]:
    return [k for k in ks if k <= served.index.size] or [served.index.size]


def _paths(cases: Cases, served: Served, popularity: Scores, ks: Sequence[int]) -> dict[str, int]:
    """How the recalls of the judged users are answered, seen items excluded, as the planner decides."""
    unknown = served.with_fallback(ThroughIndex(served, 1), popularity).is_unknown(cases)
    paths = {"index": 0, "scan": 0, "all": 0, "popular": int(unknown.sum())}
    size, k = served.index.size, _depths(served, ks)[0]
    for place in np.flatnonzero(~unknown):
        seen = len(np.unique(cases.histories[int(place)]))
        plan = decide(k, size=size, allowed=size, excluded=seen, curve=served.effort, costs=served.costs)
        paths[plan.path] += 1
    return paths
