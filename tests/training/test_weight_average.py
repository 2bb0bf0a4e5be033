import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vecall.training.weight_average import WeightAverage


def change_weights(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))


def test_average_equals_that_of_torch():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    average, expected = WeightAverage(model, 0.9), AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for _ in range(3):
        change_weights(model)
        model(torch.randn(4, 3))
        average.update(model)
        expected.update_parameters(model)
    for own, reference in zip(average.module.parameters(), expected.module.parameters(), strict=True):
        assert torch.equal(own, reference)
    assert torch.equal(average.module[1].running_mean, model[1].running_mean)


def test_shared_parameters_are_those_of_the_model_and_others_are_left_alone():
    model = torch.nn.ModuleList([torch.nn.Embedding(4, 2), torch.nn.Embedding(3, 2), torch.nn.Linear(2, 1)])
    average = WeightAverage(model, 0.5, shared=[model[0].weight], averaged_elsewhere=[model[1].weight])
    initial = model[1].weight.detach().clone()
    change_weights(model)
    average.update(model)
    assert average.module[0].weight is model[0].weight
    assert torch.equal(average.module[1].weight, initial)
    assert torch.equal(average.module[2].weight, model[2].weight)


@pytest.mark.parametrize("n_updates", [1, 2])
def test_average_begins_with_the_first_update(n_updates):
    model = torch.nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, 0.75)
    for value in (1.0, 2.0)[:n_updates]:
        torch.nn.init.constant_(model.weight, value)
        average.update(model)
    assert average.module.weight.item() == (1.0, 0.75 * 1 + 0.25 * 2)[n_updates - 1]
