import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vecall.towers.history import DECAYS, build_history_encoder
from vecall.towers.settings import HistorySettings

DIM = 6
torch.set_num_threads(1)


def encoder(name):
    """With random weights everywhere, also where training begins at zero."""
    torch.manual_seed(0)
    made = build_history_encoder(HistorySettings(encoder=name), DIM, dropout=0.5).eval()
    with torch.no_grad():
        for weights in made.parameters():
            weights.copy_(torch.randn_like(weights))
    return made


def vectors(*shape, seed=0):
    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_none_reads_no_history():
    assert build_history_encoder(HistorySettings(encoder="none"), DIM, 0.0) is None


def test_a_fresh_mean_by_hand():
    """Two items: of each decay d the mean is (d · old + new) / (d + 1), its length 1; the four are averaged."""
    history = vectors(1, 2, DIM)
    made = build_history_encoder(HistorySettings(encoder="mean"), DIM, dropout=0.0)
    old, new = history[0].numpy()
    means = [(decay * old + new) / (decay + 1) for decay in DECAYS]
    expected = np.mean([mean / np.linalg.norm(mean) for mean in means], axis=0)
    with torch.no_grad():
        np.testing.assert_allclose(made(history, torch.tensor([2]))[0], expected, atol=1e-6)


def test_a_fresh_attention_by_hand():
    history = vectors(1, 2, DIM)
    made = build_history_encoder(HistorySettings(encoder="attention"), DIM, dropout=0.0)
    with torch.no_grad():
        made.importance.weight.zero_()
        old, new = history[0]
        weights = torch.softmax(torch.tensor([-0.1, 0.0]), 0)  # the older is one item old
        expected = torch.nn.functional.normalize(weights[0] * old + weights[1] * new, dim=0)
        torch.testing.assert_close(made(history, torch.tensor([2]))[0], expected)


@pytest.mark.parametrize("name", ["mean", "attention", "causal"])
@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=4), garbage=st.sampled_from([0.0, 7.0, -1e4]))
@settings(max_examples=25)
def test_padding_never_matters(name, lengths, garbage):
    made = encoder(name)
    history, lengths = vectors(len(lengths), 7, DIM), torch.tensor(lengths)
    spoilt = torch.where((torch.arange(7) < lengths[:, None])[..., None], history, garbage)
    with torch.no_grad():
        one, other = made(history, lengths), made(spoilt, lengths)
        alone = [made(history[b : b + 1, : lengths[b]], lengths[b : b + 1]) for b in range(len(lengths))]
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(one, torch.cat(alone))  # nor do the others of the batch


@pytest.mark.parametrize("name", ["mean", "attention"])
def test_an_empty_history_is_finite_and_the_same_for_all(name):
    made = encoder(name)
    with torch.no_grad():
        none = made(torch.empty(2, 0, DIM), torch.tensor([0, 0]))
        padded = made(vectors(2, 3, DIM), torch.tensor([0, 0]))
    assert torch.isfinite(none).all()
    torch.testing.assert_close(none, padded)
    torch.testing.assert_close(none[0], none[1])


@pytest.mark.parametrize("name", ["mean", "attention"])
def test_the_order_counts_and_the_newest_counts_most(name):
    made = build_history_encoder(HistorySettings(encoder=name), DIM, dropout=0.0)
    with torch.no_grad():
        if name == "attention":
            made.importance.weight.zero_()
        history = torch.eye(DIM)[None, :4]
        forward, backward = (made(h, torch.tensor([4]))[0, :4] for h in (history, history.flip(1)))
    assert forward.tolist() == sorted(forward.tolist())
    torch.testing.assert_close(forward, backward.flip(0))
    assert forward[3] > 1.2 * forward[0]


@pytest.mark.parametrize("name", ["mean", "attention"])
def test_every_weight_learns(name):
    made = encoder(name)
    made(vectors(3, 4, DIM), torch.tensor([4, 2, 1])).pow(2).sum().backward()
    assert all(weights.grad.abs().sum() > 0 for weights in made.parameters())
