import numpy as np
import pytest
import torch
from scipy import sparse
from support import synthetic

from vecall.data.ragged import RaggedArray
from vecall.towers.two_tower import TwoTower
from vecall.training.fit import train
from vecall.training.settings import TrainingSettings
from vecall.training.spectral import (
    _L2,
    build_interaction_matrix,
    compute_leading_eigenvectors,
    compute_spectral_part,
)

N_ITEMS = 40


def make_histories(seed=0):
    """Histories with repeats, of 5 groups of items with unequal numbers of users; items from 30 on have none."""
    rng = np.random.default_rng(seed)
    groups = rng.choice(5, 300, p=(0.4, 0.25, 0.15, 0.12, 0.08))
    return RaggedArray.from_lists([6 * group + rng.integers(0, 6, rng.integers(0, 9)) for group in groups])


def make_towers(spectral_dim, n_items=N_ITEMS):
    settings = synthetic.make_model_settings("set", dim=4 + spectral_dim, max_trained_dim=4)
    return TwoTower(settings, {}, {}, n_items)


def test_leading_eigenvectors_equal_those_of_the_dense_matrix():
    rng = np.random.default_rng(1)
    dense, diagonal = (rng.random((200, 50)) < 0.2) * rng.random(50), rng.random(50)
    matrix = sparse.csr_array(dense.astype(np.float32))
    eigenvalues, eigenvectors = compute_leading_eigenvectors(matrix, diagonal, 40, seed=0)
    expected_values, expected_vectors = np.linalg.eigh(dense.T @ dense + np.diag(diagonal))
    np.testing.assert_allclose(eigenvalues[:8], expected_values[::-1][:8], rtol=1e-3)
    overlaps = np.abs((eigenvectors[:, :4] * expected_vectors[:, ::-1][:, :4]).sum(0))
    np.testing.assert_allclose(overlaps, 1, atol=1e-2)


def test_spectral_part_equals_the_dense_formula():
    towers, histories = make_towers(3), make_histories()
    compute_spectral_part(towers, histories, seed=0)
    vectors = towers.spectral_vectors.numpy()
    matrix, items = build_interaction_matrix(histories, N_ITEMS, seed=0)
    counts = matrix.T @ matrix + _L2 * sparse.eye_array(len(items))
    scales = np.diag(counts.toarray()) ** -0.5
    eigenvalues, eigenvectors = np.linalg.eigh(scales[:, None] * counts.toarray() * scales)
    leading = eigenvectors[:, ::-1][:, :3] * np.sqrt(np.maximum(1 - 1 / eigenvalues[::-1][:3], 0))
    np.testing.assert_allclose(vectors[items] @ vectors[items].T, leading @ leading.T, atol=1e-3)
    has_users = np.isin(np.arange(N_ITEMS + 1), items)
    assert (vectors[~has_users] == 0).all()
    assert (np.linalg.norm(vectors[items], axis=1) > 0).all()


def test_with_the_diagonal_of_the_inverse_all_eigenvectors_give_the_weights_of_ease():
    """D^½ P D^½ is the inverse of D^-½ G D^-½, for G = XᵀX + l2·I, P = G⁻¹ and D = 1 / diag(P)."""
    rng = np.random.default_rng(0)
    interactions = (rng.random((100, 12)) < 0.3).astype(np.float64)
    gram = interactions.T @ interactions + _L2 * np.eye(12)
    inverse = np.linalg.inv(gram)
    scales = np.diag(inverse) ** 0.5  # of D^-½
    weights = -inverse / np.diag(inverse)  # of EASE, from i to j
    np.fill_diagonal(weights, 0)
    eigenvalues, eigenvectors = np.linalg.eigh(scales[:, None] * gram * scales)
    product = (eigenvectors * (1 - 1 / eigenvalues)) @ eigenvectors.T
    np.testing.assert_allclose(product, weights / scales[:, None] * scales, atol=1e-10)


@pytest.mark.parametrize("n_items", [12, 20])
def test_dimensions_that_few_items_cannot_fill_are_zero(n_items):
    towers = make_towers(8, n_items)
    towers.spectral_vectors.fill_(1)
    histories = RaggedArray.from_lists([[0, 1], [2, 3], [4, n_items - 1]] * 9)  # 6 items in all
    compute_spectral_part(towers, histories, seed=0)
    assert (towers.spectral_vectors == 0).all()


def test_towers_without_a_spectral_part_are_left_as_they_are():
    towers = TwoTower(synthetic.make_model_settings("set"), {}, {}, N_ITEMS)
    before = {name: weight.clone() for name, weight in towers.state_dict().items()}
    compute_spectral_part(towers, make_histories(), seed=0)
    assert all(torch.equal(before[name], weight) for name, weight in towers.state_dict().items())


def test_resumed_training_takes_the_spectral_part_from_the_checkpoint(tmp_path, monkeypatch):
    data = synthetic.make_training_data()
    model = synthetic.make_model_settings("set", dim=8, max_trained_dim=6, item_init="spectral")
    training = TrainingSettings(epochs=2, batch=16, lr=0.01)
    uninterrupted = train(data, model, training, tmp_path / "uninterrupted").towers.state_dict()
    train(data, model, training, tmp_path / "run", max_epochs=1)
    for name in ("initialize_item_ids", "compute_spectral_part"):
        monkeypatch.setattr(f"vecall.training.fit.{name}", lambda *_: pytest.fail("computed again"))
    resumed = train(data, model, training, tmp_path / "run").towers.state_dict()
    assert resumed["spectral_vectors"].any()
    assert all(torch.equal(weight, resumed[name]) for name, weight in uninterrupted.items())
