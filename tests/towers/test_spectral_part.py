import math

import pytest
import torch
from support import synthetic
from torch.nn.functional import cosine_similarity, normalize

from vecall.towers.settings import HistorySettings, ModelSettings
from vecall.towers.spectral_part import VectorParts
from vecall.towers.two_tower import TwoTower
from vecall.training.data import to_tensors

DATA = synthetic.make_training_data(item_features=True, user_features=True)
UNKNOWN = synthetic.ITEMS
HISTORIES, LENGTHS = torch.tensor([[3, 5, 1, 0], [2, UNKNOWN, 0, 0], [0, 0, 0, 0]]), torch.tensor([3, 2, 0])


def make_parts():
    """Parts of 6 trained and 2 spectral dimensions."""
    return VectorParts(synthetic.make_model_settings("set", dim=8, max_trained_dim=6))


def make_towers(*, specs=({}, {}), **model):
    """Towers of 6 trained and 4 spectral dimensions, as after training; item 0 has no interactions."""
    torch.manual_seed(0)
    settings = synthetic.make_model_settings("set", **{"dim": 10, "max_trained_dim": 6} | model)
    towers = TwoTower(settings, *specs, synthetic.ITEMS).eval()
    towers.set_spectral_share(0.4)
    with torch.no_grad():
        for parameter in towers.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        towers.spectral_vectors[1:-1] = torch.randn_like(towers.spectral_vectors[1:-1])
    return towers


def encode_all(towers):
    """Vectors of all items, that of the unknown one last."""
    return towers.encode_items(torch.arange(synthetic.ITEMS + 1), {})


def test_product_of_joined_vectors_is_the_mean_of_cosines_weighted_by_dimensions():
    parts = make_parts()
    parts.share.fill_(0.25)
    trained, spectral = normalize(torch.randn(2, 5, 6), dim=-1), 3 * torch.randn(2, 5, 2)
    users, items = (parts.join(trained[side], spectral[side]) for side in (0, 1))
    torch.testing.assert_close(users.norm(dim=1), torch.ones(5))
    expected = 0.75 * (trained[0] * trained[1]).sum(1) + 0.25 * cosine_similarity(spectral[0], spectral[1])
    torch.testing.assert_close((users * items).sum(1), expected)
    back = parts.split(users)
    torch.testing.assert_close(back[0], trained[0])
    torch.testing.assert_close(back[1], normalize(spectral[0], dim=1))


def test_vector_without_spectral_part_is_all_trained_part():
    trained = normalize(torch.randn(3, 6), dim=-1)
    joined = make_parts().join(trained, torch.zeros(3, 2))
    torch.testing.assert_close(joined, torch.cat([trained, torch.zeros(3, 2)], dim=1))


@pytest.mark.parametrize("ensemble_size", [1, 2])
def test_user_vectors_equal_the_formula_padded_and_as_sets(ensemble_size):
    """The trained part as of towers without a spectral one; beside it the direction of the sum of unit vectors."""
    towers = make_towers(ensemble_size=ensemble_size)
    trained_towers = make_towers(ensemble_size=ensemble_size)
    trained_towers.train()  # which encodes the trained part alone
    flat = torch.cat([row[:length] for row, length in zip(HISTORIES, LENGTHS, strict=True)])
    with torch.no_grad():
        items, trained_items = encode_all(towers), encode_all(trained_towers)
        padded = towers.encode_users(items, HISTORIES, LENGTHS, {})
        sets = towers.encode_users_by_sets(items, flat, LENGTHS, {})
        trained = trained_towers.encode_users_by_sets(trained_items, flat, LENGTHS, {})
        torch.testing.assert_close(padded, sets)
        torch.testing.assert_close(padded.norm(dim=1), torch.ones(3))
        units = normalize(towers.spectral_vectors, dim=1)
        for user, (history, length) in enumerate(zip(HISTORIES, LENGTHS, strict=True)):
            spectral = normalize(units[history[:length]].sum(0), dim=0)
            weights = (math.sqrt(0.6), math.sqrt(0.4)) if length else (1, 0)
            expected = torch.cat([weights[0] * trained[user], weights[1] * spectral])
            torch.testing.assert_close(sets[user], expected)
        torch.testing.assert_close(items[0, 6:], torch.zeros(4))
        torch.testing.assert_close(items[[0, -1], :6], trained_items[[0, -1]])
        torch.testing.assert_close(items.norm(dim=1), torch.ones(len(items)))


def test_features_have_no_part_in_the_spectral_vectors():
    towers = make_towers(specs=(DATA.item_specs, DATA.user_specs))
    features = to_tensors(DATA.item_features, torch.device("cpu"))
    shuffled = {name: values.flip(0) for name, values in features.items()}
    rows = torch.arange(synthetic.ITEMS)
    with torch.no_grad():
        vectors, others = towers.encode_items(rows, features), towers.encode_items(rows, shuffled)
    torch.testing.assert_close(vectors[:, 6:], others[:, 6:])
    assert not torch.allclose(vectors[:, :6], others[:, :6])


def test_dimensions_are_divided_only_beyond_the_bound_with_sets_and_ids():
    sets = HistorySettings(encoder="set")
    divided = ModelSettings(dim=12, max_trained_dim=8, history=sets)
    assert (divided.trained_dim, divided.spectral_dim) == (8, 4)
    for settings in (
        ModelSettings(dim=8, max_trained_dim=8, history=sets),
        ModelSettings(dim=12, history=sets),
        ModelSettings(dim=12, max_trained_dim=8),
        ModelSettings(dim=12, max_trained_dim=8, item_id=False, history=sets),
    ):
        assert (settings.trained_dim, settings.spectral_dim) == (settings.dim, 0)
        assert TwoTower(settings, DATA.item_specs, {}, 3).spectral_share is None
    with pytest.raises(ValueError, match="ensemble_size must divide max_trained_dim, got 3 and 8"):
        ModelSettings(dim=12, max_trained_dim=8, ensemble_size=3, history=sets)
