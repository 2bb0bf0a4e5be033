import pytest
import torch

from vecall.towers.causal import CausalHistoryEncoder
from vecall.towers.settings import ModelSettings

DIM, LENGTH = 8, 6
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def made():
    torch.manual_seed(0)
    return CausalHistoryEncoder(DIM, 0.3, max_length=LENGTH, layers=2, heads=2).eval()


def vectors(*shape, seed=0):
    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@torch.no_grad()
def test_each_place_is_what_its_part_of_the_history_gives_alone(made):
    history = vectors(3, LENGTH, DIM)
    every = made.everywhere(history)
    assert every.shape == (3, LENGTH + 1, DIM)
    for length in range(LENGTH + 1):
        alone = made(history[:, :length], torch.full((3,), length))
        torch.testing.assert_close(every[:, length], alone)


@torch.no_grad()
def test_no_place_sees_what_comes_after_it(made):
    history = vectors(1, LENGTH, DIM)
    changed = history.clone()
    changed[:, 3] = vectors(1, DIM, seed=1)
    before, after = made.everywhere(history)[0], made.everywhere(changed)[0]
    torch.testing.assert_close(before[:4], after[:4])
    assert (before[4:] - after[4:]).abs().amax(1).min() > 1e-3


@torch.no_grad()
def test_order_matters_and_an_empty_history_has_a_vector(made):
    history = vectors(1, 3, DIM)
    lengths = torch.tensor([3])
    assert (made(history, lengths) - made(history.flip(1), lengths)).abs().max() > 1e-3
    assert made(history, torch.tensor([0])).norm() > 0


def test_heads_divide_the_dimension():
    with pytest.raises(ValueError, match="heads must divide dim / members, got 3 and 8"):
        ModelSettings.model_validate({"dim": 8, "history": {"encoder": "causal", "heads": 3}})


def test_the_mean_of_what_was_read_leads_straight_to_the_end():
    torch.manual_seed(0)
    made = CausalHistoryEncoder(8, 0.0, max_length=5, layers=1, heads=2).eval()
    vectors = torch.randn(2, 4, 8)
    with torch.no_grad():
        before = made.encode_all_positions(vectors)
        made.mean_skip.weight.copy_(torch.eye(8))
        added = made.encode_all_positions(vectors) - before
    torch.testing.assert_close(added[:, 0], torch.zeros(2, 8))
    torch.testing.assert_close(added[:, 3], vectors[:, :3].mean(1))
