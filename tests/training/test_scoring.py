import numpy as np
import pytest
import torch
from support import synthetic

from vecall.data.ragged import EvalCases, RaggedArray
from vecall.towers.two_tower import TwoTower
from vecall.training import scoring
from vecall.training.data import take, to_tensors
from vecall.training.scoring import TowerScorer, encode_all_items, eval_mode

DATA = synthetic.make_training_data(item_features=True, user_features=True)


def make_towers(encoder="mean"):
    torch.manual_seed(0)
    settings = synthetic.make_model_settings(encoder, dropout=0.5, id_dropout=0.5)
    return TwoTower(settings, DATA.item_specs, DATA.user_specs, synthetic.ITEMS)


@pytest.mark.parametrize("encoder", ["mean", "set"])
def test_scores_are_cosines_of_user_and_item_vectors(encoder):
    towers = make_towers(encoder).train()
    histories = RaggedArray.from_lists([[], [3], [1, 2, 3, 4, 5, 6]])  # the towers read the newest four items
    cases = EvalCases(np.array([5, 0, 2]), histories, RaggedArray.from_lists([[0]] * 3))
    scorer = TowerScorer(towers, DATA)
    score_block = scorer(cases)
    scores = score_block(0, synthetic.ITEMS)
    assert towers.training  # the mode is restored
    assert scores.shape == (3, synthetic.ITEMS)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(score_block(3, 7), scores[:, 3:7], atol=1e-7)
    item_features = to_tensors(DATA.item_features, torch.device("cpu"))
    user_features = to_tensors(DATA.user_features, torch.device("cpu"))
    with eval_mode(towers):
        items = towers.encode_items(torch.arange(synthetic.ITEMS), item_features)
        for row, (user, history) in enumerate([(5, []), (0, [3]), (2, [3, 4, 5, 6])]):
            vector = towers.encode_users(
                items,
                torch.tensor([history], dtype=torch.long),
                torch.tensor([len(history)]),
                take(user_features, torch.tensor([user])),
            )
            np.testing.assert_allclose(scores[row], (vector @ items.T)[0], atol=1e-6)


def test_towers_of_sets_read_the_newest_distinct_items():
    lists = [[1, 2, 3, 2, 4, 4, 5, 2], [7, 7]], [[3, 4, 5, 2], [7]]
    scores = []
    for histories in map(RaggedArray.from_lists, lists):
        cases = EvalCases(np.array([5, 0]), histories, RaggedArray.from_lists([[0]] * 2))
        scores.append(TowerScorer(make_towers("set"), DATA)(cases)(0, synthetic.ITEMS))
    np.testing.assert_array_equal(*scores)


@pytest.mark.parametrize("encoder", ["mean", "set"])
def test_users_without_any_history_are_scored(encoder):
    cases = EvalCases(np.array([5, 0]), RaggedArray.from_lists([[], []]), RaggedArray.from_lists([[0]] * 2))
    assert np.isfinite(TowerScorer(make_towers(encoder), DATA)(cases)(0, synthetic.ITEMS)).all()


def test_item_vectors_do_not_depend_on_the_batch_size(monkeypatch):
    towers = make_towers()
    expected = encode_all_items(towers, DATA)
    monkeypatch.setattr(scoring, "_ITEM_BATCH_SIZE", 7)
    torch.testing.assert_close(encode_all_items(towers, DATA), expected)
    assert not expected.requires_grad


def test_large_catalogues_are_scored_from_half_precision_vectors(monkeypatch):
    towers = make_towers()
    histories = RaggedArray.from_lists([[], [1, 2, 3, 4, 5, 6]])
    cases = EvalCases(np.array([5, 2]), histories, RaggedArray.from_lists([[0]] * 2))
    expected = TowerScorer(towers, DATA)(cases)(0, synthetic.ITEMS)
    monkeypatch.setattr(scoring, "MAX_FULL_PRECISION_BYTES", 0)
    scorer = TowerScorer(towers, DATA)
    assert scorer.item_vectors.dtype == torch.float16
    scores = scorer(cases)(0, synthetic.ITEMS)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, atol=2e-3)
    assert (scores != expected).any()
