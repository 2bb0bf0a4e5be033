"""The reference ranker: boosted trees of LightGBM over the features of `vecall.ranking.features`. Loads no torch."""

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from vecall.errors import RankerUnavailableError, VecallError
from vecall.ranking.candidate_columns import CandidateColumns, FrameColumns, Numbers
from vecall.ranking.features import FeatureMatrix, RankerFeatures
from vecall.ranking.lightgbm_text import parse_trees
from vecall.ranking.tree_scorer import TreeScorer
from vecall.runtime.missing_modules import explain_missing_module

LIGHTGBM = "lightgbm"


class RankerSpec(BaseModel):
    """Content of `ranker.json`: what a LightGBM ranker reads.

    Attributes:
        features: Columns of the matrix that the trees read.
        rank_weight: Weight of -log(rank) in the score, which the trees were trained to correct; rank is recall's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    features: RankerFeatures
    rank_weight: float


class LightGbmRanker:
    """Scores candidates by boosted trees. Thread-safe; computes in the calling thread.

    Args:
        booster: A `lightgbm.Booster`.
        scorer: The same trees, which scores come from; None for those of the booster.
        spec: What they read.
    """

    def __init__(self, booster: Any, scorer: TreeScorer | None, spec: RankerSpec) -> None:  # noqa: ANN401
        self._booster, self._scorer, self.spec = booster, scorer, spec

    @classmethod
    def from_text(cls, model_text: str, spec: RankerSpec) -> "LightGbmRanker":
        """Load a ranker from LightGBM's own text format, which must come from a source that is trusted.

        Raises:
            RankerUnavailableError: lightgbm is not installed.
            VecallError: The text is not a model over the features of `spec`.
        """
        lightgbm = import_lightgbm()
        try:
            booster = lightgbm.Booster(model_str=model_text)
        except lightgbm.basic.LightGBMError as error:
            raise VecallError(f"the text is not a model of LightGBM: {error}; train the ranker again") from error
        if booster.num_feature() != len(spec.features.names):
            raise VecallError(
                f"the model reads {booster.num_feature()} features, expected {len(spec.features.names)}; train the "
                "ranker again"
            )
        trees = parse_trees(model_text)
        scorer = None if trees is None else TreeScorer.build(trees)
        if scorer is not None:  # compiles the kernels, or loads them: the first request would wait for it
            scorer.score(np.zeros((len(spec.features.names), 1), dtype=np.float32))
        return cls(booster, scorer, spec)

    def __call__(self, candidates: pl.DataFrame) -> pl.Series:
        """Return [C] scores for the C candidates of one query."""
        return pl.Series("", self.score_columns(FrameColumns(candidates)))

    def score_columns(self, candidates: CandidateColumns) -> NDArray[np.float64]:
        """Return [C] scores for the C candidates of one query; reads no other columns than the trees do."""
        if not len(candidates):
            return np.empty(0, dtype=np.float64)
        if (ranks := candidates.get_numbers("rank")) is None:
            raise VecallError("the candidates have no column 'rank'; rank what `Recaller.candidates` returns")
        used_features = None if self._scorer is None else self._scorer.used_features
        return self.score(self.spec.features.build_matrix(candidates, used_features), ranks)

    @property
    def tree_count(self) -> int:
        """Number of trees."""
        return int(self._booster.num_trees())

    def compute_importance(self) -> dict[str, float]:
        """Return the share of each feature in the gain of all splits, the largest first; without those never split."""
        gains = self._booster.feature_importance("gain")
        shares = gains / max(gains.sum(), np.finfo(np.float64).tiny)
        order = np.argsort(-shares, kind="stable")
        return {self.spec.features.names[i]: round(float(shares[i]), 4) for i in order if shares[i] > 0}

    def score(self, matrix: FeatureMatrix, ranks: Numbers) -> NDArray[np.float64]:
        """Return [C] scores of [C, F] features and [C] ranks of recall, from 1."""
        if self._scorer is None:  # not a model that `vecall fit` trains
            corrections: NDArray[np.float64] = self._booster.predict(matrix, num_threads=1)
        else:
            corrections = self._scorer.score(np.ascontiguousarray(matrix.T))
        return corrections + compute_prior(ranks, self.spec.rank_weight)


def compute_prior(ranks: Numbers, weight: float) -> NDArray[np.float64]:
    """Return [C] scores that order as recall does: -weight · log(rank)."""
    return -weight * np.log(ranks.astype(np.float64))


def import_lightgbm() -> Any:  # noqa: ANN401 - a module
    """Import lightgbm.

    Raises:
        RankerUnavailableError: It is not installed, or a library of the system that it needs.
    """
    try:
        import lightgbm
    except ModuleNotFoundError as error:
        raise RankerUnavailableError(explain_missing_module(error, needed_by="the ranker", extra="ranking")) from error
    except OSError as error:
        raise RankerUnavailableError(
            f"the ranker needs lightgbm, which cannot be loaded: {error}; install the library of the system it names"
        ) from error
    return lightgbm


class UnavailableRanker:
    """Stands for a ranker that this process cannot load: every call fails, so that recall's order answers.

    Args:
        reason: Why.
    """

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def __call__(self, candidates: pl.DataFrame) -> pl.Series:  # noqa: ARG002 - as of every ranker
        """Raise.

        Raises:
            RankerUnavailableError: Always.
        """
        raise RankerUnavailableError(self._reason)

    def score_columns(self, candidates: CandidateColumns) -> NDArray[np.float64]:  # noqa: ARG002 - as of every ranker
        """Raise, before any column is made.

        Raises:
            RankerUnavailableError: Always.
        """
        raise RankerUnavailableError(self._reason)
