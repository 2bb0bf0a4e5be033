import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vecall.towers.history import DECAYS, build_history_encoder
from vecall.towers.settings import HistorySettings

DIM = 6
torch.set_num_threads(1)


def make_encoder(name):
    """Encoder with random weights, also where the initial weights are 0."""
    torch.manual_seed(0)
    encoder = build_history_encoder(HistorySettings(encoder=name), DIM, dropout=0.5).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return encoder


def make_vectors(*shape, seed=0):
    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_no_encoder_is_built_for_none():
    assert build_history_encoder(HistorySettings(encoder="none"), DIM, 0.0) is None


def test_initial_mean_encoding_equals_the_formula():
    """With two items, the mean of decay d is (d · old + new) / (d + 1), scaled to length 1; the four are averaged."""
    history = make_vectors(1, 2, DIM)
    encoder = build_history_encoder(HistorySettings(encoder="mean"), DIM, dropout=0.0)
    old, new = history[0].numpy()
    means = [(decay * old + new) / (decay + 1) for decay in DECAYS]
    expected = np.mean([mean / np.linalg.norm(mean) for mean in means], axis=0)
    with torch.no_grad():
        np.testing.assert_allclose(encoder(history, torch.tensor([2]))[0], expected, atol=1e-6)


def test_initial_attention_encoding_equals_the_formula():
    history = make_vectors(1, 2, DIM)
    encoder = build_history_encoder(HistorySettings(encoder="attention"), DIM, dropout=0.0)
    with torch.no_grad():
        encoder.attention_query.weight.zero_()
        old, new = history[0]
        weights = torch.softmax(torch.tensor([-0.1, 0.0]), 0)  # the older item has age 1
        expected = torch.nn.functional.normalize(weights[0] * old + weights[1] * new, dim=0)
        torch.testing.assert_close(encoder(history, torch.tensor([2]))[0], expected)


def test_set_encoding_equals_the_formula():
    """(1 + W) · sum / √n + c, for any order."""
    encoder, history = make_encoder("set"), make_vectors(3, 4, DIM)
    lengths = torch.tensor([4, 3, 1])
    weight, constant = encoder.linear.weight.detach().numpy(), encoder.constant.detach().numpy()
    expected = [
        (np.eye(DIM) + weight) @ vectors[:length].sum(0) / np.sqrt(length) + constant
        for vectors, length in zip(history.numpy(), lengths.tolist(), strict=True)
    ]
    with torch.no_grad():
        np.testing.assert_allclose(encoder(history, lengths), expected, atol=1e-5)
        reversed_history = history[:1].flip(1)
        torch.testing.assert_close(encoder(reversed_history, lengths[:1]), encoder(history[:1], lengths[:1]))


def test_initial_set_encoding_is_nearly_the_scaled_sum_and_has_a_direction_without_items():
    torch.manual_seed(0)
    encoder = build_history_encoder(HistorySettings(encoder="set"), DIM, dropout=0.0)
    history = make_vectors(1, 4, DIM)
    with torch.no_grad():
        torch.testing.assert_close(encoder(history, torch.tensor([4]))[0], history[0].sum(0) / 2, rtol=0, atol=0.05)
        assert encoder(history, torch.tensor([0])).norm() > 0.001


def test_dropout_of_the_set_encoder_leaves_the_constant():
    torch.manual_seed(0)
    encoder = build_history_encoder(HistorySettings(encoder="set"), DIM, dropout=0.5)
    history, lengths = make_vectors(500, 4, DIM), torch.tensor([4] * 500)
    with torch.no_grad():
        is_dropped = encoder(history, lengths) == encoder.constant
        assert is_dropped.float().mean().item() == pytest.approx(0.5, abs=0.05)
        assert not (encoder.eval()(history, lengths) == encoder.constant).any()


@pytest.mark.parametrize("name", ["mean", "attention", "causal", "set"])
@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=4), garbage=st.sampled_from([0.0, 7.0, -1e4]))
@settings(max_examples=25)
def test_padding_does_not_change_the_encoding(name, lengths, garbage):
    encoder = make_encoder(name)
    history, lengths = make_vectors(len(lengths), 7, DIM), torch.tensor(lengths)
    padded = torch.where((torch.arange(7) < lengths[:, None])[..., None], history, garbage)
    with torch.no_grad():
        original, with_garbage = encoder(history, lengths), encoder(padded, lengths)
        single = [encoder(history[b : b + 1, : lengths[b]], lengths[b : b + 1]) for b in range(len(lengths))]
    torch.testing.assert_close(original, with_garbage)
    torch.testing.assert_close(original, torch.cat(single))  # nor do the other rows of the batch


@pytest.mark.parametrize("name", ["mean", "attention", "set"])
def test_empty_history_is_finite_and_the_same_for_all(name):
    encoder = make_encoder(name)
    with torch.no_grad():
        empty = encoder(torch.empty(2, 0, DIM), torch.tensor([0, 0]))
        padded = encoder(make_vectors(2, 3, DIM), torch.tensor([0, 0]))
    assert torch.isfinite(empty).all()
    torch.testing.assert_close(empty, padded)
    torch.testing.assert_close(empty[0], empty[1])


@pytest.mark.parametrize("name", ["mean", "attention"])
def test_newer_items_have_higher_weights(name):
    encoder = build_history_encoder(HistorySettings(encoder=name), DIM, dropout=0.0)
    with torch.no_grad():
        if name == "attention":
            encoder.attention_query.weight.zero_()
        history = torch.eye(DIM)[None, :4]
        forward, backward = (encoder(vectors, torch.tensor([4]))[0, :4] for vectors in (history, history.flip(1)))
    assert forward.tolist() == sorted(forward.tolist())
    torch.testing.assert_close(forward, backward.flip(0))
    assert forward[3] > 1.2 * forward[0]


@pytest.mark.parametrize("name", ["mean", "attention", "set"])
def test_every_parameter_has_a_gradient(name):
    encoder = make_encoder(name)
    encoder(make_vectors(3, 4, DIM), torch.tensor([4, 2, 1])).pow(2).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in encoder.parameters())
