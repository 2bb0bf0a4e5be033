import pytest
import torch
from support import synthetic

from vecall.towers.ensemble import normalize_per_member, split_ensemble
from vecall.towers.settings import HistorySettings, ModelSettings
from vecall.towers.two_tower import TwoTower


@pytest.mark.parametrize("ensemble_size", [1, 2, 4])
def test_score_is_the_mean_of_the_cosines_of_the_members(ensemble_size):
    torch.manual_seed(0)
    users, items = torch.randn(5, 8), torch.randn(5, 8)
    scores = (normalize_per_member(users, ensemble_size) * normalize_per_member(items, ensemble_size)).sum(1)
    members = zip(users.chunk(ensemble_size, -1), items.chunk(ensemble_size, -1), strict=True)
    cosines = torch.stack([torch.cosine_similarity(*member) for member in members])
    torch.testing.assert_close(scores, cosines.mean(0))
    member_vectors = torch.cat(split_ensemble(normalize_per_member(users, ensemble_size), ensemble_size))
    torch.testing.assert_close(member_vectors.norm(dim=1), torch.ones(5 * ensemble_size))


@pytest.mark.parametrize("encoder", ["mean", "attention", "causal", "set"])
def test_member_reads_only_its_own_part_of_a_history(encoder):
    torch.manual_seed(0)
    towers = TwoTower(synthetic.make_model_settings(encoder, ensemble_size=2), {}, {}, synthetic.ITEMS).eval()
    items, histories, lengths = torch.randn(6, 8), torch.randint(6, (3, 4)), torch.tensor([4, 2, 1])
    items = normalize_per_member(items, 2)
    changed = items.clone()
    changed[:, 4:] = changed[:, 4:].flip(0)
    with torch.no_grad():
        before, after = (towers.encode_users(vectors, histories, lengths, {}) for vectors in (items, changed))
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert (before[:, 4:] - after[:, 4:]).norm(dim=1).min() > 1e-3
    torch.testing.assert_close(before.norm(dim=1), torch.ones(3))


def test_positions_of_an_ensemble_equal_the_encodings_of_their_prefixes():
    torch.manual_seed(0)
    towers = TwoTower(synthetic.make_model_settings("causal", ensemble_size=2), {}, {}, synthetic.ITEMS).eval()
    items, histories = normalize_per_member(torch.randn(6, 8), 2), torch.randint(6, (3, 4))
    history_index, positions = torch.tensor([0, 1, 2, 2]), torch.tensor([4, 0, 1, 3])
    with torch.no_grad():
        vectors = towers.encode_users_at_positions(items, histories, history_index, positions, {})
        torch.testing.assert_close(vectors, towers.encode_users(items, histories[history_index], positions, {}))


def test_ensemble_size_that_does_not_divide_the_dimension_is_refused():
    with pytest.raises(ValueError, match="ensemble_size must divide dim, got 3 and 8"):
        ModelSettings(dim=8, ensemble_size=3, history=HistorySettings())
