import pytest
import torch
from torch import nn

from vecall.towers.blocks import Mlp


def test_without_hidden_layers_it_is_one_linear_layer():
    mlp = Mlp(3, (), 2, norm="layer", dropout=0.5)
    (only,) = mlp.layers
    x = torch.randn(4, 3)
    torch.testing.assert_close(mlp(x), x @ only.weight.T + only.bias)


@pytest.mark.parametrize(("norm", "layer"), [("layer", nn.LayerNorm), ("batch", nn.BatchNorm1d), ("none", nn.Identity)])
def test_hidden_layers_are_normalised_as_asked(norm, layer):
    mlp = Mlp(3, (5, 4), 2, norm=norm, dropout=0.5)
    kinds = [type(one) for one in mlp.layers]
    assert kinds == [nn.Linear, layer, nn.ReLU, nn.Dropout] * 2 + [nn.Linear]
    assert mlp.eval()(torch.randn(1, 3)).shape == (1, 2)
