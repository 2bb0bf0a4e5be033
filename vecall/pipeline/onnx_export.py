"""Trained towers to the ONNX files of a release, accepted only after they answer as the towers do."""

import hashlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim

from vecall.data.feature_encoder import FeatureSpec
from vecall.errors import ExportError
from vecall.release.atomic_io import write_array
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
from vecall.runtime.quiet_logger import quiet_logger
from vecall.towers.causal import MIN_TRACE_LENGTH
from vecall.towers.two_tower import ItemTower, TwoTower, UserTower

logger = logging.getLogger(__name__)

PARITY_TOLERANCE = 1e-4  # of a component of a vector of length 1

Inputs = dict[str, NDArray[Any]]


class ItemTowerWrapper(nn.Module):
    """The item tower with its inputs as positional arguments, as an ONNX graph has them."""

    def __init__(self, tower: ItemTower, input_names: list[str]) -> None:
        super().__init__()
        self.tower, self.input_names = tower, input_names

    def forward(self, *inputs: Tensor) -> Tensor:
        """Inputs in the order of `names` → [B, D]."""
        given = dict(zip(self.input_names, inputs, strict=True))
        return self.tower(given.get(ID_VECTORS_INPUT), _select_features(given))  # type: ignore[no-any-return]


class QueryTowerWrapper(nn.Module):
    """The user tower likewise."""

    def __init__(self, tower: UserTower, input_names: list[str]) -> None:
        super().__init__()
        self.tower, self.input_names = tower, input_names

    def forward(self, *inputs: Tensor) -> Tensor:
        """Inputs in the order of `names` → [B, D]."""
        given = dict(zip(self.input_names, inputs, strict=True))
        return self.tower(given.get(HISTORY_INPUT), given.get(LENGTHS_INPUT), _select_features(given))  # type: ignore[no-any-return]


def _select_features(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(FEATURE_INPUT_PREFIX): x
        for name, x in inputs.items()
        if name.startswith(FEATURE_INPUT_PREFIX)
    }


def export_towers(
    towers: TwoTower,
    state: EncoderState,
    feature_specs: tuple[Mapping[str, FeatureSpec], Mapping[str, FeatureSpec]],
    id_rows: NDArray[np.int64],
    directory: Path,
) -> str:
    """Write `query_tower.onnx`, `item_tower.onnx`, `encoders.json` and, where items have ids, `item_ids.npy`.

    Args:
        towers: trained; in evaluation mode afterwards.
        state: the encoders that go with them.
        feature_specs: of item and of user features.
        id_rows: [N] for each item of the release its row in the towers' id table; -1 for one they do not know.
        directory: where the files go.

    Returns:
        The encoder hash: vectors of two releases can be compared only where it is equal.

    Raises:
        ExportError: an exported tower answers otherwise than the trained one.
    """
    towers.eval()
    item_shapes, user_shapes = feature_specs
    dim, length = state.dim, state.history_length
    item_names = ([] if towers.item_id_embedding is None else [ID_VECTORS_INPUT]) + [
        FEATURE_INPUT_PREFIX + name for name in item_shapes
    ]
    query_names = ([HISTORY_INPUT, LENGTHS_INPUT] if towers.reads_history else []) + [
        FEATURE_INPUT_PREFIX + n for n in user_shapes
    ]
    graphs = (
        (ItemTowerWrapper(towers.item_tower, item_names), item_shapes, directory / ITEM_TOWER_FILE),
        (QueryTowerWrapper(towers.user_tower, query_names), user_shapes, directory / QUERY_TOWER_FILE),
    )
    for graph, features, path in graphs:
        _export_graph(graph, SampleInputs(graph.input_names, features, dim), length, path)
        _check_parity(graph, SampleInputs(graph.input_names, features, dim), length, path)
    (directory / ENCODERS_FILE).write_text(state.model_dump_json(), encoding="utf-8")
    if towers.item_id_embedding is not None:
        table = towers.item_id_embedding.weight.detach().cpu().numpy()
        write_array(directory / ITEM_ID_VECTORS_FILE, np.concatenate([table[id_rows], table[-1:]]))
    return compute_encoder_hash(directory)


def compute_encoder_hash(directory: Path) -> str:
    """Sha256 over both towers and their encoders; not over the id table, which grows with the catalogue."""
    digest = hashlib.sha256()
    for name in (QUERY_TOWER_FILE, ITEM_TOWER_FILE, ENCODERS_FILE):
        digest.update((directory / name).read_bytes())
    return digest.hexdigest()


class SampleInputs:
    """Random inputs of a graph, of any size."""

    def __init__(self, input_names: list[str], feature_specs: Mapping[str, FeatureSpec], dim: int) -> None:
        self.input_names, self._feature_specs, self._dim = input_names, feature_specs, dim
        self._rng = np.random.default_rng(0)

    def generate(self, batch_size: int, length: int, *, n_values: int = 3) -> Inputs:
        """B rows with histories of up to L items, and T values in a bag."""
        return {name: self._generate_input(name, batch_size, length, n_values) for name in self.input_names}

    def _generate_input(self, name: str, batch_size: int, length: int, n_values: int) -> NDArray[Any]:
        random = self._rng
        if name == HISTORY_INPUT:
            vectors = random.standard_normal((batch_size, length, self._dim)).astype(np.float32)
            unit: NDArray[np.float32] = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6)
            return unit
        if name == LENGTHS_INPUT:
            return random.integers(0, length + 1, batch_size)
        if name == ID_VECTORS_INPUT:
            return random.standard_normal((batch_size, self._dim)).astype(np.float32)
        shape = self._feature_specs[name.removeprefix(FEATURE_INPUT_PREFIX)]
        match shape.kind:
            case "dense":
                return random.standard_normal((batch_size, shape.size)).astype(np.float32)
            case "categorical":
                return random.integers(0, shape.size, batch_size)
            case "multi_value":
                given = random.random((batch_size, n_values)) < 0.7  # some places, and some whole rows, are padding
                return random.integers(0, shape.size, (batch_size, n_values)) * given

    def list_dynamic_axes(self) -> list[dict[int, Any]]:
        """Which axes of each input may change, in the order of the names: B, and L or T."""
        return [self._find_dynamic_axes(name) for name in self.input_names]

    def _find_dynamic_axes(self, name: str) -> dict[int, Any]:
        shape = self._feature_specs.get(name.removeprefix(FEATURE_INPUT_PREFIX))
        ragged = name == HISTORY_INPUT or (shape is not None and shape.kind == "multi_value")
        return {0: Dim.DYNAMIC, 1: Dim.DYNAMIC} if ragged else {0: Dim.DYNAMIC}


def _export_graph(
    graph: ItemTowerWrapper | QueryTowerWrapper, sample_inputs: SampleInputs, max_length: int, path: Path
) -> None:
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
    assert program is not None  # noqa: S101 - so with dynamo; tells mypy
    model = program.model_proto
    _strip_metadata(model)
    path.write_bytes(model.SerializeToString(deterministic=True))


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Suppress warnings and log lines of torch's exporter, such as that torchvision is not installed."""
    with quiet_logger("torch.onnx._internal.exporter._registration"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _strip_metadata(model: Any) -> None:  # noqa: ANN401 - onnx has no types
    """Drop notes on the Python code that each node came from: nine tenths of the file, and a part of its hash."""
    graph = model.graph
    lists = (graph.node, graph.input, graph.output, graph.initializer, graph.value_info)
    for part in (model, graph, *(one for parts in lists for one in parts)):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def _check_parity(
    graph: ItemTowerWrapper | QueryTowerWrapper, sample_inputs: SampleInputs, max_length: int, path: Path
) -> None:
    """Compare ONNX Runtime with torch over batch sizes and history lengths, mixed ones included."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for batch, length in _iterate_parity_sizes(max_length):
        inputs = sample_inputs.generate(batch, length, n_values=1 + length % 4)
        with torch.no_grad():
            expected = graph(*map(torch.from_numpy, inputs.values())).numpy()
        error = float(np.abs(session.run([VECTORS_OUTPUT], inputs)[0] - expected).max())
        if not error <= PARITY_TOLERANCE:
            raise ExportError(
                f"{path.name}: ONNX Runtime differs from torch by {error:.2g} (at most {PARITY_TOLERANCE:.0e} is allowed) "
                f"at batch {batch}, history length {length}; this release is not published"
            )
    logger.info("%s answers as torch does", path.name)


def _iterate_parity_sizes(max_length: int) -> Iterator[tuple[int, int]]:
    for batch in (1, 7):
        for length in sorted({0, 1, min(2, max_length), max_length}):
            yield batch, length
