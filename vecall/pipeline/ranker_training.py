"""Training of the reference ranker on what recall returned, and the decision whether it is kept.

Every user has a list that recall returned without knowing the targets. The users are divided into folds: each fold is
ordered by trees that were trained on the others, so that all users decide, and the ranker that is kept is trained on
all of them. Early stopping on a tenth of the users ended at 34 to 180 trees by chance.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from vecall import progress
from vecall.data.ragged import offsets_from_lengths
from vecall.evaluation.metrics import ndcg_per_user
from vecall.evaluation.paired_bootstrap import BootstrapInterval, bootstrap_differences
from vecall.pipeline.ranker_candidates import CandidateLists
from vecall.ranking.features import FeatureMatrix, RankerFeatures
from vecall.ranking.lightgbm_ranker import LIGHTGBM, LightGbmRanker, RankerSpec, compute_prior, import_lightgbm
from vecall.ranking.ranker import Ranker, score_candidates
from vecall.ranking.ranker_info import RankerInfo

FINAL_K = 10  # of the metric that decides: NDCG@10
_FOLDS = 4
_MIN_LISTS = 20  # with a target, outside of a fold: fewer teach nothing
_MAX_NEGATIVES = 100  # of a list that is trained on, drawn at random: all 500 teach no more and take five times as long
_MAX_VALUES = 2**26  # of the matrices that are trained on: 256 MiB of float32
_RANK_WEIGHT = 1.0
_MAX_TREES = 300
_PARAMETERS = {
    "objective": "lambdarank",
    "metric": "ndcg",
    "eval_at": [FINAL_K],
    "lambdarank_truncation_level": 3 * FINAL_K,
    "learning_rate": 0.05,
    "num_leaves": 15,
    "min_data_in_leaf": 50,
    "min_data_per_group": 50,
    "feature_fraction": 0.8,
    "lambda_l2": 1.0,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}


class RankerSummary(BaseModel):
    """How a ranker was trained, and how trees of the other folds compare with recall's order on the users of each.

    Attributes:
        info: Whether it is kept, and why.
        training_lists: Lists with a target that the kept trees were trained on.
        users: Number of users who decide: all of them.
        recall_ndcg: Their mean NDCG@10 in recall's order.
        ranked_ndcg: Their mean NDCG@10 in the ranker's order.
        gain: The difference.
        gain_low: Lower bound of its 95 % confidence interval by a paired bootstrap over users.
        gain_high: Upper bound.
        trees: Number of trees.
        importance: Share of the trees' gain by feature, the largest first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    info: RankerInfo
    training_lists: int = 0
    users: int = 0
    recall_ndcg: float = 0.0
    ranked_ndcg: float = 0.0
    gain: float = 0.0
    gain_low: float = 0.0
    gain_high: float = 0.0
    trees: int = 0
    importance: dict[str, float] = {}


@dataclass(frozen=True)
class TrainedRanker:
    """A ranker that was trained, kept or not.

    Attributes:
        spec: What the model reads.
        model_text: The model in LightGBM's own text format.
    """

    spec: RankerSpec
    model_text: str


@dataclass(frozen=True)
class _TrainingMatrix:
    """Lists with a target, one after the other.

    Attributes:
        features: [rows, F].
        is_target: [rows].
        ranks: [rows] Ranks of recall, from 1.
        lengths: [lists].
    """

    features: FeatureMatrix
    is_target: NDArray[np.bool_]
    ranks: NDArray[np.int64]
    lengths: NDArray[np.int64]

    @classmethod
    def join(cls, parts: Sequence["_TrainingMatrix"]) -> "_TrainingMatrix":
        """Return the lists of several matrices, one after the other."""
        columns = zip(*((part.features, part.is_target, part.ranks, part.lengths) for part in parts), strict=True)
        return cls(*map(np.concatenate, columns))

    def build_dataset(self, features: RankerFeatures, reference: Any = None) -> Any:  # noqa: ANN401 - of lightgbm
        """Return the matrix as LightGBM reads it, with recall's order as the scores to start from."""
        return import_lightgbm().Dataset(
            self.features,
            label=self.is_target.astype(np.float32),
            group=self.lengths,
            init_score=compute_prior(self.ranks, _RANK_WEIGHT),
            categorical_feature=features.category_positions,
            reference=reference,
            params={"verbosity": -1},
        )


def train_ranker(
    lists: CandidateLists, features: RankerFeatures, seed: int = 0
) -> tuple[RankerSummary, TrainedRanker | None]:
    """Train a ranker on all users, and compare trees of the other folds with recall's order on the users of each fold.

    It is kept if their NDCG@10 is above that of recall's order by more than noise.

    Args:
        lists: Of n users.
        features: What the trees read.
        seed: Of the folds and of the training.

    Returns:
        The summary, and the ranker, also if it is not kept; None if there is too little to train on.
    """
    folds = np.array_split(np.random.default_rng(seed).permutation(len(lists)), _FOLDS)
    rng = np.random.default_rng(seed)
    with progress.track("recalling for the ranker", 2 * len(lists)) as advance:
        matrices = [_collect(lists, users, features, advance, rng) for users in folds]
        list_counts = [len(matrix.lengths) for matrix in matrices]
        if sum(list_counts) - max(list_counts) < _MIN_LISTS or min(list_counts) == 0:
            reason = (
                f"recall found a held-out item of {sum(list_counts)} of {len(lists)} validation users, too few to "
                "train on"
            )
            return RankerSummary(info=RankerInfo(reason=reason), training_lists=sum(list_counts)), None
        rankers, tree_count = _train_folds(matrices, features, seed)
        orders = [compare_orders(lists, users, ranker, advance) for users, ranker in zip(folds, rankers, strict=True)]
    recalled, ranked = (np.concatenate(part) for part in zip(*orders, strict=True))
    booster, _ = _train_trees(_TrainingMatrix.join(matrices), features, seed, tree_count)
    trained = TrainedRanker(_build_spec(features), booster.model_to_string())
    interval = bootstrap_differences(ranked - recalled)
    summary = RankerSummary(
        info=_decide(interval, float(recalled.mean()), len(lists)),
        training_lists=sum(list_counts),
        users=len(lists),
        recall_ndcg=float(recalled.mean()),
        ranked_ndcg=float(ranked.mean()),
        gain=interval.mean,
        gain_low=interval.low,
        gain_high=interval.high,
        trees=tree_count,
        importance=LightGbmRanker.from_text(trained.model_text, trained.spec).compute_importance(),
    )
    return summary, trained


def _collect(
    lists: CandidateLists,
    users: NDArray[np.int64],
    features: RankerFeatures,
    advance: progress.ProgressCallback,
    rng: np.random.Generator,
) -> _TrainingMatrix:
    """Return the lists of the users of a fold that have a target, as many as memory allows.

    Args:
        lists: Of n users.
        users: Positions of the users.
        features: What the trees read.
        advance: Called after each user.
        rng: Draws `_MAX_NEGATIVES` of each list.
    """
    ranks = [np.empty(0, dtype=np.int64)]
    matrices = [np.empty((0, len(features.names)), dtype=np.float32)]
    labels = [np.empty(0, dtype=np.bool_)]
    for user in users.tolist():
        candidates = lists[user]
        advance(1)
        if not candidates.is_target.any():
            continue
        positions = _draw_positions(candidates.is_target, rng)
        matrices.append(features.build_matrix(candidates.columns)[positions])
        labels.append(candidates.is_target[positions])
        ranks.append(positions + 1)
        if len(labels) * matrices[-1].size > _MAX_VALUES // _FOLDS:
            break
    lengths = np.array([len(label) for label in labels[1:]], dtype=np.int64)
    return _TrainingMatrix(np.concatenate(matrices), np.concatenate(labels), np.concatenate(ranks), lengths)


def _draw_positions(is_target: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the ascending positions of the targets of a list and of some of the others."""
    others = np.flatnonzero(~is_target)
    if len(others) <= _MAX_NEGATIVES:
        return np.arange(len(is_target))
    return np.sort(np.append(np.flatnonzero(is_target), rng.choice(others, _MAX_NEGATIVES, replace=False)))


def _train_folds(
    matrices: Sequence[_TrainingMatrix], features: RankerFeatures, seed: int
) -> tuple[list[LightGbmRanker], int]:
    """Train trees on the other folds of each fold.

    How many of them order a fold is what is best for the other folds, so that no fold chooses for itself.

    Returns:
        A ranker per fold, and the number of trees that is best for all folds.
    """
    spec = _build_spec(features)
    boosters = []
    curves = np.empty((len(matrices), _MAX_TREES))  # NDCG@10 of each fold by number of trees, summed over its lists
    for fold, matrix in enumerate(matrices):
        others = _TrainingMatrix.join([*matrices[:fold], *matrices[fold + 1 :]])
        booster, values = _train_trees(others, features, seed, _MAX_TREES, measured=matrix)
        boosters.append(booster)
        curves[fold] = np.array(values) * len(matrix.lengths)
    total = curves.sum(axis=0)
    rankers = [
        LightGbmRanker.from_text(booster.model_to_string(num_iteration=int((total - curve).argmax()) + 1), spec)
        for booster, curve in zip(boosters, curves, strict=True)
    ]
    return rankers, int(total.argmax()) + 1


def _train_trees(
    training: _TrainingMatrix,
    features: RankerFeatures,
    seed: int,
    tree_count: int,
    measured: _TrainingMatrix | None = None,
) -> tuple[Any, list[float]]:
    """Train a number of trees; return them as a `lightgbm.Booster`, and NDCG@10 of `measured` after each.

    Args:
        training: What they are trained on.
        features: What they read.
        seed: Of the training.
        tree_count: Their number.
        measured: Lists that are not trained on; None for none, of which there are no values.
    """
    lightgbm, dataset = import_lightgbm(), training.build_dataset(features)
    record: dict[str, dict[str, list[float]]] = {}
    booster = lightgbm.train(
        _PARAMETERS | {"seed": seed},
        dataset,
        num_boost_round=tree_count,
        valid_sets=[] if measured is None else [measured.build_dataset(features, reference=dataset)],
        valid_names=[] if measured is None else ["fold"],
        callbacks=[lightgbm.record_evaluation(record)],
    )
    return booster, [] if measured is None else record["fold"][f"ndcg@{FINAL_K}"]


def _build_spec(features: RankerFeatures) -> RankerSpec:
    return RankerSpec(features=features, rank_weight=_RANK_WEIGHT)


def compare_orders(
    lists: CandidateLists, users: NDArray[np.int64], ranker: Ranker, advance: progress.ProgressCallback
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return each user's NDCG@10 in recall's order and in the ranker's; of targets that were not recalled it is 0.

    Args:
        lists: Of n users.
        users: Positions of those to compare.
        ranker: Orders the candidates.
        advance: Called after each user.
    """
    recalled: list[NDArray[np.float64]] = []
    ranked: list[NDArray[np.float64]] = []
    for user in users.tolist():
        candidates = lists[user]
        advance(1)
        order = np.arange(len(candidates.is_target))
        if candidates.is_target.any():
            order = np.argsort(-score_candidates(candidates.columns, ranker), kind="stable")
        recalled.append(_compute_ndcg(candidates.is_target, candidates.target_count))
        ranked.append(_compute_ndcg(candidates.is_target[order], candidates.target_count))
    return np.concatenate(recalled), np.concatenate(ranked)


def _compute_ndcg(is_target: NDArray[np.bool_], target_count: int) -> NDArray[np.float64]:
    """Return [1] the NDCG@10 of a ranking of which some are targets, of `target_count` in all."""
    ranks = np.full(target_count, np.iinfo(np.int32).max, dtype=np.int64)
    found = np.flatnonzero(is_target)
    ranks[: len(found)] = found
    return ndcg_per_user(ranks, offsets_from_lengths(np.array([target_count])), FINAL_K)


def _decide(interval: BootstrapInterval, recall_ndcg: float, n_users: int) -> RankerInfo:
    is_kept = interval.low > 0
    reason = (
        f"NDCG@{FINAL_K} of {n_users:,} validation users is {recall_ndcg:.4f} in recall's order and "
        f"{recall_ndcg + interval.mean:.4f} ranked by trees that were not trained on them: a difference of "
        f"{interval.mean:+.4f}, 95 % between "
        f"{interval.low:+.4f} and {interval.high:+.4f}, which is {'above' if is_kept else 'not above'} noise"
    )
    return RankerInfo(name=LIGHTGBM if is_kept else "none", reason=reason)
