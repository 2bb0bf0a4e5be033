import pytest
import torch
from torch import nn

from vecall.towers.blocks import MLP, FastDropout, SingletonSafeBatchNorm, l2_normalize


def test_without_hidden_layers_it_is_one_linear_layer():
    mlp = MLP(3, (), 2, norm="layer", dropout=0.5)
    (only,) = mlp.layers
    x = torch.randn(4, 3)
    torch.testing.assert_close(mlp(x), x @ only.weight.T + only.bias)


@pytest.mark.parametrize(
    ("norm", "layer"), [("layer", nn.LayerNorm), ("batch", SingletonSafeBatchNorm), ("none", nn.Identity)]
)
def test_hidden_layers_are_normalised_as_asked(norm, layer):
    mlp = MLP(3, (5, 4), 2, norm=norm, dropout=0.5)
    kinds = [type(one) for one in mlp.layers]
    assert kinds == [nn.Linear, layer, nn.ReLU, FastDropout] * 2 + [nn.Linear]
    assert mlp.eval()(torch.randn(1, 3)).shape == (1, 2)


def test_a_batch_of_one_is_normalised_by_what_was_learned_and_teaches_nothing():
    norm = SingletonSafeBatchNorm(2)
    norm(torch.tensor([[0.0, 1.0], [2.0, 5.0]] * 50))
    before = norm.running_mean.clone()
    one = torch.tensor([[3.0, 4.0]])
    torch.testing.assert_close(norm(one), norm.eval()(one))
    assert torch.equal(norm.running_mean, before)


def test_dropout_keeps_the_mean_and_is_for_training_alone():
    dropout, x = FastDropout(0.25), torch.ones(400, 500)
    torch.manual_seed(0)
    thinned = dropout(x)
    torch.testing.assert_close(thinned.unique(), torch.tensor([0.0, 4 / 3]))
    assert (thinned == 0).float().mean().item() == pytest.approx(0.25, abs=0.005)
    assert thinned.mean().item() == pytest.approx(1.0, abs=0.01)
    assert dropout.eval()(x) is x
    assert FastDropout(0.0)(x) is x


def test_unit_vectors_and_their_gradient_are_those_of_torch():
    torch.manual_seed(0)
    ours = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    weights = torch.randn(5, 4, dtype=torch.float64)
    (l2_normalize(ours) * weights).sum().backward()
    (nn.functional.normalize(theirs, dim=-1) * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert torch.autograd.gradcheck(l2_normalize, ours.detach().requires_grad_())
    torch.testing.assert_close(l2_normalize(torch.zeros(1, 4)), torch.zeros(1, 4))
