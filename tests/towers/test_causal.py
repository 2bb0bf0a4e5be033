import pytest
import torch

from vecall.towers.causal import CausalHistoryEncoder
from vecall.towers.settings import ModelSettings

DIM, LENGTH = 8, 6
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return CausalHistoryEncoder(DIM, 0.3, max_length=LENGTH, layers=2, heads=2).eval()


def make_vectors(*shape, seed=0):
    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@torch.no_grad()
def test_each_position_equals_the_encoding_of_its_prefix(encoder):
    history = make_vectors(3, LENGTH, DIM)
    all_positions = encoder.encode_all_positions(history)
    assert all_positions.shape == (3, LENGTH + 1, DIM)
    for length in range(LENGTH + 1):
        prefix = encoder(history[:, :length], torch.full((3,), length))
        torch.testing.assert_close(all_positions[:, length], prefix)


@torch.no_grad()
def test_positions_do_not_depend_on_later_items(encoder):
    history = make_vectors(1, LENGTH, DIM)
    changed = history.clone()
    changed[:, 3] = make_vectors(1, DIM, seed=1)
    before, after = encoder.encode_all_positions(history)[0], encoder.encode_all_positions(changed)[0]
    torch.testing.assert_close(before[:4], after[:4])
    assert (before[4:] - after[4:]).abs().amax(1).min() > 1e-3


@torch.no_grad()
def test_order_matters_and_empty_history_has_a_vector(encoder):
    history = make_vectors(1, 3, DIM)
    lengths = torch.tensor([3])
    assert (encoder(history, lengths) - encoder(history.flip(1), lengths)).abs().max() > 1e-3
    assert encoder(history, torch.tensor([0])).norm() > 0


def test_heads_that_do_not_divide_the_dimension_are_refused():
    with pytest.raises(ValueError, match="heads must divide dim / ensemble_size, got 3 and 8"):
        ModelSettings.model_validate({"dim": 8, "history": {"encoder": "causal", "heads": 3}})


def test_skip_connection_adds_the_mean_of_the_items_read():
    torch.manual_seed(0)
    encoder = CausalHistoryEncoder(8, 0.0, max_length=5, layers=1, heads=2).eval()
    vectors = torch.randn(2, 4, 8)
    with torch.no_grad():
        before = encoder.encode_all_positions(vectors)
        encoder.mean_skip.weight.copy_(torch.eye(8))
        added = encoder.encode_all_positions(vectors) - before
    torch.testing.assert_close(added[:, 0], torch.zeros(2, 8))
    torch.testing.assert_close(added[:, 3], vectors[:, :3].mean(1))
