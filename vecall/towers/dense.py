"""Adapter of a module that reads one matrix of dense features."""

import inspect
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from vecall.errors import ConfigError


class DenseTower(nn.Module):
    """Tower that concatenates dense features to [B, F] and passes them to a module, or to a method of one.

    Args:
        target: A module, or a bound method of a module such as `model.get_item_embedding`, from [B, F] float32 to
            [B, D]. The module becomes a submodule, so that `parameters()`, `eval()` and `to()` reach it.
        features: Names of the features to concatenate, in this order; None for all of them, in the schema's order.
            Only numeric features, of width 2 each, and vectors are dense.

    Raises:
        ConfigError: `target` is neither a module nor a bound method of one.
    """

    def __init__(
        self, target: nn.Module | Callable[[Tensor], Tensor], *, features: Sequence[str] | None = None
    ) -> None:
        super().__init__()
        module = target.__self__ if inspect.ismethod(target) else target
        if not isinstance(module, nn.Module):
            raise ConfigError(
                f"DenseTower: expected a torch.nn.Module or a bound method of one, got {target!r:.80}; "
                "wrap a function in a Module"
            )
        self.module = module
        self._method_name = target.__name__ if inspect.ismethod(target) else "__call__"
        self._features = None if features is None else list(features)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Concatenate the features of B rows and pass them on: float32 [B, size] each → [B, F] → [B, D].

        Raises:
            ConfigError: A feature is missing or not dense.
        """
        names = list(features) if self._features is None else self._features
        if missing := [name for name in names if name not in features]:
            raise ConfigError(f"DenseTower: no features named {missing}; there are {list(features)}")
        if sparse := [name for name in names if not features[name].is_floating_point()]:
            raise ConfigError(
                f"DenseTower: features {sparse} are not dense (categories, tags and text are rows of an embedding "
                "table); name the dense ones in features=[...], or write a module that embeds the others"
            )
        matrix = torch.cat([features[name] for name in names], dim=1)  # [B, F]
        vectors: Tensor = getattr(self.module, self._method_name)(matrix)
        return vectors
