"""Weights file of a model in the format of safetensors: written without a copy, and mapped when it is read."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import load_file, save_file
from torch import nn
from torch.overrides import TorchFunctionMode

from vecall.runtime.durable_files import replace_atomically

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_MIN_MAPPED_BYTES = 2**24
_RANDOM_INITIALIZERS = (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)


def save_weights(module: nn.Module, path: Path) -> None:
    """Replace a weights file atomically and durably, without a copy of the weights in memory.

    Raises:
        OSError: The file cannot be written.
        SafetensorError: Likewise.
    """
    weights = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    # Replaced, not overwritten: the weights of this or of another model may be mapped from the file.
    with replace_atomically(path) as temporary:
        save_file(weights, temporary)


def load_module(build: Callable[[], ModuleT], path: Path) -> ModuleT:
    """Build a module whose large weights are mapped from a file, and read when they are used.

    They may be written to, which does not change the file. Initial weights are never in memory beside them.

    Args:
        build: Builds the module.
        path: The weights file.

    Raises:
        OSError: The file cannot be read.
        SafetensorError: It is damaged.
        RuntimeError: It has other weights than the module.
    """
    # Whatever keeps a mapped weight keeps the whole file mapped, so the many small ones are copied.
    weights = {
        name: weight if weight.nbytes >= _MIN_MAPPED_BYTES else weight.clone()
        for name, weight in load_file(path).items()
    }
    with _UninitializedWeights():
        module = build()
    module.load_state_dict(weights, assign=True)
    return module


class _UninitializedWeights(TorchFunctionMode):
    """Context in which modules are built without random initial weights, for weights that are replaced at once.

    Memory that nothing is written to is not taken from the system, so the initial weights of a table take none.
    Buffers that are not part of the weights file get their values, which they would not on torch's "meta" device.
    """

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401 - signature of torch
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Call `func`, except functions that fill a tensor with random numbers: these return it as it is."""
        del types
        options = kwargs or {}
        if func in _RANDOM_INITIALIZERS:
            return options["tensor"] if "tensor" in options else args[0]
        return func(*args, **options)
