"""A trained model with an exact index, which needs no tuning: to measure channels beside its vectors."""

from vecall.data.dataset import Dataset
from vecall.data.frames import is_empty_row
from vecall.evaluation.compare import ServedModel
from vecall.index.exact import ExactIndex
from vecall.index.planner import DEFAULT_COSTS
from vecall.training.scoring import TowerScorer


def build_exact_model(scorer: TowerScorer, dataset: Dataset, *, reads_history: bool) -> ServedModel:
    """Return the model of a scorer as it is served, with every item vector scored.

    Args:
        scorer: Has the item vectors, and encodes users.
        dataset: Its users.
        reads_history: Whether the user tower reads histories.
    """
    return ServedModel(
        encode_users=scorer.encode_users,
        index=ExactIndex.build(scorer.item_vectors.cpu().numpy()),
        search_param_curve=None,
        engine="exact",
        cost_model=DEFAULT_COSTS,
        has_features_by_user=~is_empty_row(dataset.catalogue.user_features),
        reads_history=reads_history,
    )
