"""Moving average of a model's weights."""

import copy
from collections.abc import Collection

import torch
from torch import Tensor, nn


class WeightAverage(nn.Module):
    """Model with the exponential moving average of another model's weights; it begins with the first update.

    Args:
        model: Model whose weights are averaged; copied.
        decay: Decay per update, in [0, 1).
        shared: Parameters and buffers that are not averaged: the copy has the very ones of the model.
        averaged_elsewhere: Parameters that have a copy, which `update` leaves alone.

    Attributes:
        module: The model with the averaged weights.
    """

    n_averaged: Tensor

    def __init__(
        self,
        model: nn.Module,
        decay: float,
        *,
        shared: Collection[Tensor] = (),
        averaged_elsewhere: Collection[Tensor] = (),
    ) -> None:
        super().__init__()
        self.module: nn.Module = copy.deepcopy(model, {id(parameter): parameter for parameter in shared})
        self._decay = decay
        skipped = {id(parameter) for parameter in [*shared, *averaged_elsewhere]}
        self._names = [name for name, parameter in model.named_parameters() if id(parameter) not in skipped]
        self.register_buffer("n_averaged", torch.tensor(0))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the present weights of the model; buffers are copied."""
        own, current = dict(self.module.named_parameters()), dict(model.named_parameters())
        averages: list[Tensor] = [own[name] for name in self._names]
        weights: list[Tensor] = [current[name] for name in self._names]
        if int(self.n_averaged) == 0:
            torch._foreach_copy_(averages, weights)
        else:
            torch._foreach_lerp_(averages, weights, 1 - self._decay)
        for own_buffer, buffer in zip(self.module.buffers(), model.buffers(), strict=True):
            if own_buffer is not buffer:
                own_buffer.copy_(buffer)
        self.n_averaged += 1
