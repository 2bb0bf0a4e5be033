import pytest
import torch
from torch import nn

from vecall.towers.blocks import MLP, FastDropout, SingletonSafeBatchNorm, l2_normalize


def test_mlp_without_hidden_layers_is_one_linear_layer():
    mlp = MLP(3, (), 2, norm="layer", dropout=0.5)
    (linear,) = mlp.layers
    x = torch.randn(4, 3)
    torch.testing.assert_close(mlp(x), x @ linear.weight.T + linear.bias)


@pytest.mark.parametrize(
    ("norm", "layer_type"), [("layer", nn.LayerNorm), ("batch", SingletonSafeBatchNorm), ("none", nn.Identity)]
)
def test_hidden_layers_of_mlp_have_the_norm_of_the_settings(norm, layer_type):
    mlp = MLP(3, (5, 4), 2, norm=norm, dropout=0.5)
    layer_types = [type(layer) for layer in mlp.layers]
    assert layer_types == [nn.Linear, layer_type, nn.ReLU, FastDropout] * 2 + [nn.Linear]
    assert mlp.eval()(torch.randn(1, 3)).shape == (1, 2)


def test_batch_norm_of_a_single_row_uses_and_keeps_running_statistics():
    norm = SingletonSafeBatchNorm(2)
    norm(torch.tensor([[0.0, 1.0], [2.0, 5.0]] * 50))
    running_mean = norm.running_mean.clone()
    row = torch.tensor([[3.0, 4.0]])
    torch.testing.assert_close(norm(row), norm.eval()(row))
    assert torch.equal(norm.running_mean, running_mean)


def test_dropout_keeps_the_mean_and_applies_in_training_only():
    dropout, x = FastDropout(0.25), torch.ones(400, 500)
    torch.manual_seed(0)
    dropped = dropout(x)
    torch.testing.assert_close(dropped.unique(), torch.tensor([0.0, 4 / 3]))
    assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.005)
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.01)
    assert dropout.eval()(x) is x
    assert FastDropout(0.0)(x) is x


def test_l2_normalize_and_its_gradient_equal_those_of_torch():
    torch.manual_seed(0)
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    torch_x = x.detach().clone().requires_grad_()
    weights = torch.randn(5, 4, dtype=torch.float64)
    (l2_normalize(x) * weights).sum().backward()
    (nn.functional.normalize(torch_x, dim=-1) * weights).sum().backward()
    torch.testing.assert_close(x.grad, torch_x.grad)
    assert torch.autograd.gradcheck(l2_normalize, x.detach().requires_grad_())
    torch.testing.assert_close(l2_normalize(torch.zeros(1, 4)), torch.zeros(1, 4))


def test_zero_vectors_get_no_gradient():
    """Divided by 1e-12 it would freeze, by Adam's second moments, every parameter that it reaches."""
    x = torch.zeros(2, 4)
    x[1] = 1.0
    x.requires_grad_()
    (l2_normalize(x) * torch.randn(2, 4)).sum().backward()
    assert (x.grad[0] == 0).all()
    assert (x.grad[1] != 0).any()
