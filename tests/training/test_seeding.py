import torch

from vecall.training.seeding import build_epoch_rng, seed_step


def test_draws_of_a_step_are_reproducible_and_differ_between_steps():
    def draw(*seeds):
        seed_step(*seeds)
        return torch.rand(3).tolist()

    steps = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    assert draw(0, 0, 0) == draw(0, 0, 0)
    assert len({tuple(draw(*step)) for step in steps}) == len(steps)


def test_order_of_an_epoch_is_reproducible_and_differs_between_epochs():
    assert build_epoch_rng(3, 4).permutation(9).tolist() == build_epoch_rng(3, 4).permutation(9).tolist()
    assert build_epoch_rng(3, 4).permutation(9).tolist() != build_epoch_rng(3, 5).permutation(9).tolist()
