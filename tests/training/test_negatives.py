import numpy as np
import pytest
import torch

from vecall.data.split import HardNegatives
from vecall.training.negatives import HardNegativeSampler, sample_candidates, sample_uniform_negatives
from vecall.training.settings import NegativeSettings

N, DRAWS = 20, 3000


@pytest.mark.parametrize(("uniform", "in_batch"), [(12, 0), (0, 8), (12, 8), (3, 100)])
def test_log_q_is_the_log_of_the_expected_count(uniform, in_batch):
    torch.manual_seed(0)
    frequencies = torch.arange(1, N + 1, dtype=torch.float32)
    candidate_items = torch.arange(2, N)
    frequencies[:2] = 0
    frequencies /= frequencies.sum()
    settings = NegativeSettings(uniform=uniform, in_batch=in_batch)
    counts, q = np.zeros(N), np.full(N, np.nan)
    for _ in range(DRAWS):
        targets = torch.multinomial(frequencies, 16, replacement=True)
        users = torch.arange(100, 116)
        sampled = sample_candidates(settings, users, targets, candidate_items, frequencies)
        assert (sampled.owners[:uniform] == -1).all()
        assert (targets[sampled.owners[uniform:] - 100] == sampled.rows[uniform:]).all()
        assert len(sampled.rows) == len(sampled.log_expected_counts) == uniform + min(in_batch, 16)
        counts += np.bincount(sampled.rows, minlength=N)
        q[sampled.rows] = sampled.log_expected_counts.exp()
    assert np.isnan(q[:2]).all()
    counts, q = counts[2:], q[2:]
    expected = DRAWS * q
    assert np.isfinite(expected).all()
    # Counts are sums of Bernoulli draws: their variance is at most their mean.
    assert (np.abs(counts - expected) / np.sqrt(expected)).max() < 4
    assert q.sum() == pytest.approx(uniform + min(in_batch, 16), rel=1e-5)


def compute_relative_denominator(n_items, draws, *, uniform, in_batch):
    """Mean over the draws of the softmax denominator that the candidates estimate, as a share of the exact one."""
    torch.manual_seed(0)
    frequencies = torch.arange(1, n_items + 1).double() ** -1.0  # Zipf
    frequencies /= frequencies.sum()
    # Popular items score higher, as after training: candidates that are weighted wrongly would change the estimate.
    scores = torch.randn(n_items, dtype=torch.float64) - 0.3 * torch.arange(1, n_items + 1).double().log()
    settings, estimates = NegativeSettings(uniform=uniform, in_batch=in_batch), []
    for _ in range(draws):
        targets = torch.multinomial(frequencies, 512, replacement=True)
        sampled = sample_candidates(settings, torch.arange(512), targets, torch.arange(n_items), frequencies)
        estimates.append((scores[sampled.rows] - sampled.log_expected_counts).exp().sum())
    return (torch.stack(estimates).mean() / scores.exp().sum()).item()


@pytest.mark.parametrize(("uniform", "in_batch"), [(1024, 0), (1024, 256), (0, 512)])
def test_expected_denominator_is_that_of_the_softmax_over_10_000_items(uniform, in_batch):
    assert compute_relative_denominator(10_000, 150, uniform=uniform, in_batch=in_batch) == pytest.approx(1, abs=0.02)


def test_uniform_negatives_exclude_the_positive_and_are_uniform_over_the_others():
    torch.manual_seed(0)
    targets = torch.tensor([0, 7, N - 1])
    sampled = sample_uniform_negatives(19 * 500, N, targets)
    assert sampled.shape == (3, 19 * 500)
    for rows, target in zip(sampled, targets.tolist(), strict=True):
        counts = np.bincount(rows, minlength=N)
        assert counts[target] == 0
        others = np.delete(counts, target)
        assert ((others - 500) ** 2 / 500).sum() < 43.8  # chi-squared, 18 degrees of freedom, p = 0.0006


def test_uniform_negative_of_two_items_is_the_other_item():
    assert sample_uniform_negatives(3, 2, torch.tensor([0, 1])).tolist() == [[1] * 3, [0] * 3]


def test_hard_negatives_are_distinct_items_of_the_user_with_equal_probability():
    torch.manual_seed(0)
    users, items = np.array([2, 0, 2, 2, 2, 0]), np.array([7, 4, 5, 7, 9, 3])  # the pair (2, 7) occurs twice
    pairs = HardNegatives(users, items, np.zeros(6, dtype=np.int64))
    rows, is_sampled = HardNegativeSampler.from_pairs(pairs, n_users=4).sample(torch.arange(4).repeat(3000), 2)
    counts = {user: rows[user::4][is_sampled[user::4]].bincount(minlength=10) for user in range(4)}
    assert (counts[1].sum(), counts[3].sum()) == (0, 0)
    assert counts[0].tolist() == [0, 0, 0, 3000, 3000, 0, 0, 0, 0, 0]
    assert counts[2].nonzero().flatten().tolist() == [5, 7, 9]
    np.testing.assert_allclose(counts[2][[5, 7, 9]].numpy(), 2000, rtol=0.06)
    assert (rows[2::4, 0] != rows[2::4, 1]).all()


def test_no_hard_negatives_are_sampled_if_there_are_none():
    empty = np.empty(0, dtype=np.int64)
    hard_negatives = HardNegativeSampler.from_pairs(HardNegatives(empty, empty, empty), n_users=2)
    rows, is_sampled = hard_negatives.sample(torch.tensor([0, 1, 1]), 3)
    assert rows.shape == is_sampled.shape == (3, 0)
