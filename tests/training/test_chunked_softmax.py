import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vecall.training import chunked_softmax
from vecall.training.chunked_softmax import chunked_cross_entropy
from vecall.training.losses import masked_cross_entropy

USERS, ITEMS, DIM = 23, 17, 5


def problem(seed, *, length=None):
    random = torch.Generator().manual_seed(seed)
    users = torch.randn(USERS, DIM, generator=random, requires_grad=True)
    items = torch.randn(ITEMS, DIM, generator=random, requires_grad=True)
    targets = torch.randint(ITEMS, (USERS,), generator=random)
    known = None if length is None else torch.randint(ITEMS, (USERS, length), generator=random)
    return users, items, targets, known


def oracle(users, items, targets, known, smoothing):
    scores = users @ items.T
    if known is not None:
        out = torch.zeros(USERS, ITEMS, dtype=torch.bool).scatter_(1, known, value=True)
        scores = scores.masked_fill(out.scatter_(1, targets.unsqueeze(1), value=False), -torch.inf)
    return masked_cross_entropy(scores, targets, label_smoothing=smoothing)


@given(seed=st.integers(0, 1000), length=st.none() | st.integers(1, 30), smoothing=st.sampled_from([0.0, 0.1, 0.7]))
@settings(max_examples=60)
def test_loss_and_gradients_are_those_of_the_logits_in_full(seed, length, smoothing):
    users, items, targets, known = problem(seed, length=length)
    expected = oracle(users, items, targets, known, smoothing)
    found = chunked_cross_entropy(users, items, targets, known, label_smoothing=smoothing)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(
        torch.autograd.grad(3 * found, (users, items)), torch.autograd.grad(3 * expected, (users, items)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("at_once", [1, 5 * ITEMS, 10**9])
def test_rows_are_taken_in_pieces(at_once, monkeypatch):
    monkeypatch.setattr(chunked_softmax, "_LOGITS_AT_ONCE", {"cpu": at_once})
    users, items, targets, known = problem(1, length=4)
    found = chunked_cross_entropy(users, items, targets, known, label_smoothing=0.1)
    expected = oracle(users, items, targets, known, 0.1)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(
        torch.autograd.grad(found, (users, items)), torch.autograd.grad(expected, (users, items)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_scores_far_apart_overflow_nothing():
    users = torch.tensor([[1000.0], [-1000.0]], requires_grad=True)
    items = torch.tensor([[1.0], [-1.0]])
    loss = chunked_cross_entropy(users, items, torch.tensor([1, 1]))
    assert loss.item() == pytest.approx(1000)  # 2000 and 0
    loss.backward()
    assert torch.isfinite(users.grad).all()
