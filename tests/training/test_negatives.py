import numpy as np
import pytest
import torch

from vecall.data.split import LabeledNegatives
from vecall.training.negatives import HardNegatives, sample_candidates, sample_uniform_negatives
from vecall.training.settings import NegativeSettings

N, DRAWS = 20, 3000


@pytest.mark.parametrize(("uniform", "in_batch"), [(12, 0), (0, 8), (12, 8), (3, 100)])
def test_items_stand_in_the_list_as_often_as_log_q_says(uniform, in_batch):
    torch.manual_seed(0)
    frequencies = torch.arange(1, N + 1, dtype=torch.float32)
    met = torch.arange(2, N)  # of the first two nothing is known
    frequencies[:2] = 0
    frequencies /= frequencies.sum()
    settings = NegativeSettings(uniform=uniform, in_batch=in_batch)
    counts, said = np.zeros(N), np.full(N, np.nan)
    for _ in range(DRAWS):
        targets = torch.multinomial(frequencies, 16, replacement=True)
        drawn = sample_candidates(settings, targets, met, frequencies)
        assert len(drawn.rows) == len(drawn.log_q) == uniform + min(in_batch, 16)
        counts += np.bincount(drawn.rows, minlength=N)
        said[drawn.rows] = drawn.log_q.exp()
    assert np.isnan(said[:2]).all()
    counts, said = counts[2:], said[2:]
    expected = DRAWS * said
    assert np.isfinite(expected).all()
    # Counts are sums of Bernoulli draws: their variance is at most their mean.
    assert (np.abs(counts - expected) / np.sqrt(expected)).max() < 4
    assert said.sum() == pytest.approx(uniform + min(in_batch, 16), rel=1e-5)


def test_uniform_negatives_are_never_the_positive_and_even_over_the_rest():
    torch.manual_seed(0)
    targets = torch.tensor([0, 7, N - 1])
    drawn = sample_uniform_negatives(19 * 500, N, targets)
    assert drawn.shape == (3, 19 * 500)
    for row, target in zip(drawn, targets.tolist(), strict=True):
        counts = np.bincount(row, minlength=N)
        assert counts[target] == 0
        others = np.delete(counts, target)
        assert ((others - 500) ** 2 / 500).sum() < 43.8  # chi squared, 18 degrees of freedom, p = .0006


def test_of_two_items_the_other_one_is_drawn():
    assert sample_uniform_negatives(3, 2, torch.tensor([0, 1])).tolist() == [[1] * 3, [0] * 3]


def test_known_negatives_are_the_users_own_each_as_likely():
    torch.manual_seed(0)
    users, items = np.array([2, 0, 2, 2, 2, 0]), np.array([7, 4, 5, 7, 9, 3])  # 7 was shown to 2 twice
    known = HardNegatives.from_pairs(LabeledNegatives(users, items, np.zeros(6, dtype=np.int64)), n_users=4)
    rows, given = known.sample(torch.arange(4).repeat(3000), 2)
    by_user = {user: rows[user::4][given[user::4]].bincount(minlength=10) for user in range(4)}
    assert (by_user[1].sum(), by_user[3].sum()) == (0, 0)
    assert by_user[0].tolist() == [0, 0, 0, 3000, 3000, 0, 0, 0, 0, 0]
    assert by_user[2].nonzero().flatten().tolist() == [5, 7, 9]
    np.testing.assert_allclose(by_user[2][[5, 7, 9]].numpy(), 2000, rtol=0.06)
    assert (rows[2::4, 0] != rows[2::4, 1]).all()


def test_without_known_negatives_none_are_drawn():
    nothing = np.empty(0, dtype=np.int64)
    rows, given = HardNegatives.from_pairs(LabeledNegatives(nothing, nothing, nothing), n_users=2).sample(
        torch.tensor([0, 1, 1]), 3
    )
    assert rows.tolist() == [[0] * 3] * 3
    assert not given.any()
