import numpy as np
import torch
from support import synthetic

from vecall.data.ragged import EvalCases, RaggedArray
from vecall.towers.two_tower import TwoTower
from vecall.training import scoring
from vecall.training.data import take, to_tensors
from vecall.training.scoring import TowerScorer, encode_all_items, eval_mode

PROBLEM = synthetic.make_training_data(item_features=True, user_features=True)


def towers():
    torch.manual_seed(0)
    return TwoTower(
        synthetic.make_model_settings(dropout=0.5, id_dropout=0.5),
        PROBLEM.item_specs,
        PROBLEM.user_specs,
        synthetic.ITEMS,
    )


def test_scores_are_cosines_of_user_and_item_vectors():
    made = towers().train()
    histories = RaggedArray.from_lists([[], [3], [1, 2, 3, 4, 5, 6]])  # the towers read the newest four
    cases = EvalCases(np.array([5, 0, 2]), histories, RaggedArray.from_lists([[0]] * 3))
    scorer = TowerScorer(made, PROBLEM)
    scores = scorer(cases)
    assert made.training  # left as it was
    assert scores.shape == (3, synthetic.ITEMS)
    assert scores.dtype == np.float32
    features = to_tensors(PROBLEM.user_features, torch.device("cpu"))
    with eval_mode(made):
        items = made.encode_items(torch.arange(synthetic.ITEMS), to_tensors(PROBLEM.item_features, torch.device("cpu")))
        for row, (user, history) in enumerate([(5, []), (0, [3]), (2, [3, 4, 5, 6])]):
            vector = made.encode_users(
                items,
                torch.tensor([history], dtype=torch.long),
                torch.tensor([len(history)]),
                take(features, torch.tensor([user])),
            )
            np.testing.assert_allclose(scores[row], (vector @ items.T)[0], atol=1e-6)


def test_items_are_encoded_in_pieces(monkeypatch):
    made = towers()
    whole = encode_all_items(made, PROBLEM)
    monkeypatch.setattr(scoring, "_BATCH", 7)
    torch.testing.assert_close(encode_all_items(made, PROBLEM), whole)
    assert not whole.requires_grad
