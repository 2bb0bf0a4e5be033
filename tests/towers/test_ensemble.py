import pytest
import torch
from support import synthetic

from vecall.towers.ensemble import normalize_per_member, split_ensemble
from vecall.towers.settings import HistorySettings, ModelSettings
from vecall.towers.two_tower import TwoTower


@pytest.mark.parametrize("members", [1, 2, 4])
def test_a_score_is_the_mean_of_the_members_cosines(members):
    torch.manual_seed(0)
    users, items = torch.randn(5, 8), torch.randn(5, 8)
    scores = (normalize_per_member(users, members) * normalize_per_member(items, members)).sum(1)
    split = zip(users.chunk(members, -1), items.chunk(members, -1), strict=True)
    cosines = torch.stack([torch.cosine_similarity(user, item) for user, item in split])
    torch.testing.assert_close(scores, cosines.mean(0))
    together = torch.cat(split_ensemble(normalize_per_member(users, members), members))
    torch.testing.assert_close(together.norm(dim=1), torch.ones(5 * members))


@pytest.mark.parametrize("encoder", ["mean", "attention", "causal"])
def test_a_member_reads_its_own_part_of_a_history(encoder):
    torch.manual_seed(0)
    made = TwoTower(synthetic.make_model_settings(encoder, members=2), {}, {}, synthetic.ITEMS).eval()
    items, histories, lengths = torch.randn(6, 8), torch.randint(6, (3, 4)), torch.tensor([4, 2, 1])
    items = normalize_per_member(items, 2)
    changed = items.clone()
    changed[:, 4:] = changed[:, 4:].flip(0)
    with torch.no_grad():
        before, after = (made.encode_users(one, histories, lengths, {}) for one in (items, changed))
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert (before[:, 4:] - after[:, 4:]).norm(dim=1).min() > 1e-3
    torch.testing.assert_close(before.norm(dim=1), torch.ones(3))


def test_the_places_of_a_window_are_what_its_parts_give_alone():
    torch.manual_seed(0)
    made = TwoTower(synthetic.make_model_settings("causal", members=2), {}, {}, synthetic.ITEMS).eval()
    items, histories = normalize_per_member(torch.randn(6, 8), 2), torch.randint(6, (3, 4))
    owners, places = torch.tensor([0, 1, 2, 2]), torch.tensor([4, 0, 1, 3])
    with torch.no_grad():
        together = made.encode_positions(items, histories, owners, places, {})
        torch.testing.assert_close(together, made.encode_users(items, histories[owners], places, {}))


def test_members_divide_the_dimension():
    with pytest.raises(ValueError, match="members must divide dim, got 3 and 8"):
        ModelSettings(dim=8, ensemble_size=3, history=HistorySettings())
