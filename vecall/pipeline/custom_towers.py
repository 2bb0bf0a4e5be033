"""Towers of one's own: how they are called, what is required of them, and their export."""

import inspect
import linecache
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vecall.arrays import Vectors
from vecall.data.feature_encoder import FeatureSpec
from vecall.errors import ExportError, VecallError
from vecall.pipeline.onnx_export import (
    PARITY_TOLERANCE,
    Inputs,
    SampleInputs,
    TowerWrapper,
    export_graph,
    iterate_parity_sizes,
    measure_difference,
)
from vecall.release.encoder import FEATURE_INPUT_PREFIX, HISTORY_INPUT, LENGTHS_INPUT

_TORCH_DIRECTORY, _VECALL_DIRECTORY = Path(torch.__file__).parent, Path(__file__).parents[1]
_BATCH_SIZE, _N_VALUES = 7, 3  # of the samples on which a tower is checked


class CustomTowerWrapper(TowerWrapper):
    """A tower of one's own, as a graph.

    Args:
        tower: The tower: `tower(features)`, or `tower(features, history=..., lengths=...)`.
        name: What error texts call it, such as "item tower".
        feature_specs: Specs of its features.
        history_length: L, the length that histories are padded to; 0 if the tower reads no history.
    """

    def __init__(
        self, tower: nn.Module, name: str, feature_specs: Mapping[str, FeatureSpec], history_length: int
    ) -> None:
        history_inputs = [HISTORY_INPUT, LENGTHS_INPUT] if history_length else []
        super().__init__(tower, history_inputs + [FEATURE_INPUT_PREFIX + feature for feature in feature_specs])
        self.name, self.feature_specs, self.history_length = name, feature_specs, history_length

    def call_tower(self, inputs: Mapping[str, Tensor], features: Mapping[str, Tensor]) -> Tensor:
        """Call the tower with histories padded with zeros to L, so that it sees the one length in production."""
        if not self.history_length:
            return self.tower(features)  # type: ignore[no-any-return]
        history = inputs[HISTORY_INPUT]  # [B, up to L, D]
        padding = history.new_zeros(history.shape[0], self.history_length, history.shape[2])
        padded = torch.cat([history, padding], dim=1)[:, : self.history_length]  # [B, L, D]
        return self.tower(features, history=padded, lengths=inputs[LENGTHS_INPUT])  # type: ignore[no-any-return]


def reads_history(tower: nn.Module, name: str) -> bool:
    """Return whether the `forward` of a tower has the parameters `history` and `lengths`.

    Args:
        tower: The tower.
        name: What error texts call it.

    Raises:
        ExportError: It is not a module, has only one of these parameters, or requires others.
    """
    if not isinstance(tower, nn.Module):
        raise ExportError(f"{name}: expected a torch.nn.Module, got {tower!r:.80}; DenseTower wraps a method of one")
    parameters = list(inspect.signature(tower.forward).parameters.values())
    if not parameters or parameters[0].kind not in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    ):
        raise ExportError(f"{name}: forward must take the features, a dict of tensors by name, as its first argument")
    others = parameters[1:]
    names = {parameter.name for parameter in others}
    required = {
        parameter.name
        for parameter in others
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    if unknown := sorted(required - {HISTORY_INPUT, LENGTHS_INPUT}):
        raise ExportError(
            f"{name}: forward requires {unknown} besides the features; a tower gets the features, and the user tower "
            "also `history` and `lengths`; give other parameters defaults"
        )
    history_names = names & {HISTORY_INPUT, LENGTHS_INPUT}
    if len(history_names) == 1:
        raise ExportError(
            f"{name}: forward has the parameter {history_names.pop()!r} alone; a user tower that reads histories "
            f"has both {HISTORY_INPUT!r} ([B, L, D], padded with zeros at the end) and {LENGTHS_INPUT!r} ([B])"
        )
    return bool(history_names)


@contextmanager
def evaluation_mode(*towers: nn.Module) -> Iterator[None]:
    """Set towers to evaluation mode on the CPU; restore each module's mode and the towers' device on exit.

    Raises:
        ExportError: The parameters of a tower are on several devices.
    """
    modes = {module: module.training for tower in towers for module in tower.modules()}
    devices = [{tensor.device for tensor in (*tower.parameters(), *tower.buffers())} for tower in towers]
    for found in devices:
        if len(found) > 1:
            raise ExportError(f"a tower is spread over the devices {sorted(map(str, found))}; move it to one of them")
    try:
        for tower in towers:
            tower.eval().cpu()
        yield
    finally:
        for tower, found in zip(towers, devices, strict=True):
            for device in found:
                tower.to(device)
        for module, mode in modes.items():
            module.training = mode


def check_tower(graph: CustomTowerWrapper, item_dim: int | None) -> int:
    """Check that a tower encodes each row by itself, in production as in training.

    Args:
        graph: The tower, in evaluation mode.
        item_dim: D of the item tower; None for the item tower itself.

    Returns:
        D, the dimension of its vectors.

    Raises:
        ExportError: Its forward fails or is random, its vectors are not finite float32 [B, D], or a row's vector
            depends on other rows or on padding.
    """
    samples = SampleInputs(graph.input_names, graph.feature_specs, item_dim or 1)
    dim: int = _run(graph, samples.generate(_BATCH_SIZE, graph.history_length), "").shape[1]
    if item_dim is not None and dim != item_dim:
        raise ExportError(
            f"{graph.name}: gives vectors of {dim} dimensions, and the item tower of {item_dim}; both must have as many"
        )
    _run(graph, samples.generate_extremes(graph.history_length), "the smallest and the largest index of each feature")
    for batch_size, length in iterate_parity_sizes(graph.history_length):
        _run(graph, samples.generate(batch_size, length), f"batch size {batch_size}, history length {length}")
    _check_rows_are_independent(graph, samples.generate(_BATCH_SIZE, graph.history_length, n_values=_N_VALUES))
    return dim


def export_custom_tower(graph: CustomTowerWrapper, dim: int, path: Path) -> None:
    """Export a tower to an ONNX file and verify it against torch.

    Args:
        graph: The tower, in evaluation mode.
        dim: D.
        path: The file.

    Raises:
        ExportError: The tower cannot be exported, or ONNX Runtime gives other vectors than torch.
    """
    try:
        export_graph(graph, graph.feature_specs, dim, graph.history_length, path)
    except (VecallError, OSError):  # such as a full disk
        raise
    except Exception as error:  # the exporter's exceptions share no base
        raise ExportError(
            f"{graph.name}: cannot be exported to ONNX: {_describe(error)}. Write it without Python control flow on "
            "values of tensors (use torch.where), without .item(), .tolist() and NumPy, for any B; operators that ONNX "
            "lacks have to be replaced"
        ) from error


def _run(graph: CustomTowerWrapper, inputs: Inputs, sample: str) -> Vectors:
    """Call a tower and check its output.

    Args:
        graph: The tower.
        inputs: Inputs by name.
        sample: What they are, for error texts.
    """
    where = f" for {sample}" if sample else ""
    try:
        with torch.no_grad():
            output = graph(*map(torch.from_numpy, inputs.values()))
    except Exception as error:  # whatever the code of the caller raises
        raise ExportError(
            f"{graph.name}: forward fails{where}: {_describe(error)}. It gets {_describe_inputs(graph, inputs)}"
        ) from error
    batch_size = len(next(iter(inputs.values())))
    if not isinstance(output, Tensor):
        raise ExportError(f"{graph.name}: forward must return a tensor [B, D], got {type(output).__name__}")
    if output.ndim != 2 or len(output) != batch_size or output.shape[1] == 0:
        raise ExportError(
            f"{graph.name}: forward must return [B, D], got shape {list(output.shape)} for B = {batch_size} rows"
        )
    if output.dtype != torch.float32:
        raise ExportError(f"{graph.name}: forward must return float32, got {output.dtype}; convert it with .float()")
    vectors: Vectors = output.numpy()
    if not np.isfinite(vectors).all():
        hint = "; a history may be empty, so divide by lengths.clamp(min=1)" if graph.history_length else ""
        raise ExportError(f"{graph.name}: gives NaN or infinity{where or ' for standard normal numbers'}{hint}")
    return vectors


def _check_rows_are_independent(graph: CustomTowerWrapper, inputs: Inputs) -> None:
    vectors = _run(graph, inputs, "")
    if measure_difference(_run(graph, inputs, ""), vectors) > PARITY_TOLERANCE:
        raise ExportError(
            f"{graph.name}: gives other vectors for the same rows when called again; is there a dropout that ignores "
            "evaluation mode, such as F.dropout(x) without training=self.training?"
        )
    rows = [_run(graph, {name: array[[row]] for name, array in inputs.items()}, "") for row in range(_BATCH_SIZE)]
    if measure_difference(np.concatenate(rows), vectors) > PARITY_TOLERANCE:
        raise ExportError(
            f"{graph.name}: the vector of a row depends on the other rows of its batch; compute no statistics over the "
            "batch in evaluation mode, and branch on no value of it"
        )
    padded = {
        name: np.pad(array, ((0, 0), (0, 2))) if _is_multi_value(graph, name) else array
        for name, array in inputs.items()
    }
    if measure_difference(_run(graph, padded, ""), vectors) > PARITY_TOLERANCE:
        raise ExportError(
            f"{graph.name}: the vector of a row depends on how many zeros pad its tags or text; ignore index 0, for "
            "example by nn.EmbeddingBag(..., padding_idx=0)"
        )


def _is_multi_value(graph: CustomTowerWrapper, input_name: str) -> bool:
    spec = graph.feature_specs.get(input_name.removeprefix(FEATURE_INPUT_PREFIX))
    return spec is not None and spec.kind == "multi_value"


def _describe_inputs(graph: CustomTowerWrapper, inputs: Inputs) -> str:
    features = {
        name.removeprefix(FEATURE_INPUT_PREFIX): f"{array.dtype} {list(array.shape)}"
        for name, array in inputs.items()
        if name.startswith(FEATURE_INPUT_PREFIX)
    }
    history = f", history of length {graph.history_length}, and lengths" if graph.history_length else ""
    return f"features {features}{history}"


def _describe(error: Exception) -> str:
    """Return the first line of the innermost error, with the caller's line of code that raised it."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    text = str(error).strip().partition("\n")[0] or type(error).__name__
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_file() and not path.is_relative_to(_TORCH_DIRECTORY) and not path.is_relative_to(_VECALL_DIRECTORY):
            line = linecache.getline(frame.filename, frame.lineno or 0).strip()
            return f"{text} ({path.name}, line {frame.lineno}: {line})"
    return text
