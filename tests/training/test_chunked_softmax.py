import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vecall.training import chunked_softmax
from vecall.training.chunked_softmax import chunked_cross_entropy
from vecall.training.losses import masked_cross_entropy

USERS, ITEMS, DIM = 23, 17, 5


def make_inputs(seed, *, length=None):
    """Users, items, targets and, with a length, masked items."""
    generator = torch.Generator().manual_seed(seed)
    users = torch.randn(USERS, DIM, generator=generator, requires_grad=True)
    items = torch.randn(ITEMS, DIM, generator=generator, requires_grad=True)
    targets = torch.randint(ITEMS, (USERS,), generator=generator)
    masked_items = None if length is None else torch.randint(ITEMS, (USERS, length), generator=generator)
    return users, items, targets, masked_items


def compute_expected_loss(users, items, targets, masked_items, label_smoothing, weights=None):
    scores = users @ items.T
    if masked_items is not None:
        is_masked = torch.zeros(USERS, ITEMS, dtype=torch.bool).scatter_(1, masked_items, value=True)
        scores = scores.masked_fill(is_masked.scatter_(1, targets.unsqueeze(1), value=False), -torch.inf)
    return masked_cross_entropy(scores, targets, weights, label_smoothing=label_smoothing)


def assert_equal_gradients(loss, expected, inputs):
    gradients = zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), strict=True)
    for gradient, expected_gradient in gradients:
        torch.testing.assert_close(gradient, expected_gradient, atol=1e-6, rtol=1e-4)


@given(seed=st.integers(0, 1000), length=st.none() | st.integers(1, 30), smoothing=st.sampled_from([0.0, 0.1, 0.7]))
@settings(max_examples=60)
def test_loss_and_gradients_equal_those_of_all_logits(seed, length, smoothing):
    users, items, targets, masked_items = make_inputs(seed, length=length)
    expected = compute_expected_loss(users, items, targets, masked_items, smoothing)
    loss = chunked_cross_entropy(users, items, targets, masked_items, label_smoothing=smoothing)
    torch.testing.assert_close(loss, expected)
    assert_equal_gradients(3 * loss, 3 * expected, (users, items))


@pytest.mark.parametrize("chunk_logits", [3 * ITEMS, 10**9])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_weighted_loss_and_gradients_equal_those_of_all_logits(chunk_logits, smoothing, monkeypatch):
    monkeypatch.setattr(chunked_softmax, "_CHUNK_LOGITS_BY_DEVICE", {"cpu": chunk_logits})
    users, items, targets, masked_items = make_inputs(2, length=3)
    weights = torch.rand(USERS, generator=torch.Generator().manual_seed(0)) * (torch.arange(USERS) % 4 > 0)
    loss = chunked_cross_entropy(users, items, targets, masked_items, weights, label_smoothing=smoothing)
    expected = compute_expected_loss(users, items, targets, masked_items, smoothing, weights)
    torch.testing.assert_close(loss, expected)
    assert_equal_gradients(3 * loss, 3 * expected, (users, items))


@pytest.mark.parametrize("chunk_logits", [1, 5 * ITEMS, 10**9])
def test_loss_and_gradients_do_not_depend_on_the_chunk_size(chunk_logits, monkeypatch):
    monkeypatch.setattr(chunked_softmax, "_CHUNK_LOGITS_BY_DEVICE", {"cpu": chunk_logits})
    users, items, targets, masked_items = make_inputs(1, length=4)
    loss = chunked_cross_entropy(users, items, targets, masked_items, label_smoothing=0.1)
    expected = compute_expected_loss(users, items, targets, masked_items, 0.1)
    torch.testing.assert_close(loss, expected)
    assert_equal_gradients(loss, expected, (users, items))


def test_large_score_differences_do_not_overflow():
    users = torch.tensor([[1000.0], [-1000.0]], requires_grad=True)
    items = torch.tensor([[1.0], [-1.0]])
    loss = chunked_cross_entropy(users, items, torch.tensor([1, 1]))
    assert loss.item() == pytest.approx(1000)  # the mean of 2000 and 0
    loss.backward()
    assert torch.isfinite(users.grad).all()
