import torch

from vecall.training.seeding import build_epoch_rng, seed_step


def test_each_step_has_draws_of_its_own_that_repeat():
    def drawn(*which):
        seed_step(*which)
        return torch.rand(3).tolist()

    steps = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    assert drawn(0, 0, 0) == drawn(0, 0, 0)
    assert len({tuple(drawn(*which)) for which in steps}) == len(steps)


def test_each_epoch_has_an_order_of_its_own_that_repeats():
    assert build_epoch_rng(3, 4).permutation(9).tolist() == build_epoch_rng(3, 4).permutation(9).tolist()
    assert build_epoch_rng(3, 4).permutation(9).tolist() != build_epoch_rng(3, 5).permutation(9).tolist()
