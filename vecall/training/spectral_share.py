"""Choice of the weight of the spectral part in the score, on the validation after the training."""

import logging

from vecall.towers.two_tower import TwoTower
from vecall.training.callbacks import MONITORED_METRIC, ScorerValidator
from vecall.training.data import TrainingData
from vecall.training.scoring import TowerScorer

logger = logging.getLogger(__name__)

SHARES = (0.1, 0.2, 0.35, 0.5)


def choose_spectral_share(
    towers: TwoTower,
    data: TrainingData,
    validate: ScorerValidator | None,
    known_share: float | None = None,
    current_score: float | None = None,
) -> None:
    """Set the weight of the spectral part to the smallest of `SHARES` with the highest validation score.

    Args:
        towers: Trained towers; without a spectral part nothing happens.
        data: Features of all items and users.
        validate: Returns the validation score of a scorer; with several processes the same in all of them. Without it
            the weight stays as it is.
        known_share: Weight that was chosen before, which is set instead.
        current_score: Validation score with the weight that is set, where the training has measured it.
    """
    if towers.spectral_share is None:
        return
    if known_share is not None:
        towers.set_spectral_share(known_share)
        return
    if validate is None:
        return
    scores: dict[float, float] = {}
    current_share = towers.spectral_share
    for share in SHARES:
        towers.set_spectral_share(share)
        if current_score is not None and towers.spectral_share == current_share:
            scores[share] = current_score
        else:
            scores[share] = validate(TowerScorer(towers, data))[MONITORED_METRIC]
    best = max(SHARES, key=scores.__getitem__)
    towers.set_spectral_share(best)
    logger.info("the spectral part weighs %g, the best on the validation of %s", best, scores)
