"""Export of trained towers to the ONNX files of a release, verified against torch."""

import hashlib
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim

from vecall.arrays import Rows, Vectors
from vecall.data.feature_encoder import FeatureSpec
from vecall.errors import ExportError
from vecall.release.encoder import (
    ENCODERS_FILE,
    FEATURE_INPUT_PREFIX,
    HISTORY_INPUT,
    ID_VECTORS_INPUT,
    ITEM_ID_VECTORS_FILE,
    ITEM_TOWER_FILE,
    LENGTHS_INPUT,
    QUERY_TOWER_FILE,
    VECTORS_OUTPUT,
    EncoderState,
)
from vecall.release.file_io import write_array_blocks
from vecall.runtime.quiet_logger import quiet_logger
from vecall.towers.causal import MIN_TRACE_LENGTH
from vecall.towers.two_tower import TwoTower

logger = logging.getLogger(__name__)

_BLOCK_ROWS = 2**14  # id vectors written at a time

PARITY_TOLERANCE = 1e-4  # per component, relative to the length of the longest vector of the batch

Inputs = dict[str, NDArray[Any]]


class TowerWrapper(nn.Module, ABC):
    """A tower that takes its inputs as positional arguments, as an ONNX graph does.

    Args:
        tower: The tower.
        input_names: Names of the inputs, in order.
    """

    def __init__(self, tower: nn.Module, input_names: list[str]) -> None:
        super().__init__()
        self.tower, self.input_names = tower, input_names

    def forward(self, *inputs: Tensor) -> Tensor:
        """Encode B rows of inputs in the order of `input_names` to [B, D] vectors."""
        by_name = dict(zip(self.input_names, inputs, strict=True))
        features = {
            name.removeprefix(FEATURE_INPUT_PREFIX): tensor
            for name, tensor in by_name.items()
            if name.startswith(FEATURE_INPUT_PREFIX)
        }
        return self.call_tower(by_name, features)

    @abstractmethod
    def call_tower(self, inputs: Mapping[str, Tensor], features: Mapping[str, Tensor]) -> Tensor:
        """Call the tower.

        Args:
            inputs: All inputs by name.
            features: The features among them, by the feature's name.

        Returns:
            [B, D] vectors.
        """


class ItemTowerWrapper(TowerWrapper):
    """Item tower of `TwoTower`, as a graph."""

    def call_tower(self, inputs: Mapping[str, Tensor], features: Mapping[str, Tensor]) -> Tensor:
        """Encode B items to [B, D] vectors."""
        return self.tower(inputs.get(ID_VECTORS_INPUT), features)  # type: ignore[no-any-return]


class QueryTowerWrapper(TowerWrapper):
    """User tower of `TwoTower`, as a graph."""

    def call_tower(self, inputs: Mapping[str, Tensor], features: Mapping[str, Tensor]) -> Tensor:
        """Encode B users to [B, D] vectors."""
        return self.tower(inputs.get(HISTORY_INPUT), inputs.get(LENGTHS_INPUT), features)  # type: ignore[no-any-return]


def export_towers(
    towers: TwoTower,
    state: EncoderState,
    feature_specs: tuple[Mapping[str, FeatureSpec], Mapping[str, FeatureSpec]],
    id_rows: NDArray[np.int64],
    directory: Path,
) -> str:
    """Export the towers and their encoders to the files of a release.

    Writes `query_tower.onnx`, `item_tower.onnx`, `encoders.json` and, if the model has an embedding per item id,
    `item_ids.npy`.

    Args:
        towers: Trained towers; set to evaluation mode.
        state: State of the feature encoders that they were trained with.
        feature_specs: Specs of the item features and of the user features.
        id_rows: [N] row of each item of the release in the towers' id table; -1 if the table lacks the item.
        directory: Directory of the files.

    Returns:
        The encoder hash. Vectors of two releases are comparable only if their encoder hashes are equal.

    Raises:
        ExportError: An exported tower gives other vectors than the trained one.
    """
    towers.eval()
    item_specs, user_specs = feature_specs
    dim, length = state.dim, state.history_length
    item_input_names = ([] if towers.item_id_embedding is None else [ID_VECTORS_INPUT]) + [
        FEATURE_INPUT_PREFIX + name for name in item_specs
    ]
    query_input_names = ([HISTORY_INPUT, LENGTHS_INPUT] if towers.reads_history else []) + [
        FEATURE_INPUT_PREFIX + name for name in user_specs
    ]
    graphs = (
        (ItemTowerWrapper(towers.item_tower, item_input_names), item_specs, directory / ITEM_TOWER_FILE),
        (QueryTowerWrapper(towers.user_tower, query_input_names), user_specs, directory / QUERY_TOWER_FILE),
    )
    for graph, specs, path in graphs:
        export_graph(graph, specs, dim, length, path)
    write_encoder_state(state, directory)
    if towers.item_id_embedding is not None:
        parts = [towers.item_id_embedding.weight.detach(), towers.spectral_vectors]
        tables = [part.cpu().numpy() for part in parts if part is not None]
        write_id_vectors(tables, id_rows, directory / ITEM_ID_VECTORS_FILE)
    return compute_encoder_hash(directory)


def write_id_vectors(tables: Sequence[Vectors], id_rows: Rows, path: Path) -> None:
    """Write the id vectors of a release's items, and of the unknown item, without a copy of the tables in memory.

    Args:
        tables: Towers' id tables, [M + 1, D] side by side; the last row is that of the unknown item.
        id_rows: [N] row of each item in the tables; -1, which selects the last row, if they lack the item.
        path: Takes the [N + 1, D] array.
    """

    def iterate_blocks() -> Iterator[Vectors]:
        for start in range(0, len(id_rows), _BLOCK_ROWS):
            rows = id_rows[start : start + _BLOCK_ROWS]
            yield np.concatenate([table[rows] for table in tables], axis=1)
        yield np.concatenate([table[-1:] for table in tables], axis=1)

    dim = sum(table.shape[1] for table in tables)
    write_array_blocks(path, (len(id_rows) + 1, dim), tables[0].dtype, iterate_blocks())


def export_graph(
    graph: TowerWrapper, feature_specs: Mapping[str, FeatureSpec], dim: int, history_length: int, path: Path
) -> None:
    """Export a tower to an ONNX file and verify that ONNX Runtime gives the vectors that torch gives.

    Args:
        graph: The tower, in evaluation mode; moved to the CPU.
        feature_specs: Specs of its features.
        dim: D, the dimension of item vectors.
        history_length: L, the longest history that is read.
        path: The file.

    Raises:
        ExportError: ONNX Runtime gives other vectors than torch.
    """
    _export_graph(graph, SampleInputs(graph.input_names, feature_specs, dim), history_length, path)
    _check_parity(graph, SampleInputs(graph.input_names, feature_specs, dim), history_length, path)


def write_encoder_state(state: EncoderState, directory: Path) -> None:
    """Write `encoders.json`."""
    (directory / ENCODERS_FILE).write_text(state.model_dump_json(), encoding="utf-8")


def compute_encoder_hash(directory: Path) -> str:
    """Compute the SHA-256 of both towers and their encoders, without the id table, which grows with the catalogue."""
    digest = hashlib.sha256()
    for name in (QUERY_TOWER_FILE, ITEM_TOWER_FILE, ENCODERS_FILE):
        digest.update((directory / name).read_bytes())
    return digest.hexdigest()


class SampleInputs:
    """Generator of random inputs for a graph.

    Args:
        input_names: Names of the graph's inputs, in order.
        feature_specs: Specs of the features among them, by the feature's name.
        dim: D, the dimension of the vectors.
    """

    def __init__(self, input_names: list[str], feature_specs: Mapping[str, FeatureSpec], dim: int) -> None:
        self.input_names, self._feature_specs, self._dim = input_names, feature_specs, dim
        self._rng = np.random.default_rng(0)

    def generate(self, batch_size: int, length: int, *, n_values: int = 3) -> Inputs:
        """Generate inputs by name: B rows with histories of up to L items and T values of multi-value features."""
        return {name: self._generate_input(name, batch_size, length, n_values) for name in self.input_names}

    def _generate_input(self, name: str, batch_size: int, length: int, n_values: int) -> NDArray[Any]:
        rng = self._rng
        if name == HISTORY_INPUT:
            vectors = rng.standard_normal((batch_size, length, self._dim)).astype(np.float32)
            unit_vectors: NDArray[np.float32] = vectors / np.maximum(
                np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6
            )
            return unit_vectors  # [B, L, D]
        if name == LENGTHS_INPUT:
            return rng.integers(0, length + 1, batch_size)
        if name == ID_VECTORS_INPUT:
            return rng.standard_normal((batch_size, self._dim)).astype(np.float32)
        spec = self._feature_specs[name.removeprefix(FEATURE_INPUT_PREFIX)]
        match spec.kind:
            case "dense":
                return rng.standard_normal((batch_size, spec.size)).astype(np.float32)
            case "categorical":
                return rng.integers(0, spec.size, batch_size)
            case "multi_value":
                is_present = rng.random((batch_size, n_values)) < 0.7  # some values, and some whole rows, are padding
                return rng.integers(0, spec.size, (batch_size, n_values)) * is_present

    def generate_extremes(self, length: int) -> Inputs:
        """Generate 2 rows by name: the smallest index, and no history; the largest index, and a history of L items."""
        inputs = self.generate(2, length, n_values=1)
        for name in self.input_names:
            spec = self._feature_specs.get(name.removeprefix(FEATURE_INPUT_PREFIX))
            if spec is not None and spec.kind != "dense":
                inputs[name] = np.array([0, spec.size - 1]).reshape(inputs[name].shape)
        return inputs | ({LENGTHS_INPUT: np.array([0, length])} if LENGTHS_INPUT in self.input_names else {})

    def list_dynamic_axes(self) -> list[dict[int, Any]]:
        """List the dynamic axes of each input, in the order of the names: B, and L or T."""
        return [self._find_dynamic_axes(name) for name in self.input_names]

    def _find_dynamic_axes(self, name: str) -> dict[int, Any]:
        spec = self._feature_specs.get(name.removeprefix(FEATURE_INPUT_PREFIX))
        is_ragged = name == HISTORY_INPUT or (spec is not None and spec.kind == "multi_value")
        return {0: Dim.DYNAMIC, 1: Dim.DYNAMIC} if is_ragged else {0: Dim.DYNAMIC}


def _export_graph(graph: TowerWrapper, sample_inputs: SampleInputs, max_length: int, path: Path) -> None:
    inputs = sample_inputs.generate(batch_size=3, length=max(MIN_TRACE_LENGTH, min(5, max_length)))
    with _quiet_exporter():
        program = torch.onnx.export(
            graph.cpu(),
            tuple(torch.from_numpy(array) for array in inputs.values()),
            input_names=sample_inputs.input_names,
            output_names=[VECTORS_OUTPUT],
            dynamic_shapes={"inputs": tuple(sample_inputs.list_dynamic_axes())},
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # noqa: S101 - never None with dynamo=True; for mypy
    model = program.model_proto
    # The rewriting rules of onnxscript, which are global, refer to the last graph: it would keep the weights in memory,
    # and with them the file that they are mapped from.
    for initializer in program.model.graph.initializers.values():
        initializer.const_value = None
    _strip_metadata(model)
    path.write_bytes(model.SerializeToString(deterministic=True))


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Suppress warnings and log lines of torch's exporter, such as that torchvision is not installed."""
    with quiet_logger("torch.onnx._internal.exporter._registration"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _strip_metadata(model: Any) -> None:  # noqa: ANN401 - onnx has no types
    """Remove the source locations of each node: nine tenths of the file, and they would change the encoder hash."""
    graph = model.graph
    collections = (graph.node, graph.input, graph.output, graph.initializer, graph.value_info)
    for message in (model, graph, *(element for collection in collections for element in collection)):
        message.ClearField("metadata_props")
        message.ClearField("doc_string")


def _check_parity(graph: TowerWrapper, sample_inputs: SampleInputs, max_length: int, path: Path) -> None:
    """Compare ONNX Runtime with torch over batch sizes and history lengths, which vary within a batch.

    Raises:
        ExportError: A component differs by more than `PARITY_TOLERANCE`, or is not a number.
    """
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for batch_size, length in iterate_parity_sizes(max_length):
        inputs = sample_inputs.generate(batch_size, length, n_values=1 + length % 4)
        with torch.no_grad():
            expected = graph(*map(torch.from_numpy, inputs.values())).numpy()
        error = measure_difference(session.run([VECTORS_OUTPUT], inputs)[0], expected)
        if not error <= PARITY_TOLERANCE:  # true for NaN as well
            raise ExportError(
                f"{path.name}: ONNX Runtime differs from torch by {error:.2g} (tolerance {PARITY_TOLERANCE:.0e}) at "
                f"batch size {batch_size}, history length {length}; this release is not published"
            )
    logger.info("%s: ONNX Runtime output matches torch", path.name)


def measure_difference(vectors: Vectors, expected: Vectors) -> float:
    """Return the largest difference of a component of [B, D] vectors, relative to the length of the longest vector."""
    scale = float(np.linalg.norm(expected, axis=1).max()) or 1.0
    return float(np.abs(vectors - expected).max()) / scale


def iterate_parity_sizes(max_length: int) -> Iterator[tuple[int, int]]:
    """Yield pairs of batch size and history length."""
    for batch_size in (1, 7):
        for length in sorted({0, 1, min(2, max_length), max_length}):
            yield batch_size, length
