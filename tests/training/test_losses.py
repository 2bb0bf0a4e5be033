import math

import numpy as np
import pytest
import torch

from vecall.training.losses import binary_cross_entropy, masked_cross_entropy, sampled_softmax_loss

torch.set_num_threads(1)


def no_hits(rows, candidates):
    return torch.zeros(rows, candidates, dtype=torch.bool)


def test_bce_by_hand():
    scores, labels = torch.tensor([0.0, math.log(3), -math.log(3)]), torch.tensor([1.0, 1.0, 0.0])
    # sigmoid: 1/2, 3/4, 1/4: the losses are -log of 1/2, 3/4, 3/4
    assert binary_cross_entropy(scores, labels).item() == pytest.approx(-math.log(1 / 2 * 3 / 4 * 3 / 4) / 3)


def test_full_softmax_by_hand():
    scores = torch.tensor([[1.0, 2.0, 4.0], [1.0, 1.0, 1.0]]).log()
    assert masked_cross_entropy(scores, torch.tensor([2, 0])).item() == pytest.approx(
        -(math.log(4 / 7) + math.log(1 / 3)) / 2
    )


def test_an_item_out_of_the_race_counts_nowhere():
    scores = torch.tensor([[1.0, 2.0, 4.0]]).log()
    scores[0, 1] = -torch.inf
    assert masked_cross_entropy(scores, torch.tensor([2])).item() == pytest.approx(-math.log(4 / 5))
    smoothed = masked_cross_entropy(scores, torch.tensor([2]), label_smoothing=0.2).item()
    assert smoothed == pytest.approx(-(0.9 * math.log(4 / 5) + 0.1 * math.log(1 / 5)))


def test_label_smoothing_by_hand_and_as_torch_has_it():
    scores = torch.tensor([[1.0, 2.0, 5.0]]).log()
    by_hand = -(0.7 * math.log(5 / 8) + 0.1 * (math.log(1 / 8) + math.log(2 / 8) + math.log(5 / 8)))
    assert masked_cross_entropy(scores, torch.tensor([2]), label_smoothing=0.3).item() == pytest.approx(by_hand)
    random = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 6, 3, 3, 1])
    expected = torch.nn.functional.cross_entropy(random, targets, label_smoothing=0.1)
    torch.testing.assert_close(masked_cross_entropy(random, targets, label_smoothing=0.1), expected)


def test_sampled_softmax_by_hand():
    positive, candidates = torch.tensor([math.log(3.0)]), torch.tensor([[math.log(2.0), math.log(5.0)]])
    log_q = torch.tensor([0.5, 2.0]).log()
    # corrected candidates weigh 2 / .5 and 5 / 2
    loss = sampled_softmax_loss(positive, candidates, log_q, no_hits(1, 2))
    assert loss.item() == pytest.approx(-math.log(3 / (3 + 4 + 2.5)))
    usual = sampled_softmax_loss(positive, candidates, log_q, no_hits(1, 2), positive_log_q=torch.tensor([0.25]).log())
    assert usual.item() == pytest.approx(-math.log(12 / (12 + 4 + 2.5)))


def test_the_sign_of_log_q():
    """The rarer a candidate is drawn, the more its one appearance stands for: the more it weighs."""
    scores = torch.zeros(1, 2)
    candidates = scores.clone().requires_grad_()
    sampled_softmax_loss(torch.zeros(1), candidates, torch.tensor([0.01, 1.0]).log(), no_hits(1, 2)).backward()
    rare, often = candidates.grad[0].tolist()
    assert rare == pytest.approx(100 * often)
    assert rare > 0  # and it is pushed down


def test_accidental_hits_are_left_out():
    positive, log_q = torch.tensor([1.0]), torch.zeros(3)
    candidates = torch.tensor([[0.5, 1.0, -0.5]], requires_grad=True)
    hits = torch.tensor([[False, True, False]])
    for smoothing in (0.0, 0.2):
        masked = sampled_softmax_loss(positive, candidates, log_q, hits, label_smoothing=smoothing)
        without = sampled_softmax_loss(
            positive, candidates[:, [0, 2]], log_q[:2], hits[:, [0, 2]], label_smoothing=smoothing
        )
        assert masked.item() == pytest.approx(without.item())
        (gradient,) = torch.autograd.grad(masked, candidates)
        assert gradient[0, 1] == 0
        assert torch.isfinite(gradient).all()


def test_all_items_as_uniform_candidates_are_the_full_softmax():
    scores = torch.randn(6, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 1, 2, 3, 8, 8])
    hits = torch.nn.functional.one_hot(targets, 9).bool()
    positive = scores.gather(1, targets[:, None]).squeeze(1)
    for smoothing in (0.0, 0.1):
        full = masked_cross_entropy(scores, targets, label_smoothing=smoothing)
        # Each item stands once in the list, so log Q is 0: the very same loss and gradient.
        sampled = sampled_softmax_loss(
            positive, scores, torch.zeros(9, dtype=torch.float64), hits, label_smoothing=smoothing
        )
        torch.testing.assert_close(sampled, full)
        gradients = [torch.autograd.grad(loss, scores, retain_graph=True)[0] for loss in (sampled, full)]
        torch.testing.assert_close(*gradients)


@pytest.fixture(scope="module")
def learned_by():
    """A catalogue of eight items taken by a known softmax: scores learned by a loss, popular negatives drawn."""
    wanted = torch.tensor([0.35, 0.22, 0.15, 0.1, 0.08, 0.05, 0.03, 0.02])

    def learn(*, corrected):
        generator = torch.Generator().manual_seed(0)
        scores = torch.zeros(8, requires_grad=True)
        optimizer = torch.optim.Adam([scores], lr=0.03)
        tail = []
        for step in range(800):
            targets, drawn = (torch.multinomial(wanted, n, replacement=True, generator=generator) for n in (256, 24))
            log_q = (24 * wanted[drawn]).log() if corrected else torch.zeros(24)
            hits = targets[:, None] == drawn[None, :]
            candidates = scores[drawn].expand(256, -1)
            loss = sampled_softmax_loss(scores[targets], candidates, log_q, hits)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step >= 400:
                tail.append(scores.detach().clone())
        return torch.stack(tail).mean(0)

    return wanted, learn


def test_the_corrected_loss_learns_the_full_softmax_and_the_uncorrected_one_does_not(learned_by):
    wanted, learn = learned_by
    corrected, uncorrected = learn(corrected=True), learn(corrected=False)
    assert corrected.argsort(descending=True).tolist() == list(range(8))
    np.testing.assert_allclose(corrected.softmax(0), wanted, atol=0.03)
    # Left uncorrected, each item is pushed down as often as it is pulled up: popularity is not learned.
    assert uncorrected.softmax(0)[0] < 0.2
    assert uncorrected.argsort(descending=True).tolist() != list(range(8))
