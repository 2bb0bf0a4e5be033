import math

import numpy as np
import pytest
import torch

from vecall.training.losses import (
    binary_cross_entropy,
    masked_cross_entropy,
    multi_target_cross_entropy,
    sampled_softmax_loss,
)

torch.set_num_threads(1)


def ignore_none(rows, candidates):
    return torch.zeros(rows, candidates, dtype=torch.bool)


def test_binary_cross_entropy_equals_the_formula():
    scores, labels = torch.tensor([0.0, math.log(3), -math.log(3)]), torch.tensor([1.0, 1.0, 0.0])
    # The sigmoids are 1/2, 3/4 and 1/4, so the losses are -log of 1/2, 3/4 and 3/4.
    assert binary_cross_entropy(scores, labels).item() == pytest.approx(-math.log(1 / 2 * 3 / 4 * 3 / 4) / 3)


def test_cross_entropy_equals_the_formula():
    scores = torch.tensor([[1.0, 2.0, 4.0], [1.0, 1.0, 1.0]]).log()
    assert masked_cross_entropy(scores, torch.tensor([2, 0])).item() == pytest.approx(
        -(math.log(4 / 7) + math.log(1 / 3)) / 2
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_weighted_losses_are_the_mean_of_weight_times_loss(smoothing):
    generator = torch.Generator().manual_seed(0)
    scores, targets = torch.randn(4, 6, generator=generator), torch.tensor([0, 5, 2, 2])
    positives, labels = torch.randn(4, generator=generator), torch.tensor([1.0, 0.0, 1.0, 0.0])
    log_counts, mask = torch.rand(6, generator=generator).log(), ignore_none(4, 6)
    weights = torch.tensor([0.0, 0.5, 1.0, 3.0])
    rows = [slice(row, row + 1) for row in range(4)]
    for weighted, by_row in (
        (
            binary_cross_entropy(positives, labels, weights),
            [binary_cross_entropy(positives[r], labels[r]) for r in rows],
        ),
        (
            masked_cross_entropy(scores, targets, weights, label_smoothing=smoothing),
            [masked_cross_entropy(scores[r], targets[r], label_smoothing=smoothing) for r in rows],
        ),
        (
            sampled_softmax_loss(positives, scores, log_counts, mask, weights, label_smoothing=smoothing),
            [
                sampled_softmax_loss(positives[r], scores[r], log_counts, mask[r], label_smoothing=smoothing)
                for r in rows
            ],
        ),
    ):
        torch.testing.assert_close(weighted, (weights * torch.stack(by_row)).mean())


def test_masked_item_has_no_share_of_softmax_and_smoothing():
    scores = torch.tensor([[1.0, 2.0, 4.0]]).log()
    scores[0, 1] = -torch.inf
    assert masked_cross_entropy(scores, torch.tensor([2])).item() == pytest.approx(-math.log(4 / 5))
    smoothed = masked_cross_entropy(scores, torch.tensor([2]), label_smoothing=0.2).item()
    assert smoothed == pytest.approx(-(0.9 * math.log(4 / 5) + 0.1 * math.log(1 / 5)))


def test_label_smoothing_equals_the_formula_and_torch():
    scores = torch.tensor([[1.0, 2.0, 5.0]]).log()
    expected = -(0.7 * math.log(5 / 8) + 0.1 * (math.log(1 / 8) + math.log(2 / 8) + math.log(5 / 8)))
    assert masked_cross_entropy(scores, torch.tensor([2]), label_smoothing=0.3).item() == pytest.approx(expected)
    scores = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 6, 3, 3, 1])
    expected = torch.nn.functional.cross_entropy(scores, targets, label_smoothing=0.1)
    torch.testing.assert_close(masked_cross_entropy(scores, targets, label_smoothing=0.1), expected)


def test_sampled_softmax_equals_the_formula():
    positive, candidates = torch.tensor([math.log(3.0)]), torch.tensor([[math.log(2.0), math.log(5.0)]])
    log_expected_counts = torch.tensor([0.5, 2.0]).log()
    # The corrected candidates have the weights 2 / 0.5 and 5 / 2; the positive is not corrected.
    loss = sampled_softmax_loss(positive, candidates, log_expected_counts, ignore_none(1, 2))
    assert loss.item() == pytest.approx(-math.log(3 / (3 + 4 + 2.5)))


def compute_multi_target_loss(scores, own_scores, owners, weights, smoothing):
    """Oracle of `multi_target_cross_entropy`: target by target, over the finite scores and the user's own targets."""
    losses = []
    for owner, own_score in zip(owners.tolist(), own_scores, strict=True):
        logits = torch.cat([scores[owner][torch.isfinite(scores[owner])], own_scores[owners == owner]])
        log_probs = torch.log_softmax(logits, 0)
        losses.append(-(1 - smoothing) * (own_score - logits.logsumexp(0)) - smoothing * log_probs.mean())
    losses = torch.stack(losses)
    return (losses if weights is None else losses * weights).mean()


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_multi_target_cross_entropy_equals_a_loop_over_targets(smoothing, is_weighted):
    generator = torch.Generator().manual_seed(0)
    scores = 5 * torch.randn(4, 6, generator=generator, dtype=torch.float64)
    scores[torch.rand(4, 6, generator=generator) < 0.3] = -torch.inf
    scores[2] = -torch.inf  # this user took every item
    own_scores = 5 * torch.randn(7, generator=generator, dtype=torch.float64)
    owners = torch.tensor([0, 0, 0, 1, 2, 2, 3])
    weights = torch.rand(7, generator=generator, dtype=torch.float64) if is_weighted else None
    results = []
    for function in (multi_target_cross_entropy, compute_multi_target_loss):
        inputs = scores.clone().requires_grad_(), own_scores.clone().requires_grad_()
        keyword = {"label_smoothing": smoothing} if function is multi_target_cross_entropy else {"smoothing": smoothing}
        loss = function(*inputs, owners, weights, **keyword)
        results.append((loss, *torch.autograd.grad(loss, inputs)))
    for actual, expected in zip(*results, strict=True):
        assert torch.isfinite(actual).all()
        torch.testing.assert_close(actual, expected)


def test_multi_target_cross_entropy_of_large_scores_is_finite():
    scores = torch.tensor([[1e4, -1e4], [-torch.inf, -1e4]])
    loss = multi_target_cross_entropy(scores, torch.tensor([-1e4, 1e4]), torch.tensor([0, 1]))
    assert loss.item() == pytest.approx(1e4)


def test_multi_target_cross_entropy_of_one_target_is_masked_cross_entropy():
    scores = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 6, 3, 3, 1])
    own_scores = scores.gather(1, targets.unsqueeze(1)).squeeze(1)
    others = scores.scatter(1, targets.unsqueeze(1), -torch.inf)
    for smoothing in (0.0, 0.2):
        torch.testing.assert_close(
            multi_target_cross_entropy(others, own_scores, torch.arange(5), label_smoothing=smoothing),
            masked_cross_entropy(scores, targets, label_smoothing=smoothing),
        )


def test_rarely_sampled_candidate_has_a_larger_gradient():
    """A candidate that is sampled with a low probability represents many steps in which it is not sampled."""
    candidates = torch.zeros(1, 2, requires_grad=True)
    sampled_softmax_loss(torch.zeros(1), candidates, torch.tensor([0.01, 1.0]).log(), ignore_none(1, 2)).backward()
    rare, frequent = candidates.grad[0].tolist()
    assert rare == pytest.approx(100 * frequent)
    assert rare > 0  # gradient descent lowers its score


def test_ignored_candidate_has_no_effect():
    positive, log_expected_counts = torch.tensor([1.0]), torch.zeros(3)
    candidates = torch.tensor([[0.5, 1.0, -0.5]], requires_grad=True)
    ignore_mask = torch.tensor([[False, True, False]])
    for smoothing in (0.0, 0.2):
        masked = sampled_softmax_loss(positive, candidates, log_expected_counts, ignore_mask, label_smoothing=smoothing)
        without = sampled_softmax_loss(
            positive, candidates[:, [0, 2]], log_expected_counts[:2], ignore_mask[:, [0, 2]], label_smoothing=smoothing
        )
        assert masked.item() == pytest.approx(without.item())
        (gradient,) = torch.autograd.grad(masked, candidates)
        assert gradient[0, 1] == 0
        assert torch.isfinite(gradient).all()


def test_sampled_softmax_of_all_items_equals_full_softmax():
    scores = torch.randn(6, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 1, 2, 3, 8, 8])
    ignore_mask = torch.nn.functional.one_hot(targets, 9).bool()
    positive = scores.gather(1, targets[:, None]).squeeze(1)
    for smoothing in (0.0, 0.1):
        full = masked_cross_entropy(scores, targets, label_smoothing=smoothing)
        # Each item is in the list once, so log Q is 0: loss and gradient must be the same.
        sampled = sampled_softmax_loss(
            positive, scores, torch.zeros(9, dtype=torch.float64), ignore_mask, label_smoothing=smoothing
        )
        torch.testing.assert_close(sampled, full)
        gradients = [torch.autograd.grad(loss, scores, retain_graph=True)[0] for loss in (sampled, full)]
        torch.testing.assert_close(*gradients)


def learn_scores(probabilities, *, corrected):
    """Scores learned from targets of the given distribution, with negatives sampled from it too."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.zeros(8, requires_grad=True)
    optimizer = torch.optim.Adam([scores], lr=0.03)
    late_scores = []
    for step in range(800):
        targets, sampled = (
            torch.multinomial(probabilities, n, replacement=True, generator=generator) for n in (256, 24)
        )
        log_expected_counts = (24 * probabilities[sampled]).log() if corrected else torch.zeros(24)
        ignore_mask = targets[:, None] == sampled[None, :]
        candidates = scores[sampled].expand(256, -1)
        loss = sampled_softmax_loss(scores[targets], candidates, log_expected_counts, ignore_mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step >= 400:
            late_scores.append(scores.detach().clone())
    return torch.stack(late_scores).mean(0)


def test_only_the_corrected_loss_learns_the_full_softmax():
    probabilities = torch.tensor([0.35, 0.22, 0.15, 0.1, 0.08, 0.05, 0.03, 0.02])
    corrected = learn_scores(probabilities, corrected=True)
    uncorrected = learn_scores(probabilities, corrected=False)
    assert corrected.argsort(descending=True).tolist() == list(range(8))
    np.testing.assert_allclose(corrected.softmax(0), probabilities, atol=0.03)
    # Without the correction, each item is pushed down as often as it is pulled up: popularity is not learned.
    assert uncorrected.softmax(0)[0] < 0.2
    assert uncorrected.argsort(descending=True).tolist() != list(range(8))
