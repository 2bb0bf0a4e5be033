"""Exported towers: their ONNX files give the same vectors as torch, or are refused."""

import gc
import re
import weakref

import numpy as np
import onnx
import pytest
import torch
from support import synthetic
from support.memory import measure_peak_bytes

from vecall.config import PRESETS
from vecall.data.feature_encoder import FeatureEncoder
from vecall.errors import ExportError
from vecall.pipeline import onnx_export as export_module
from vecall.pipeline.onnx_export import (
    ItemTowerWrapper,
    QueryTowerWrapper,
    SampleInputs,
    _check_parity,
    _export_graph,
    compute_encoder_hash,
    export_towers,
    write_id_vectors,
)
from vecall.release.encoder import (
    ENCODERS_FILE,
    FEATURE_INPUT_PREFIX,
    ID_VECTORS_INPUT,
    ITEM_ID_VECTORS_FILE,
    ITEM_TOWER_FILE,
    QUERY_TOWER_FILE,
    EncoderState,
    OnnxEncoder,
)
from vecall.release.file_io import write_array
from vecall.towers.settings import ModelSettings
from vecall.towers.two_tower import TwoTower

LENGTH = 4
N_TRAINED_ITEMS = 10
# The exporter writes names in quotes into a program.
QUOTED_NAME = {"look": 'the "look"'}
FEATURES = {QUOTED_NAME.get(name, name): feature for name, feature in synthetic.FEATURES.items()}
ITEM_FEATURES, USER_FEATURES = (synthetic.make_features(40, seed).rename(QUOTED_NAME) for seed in (1, 2))
ENCODERS = FeatureEncoder.fit(FEATURES, ITEM_FEATURES), FeatureEncoder.fit(FEATURES, USER_FEATURES)
NO_FEATURES = FeatureEncoder.fit({}, ITEM_FEATURES)


def make_towers(settings, encoders, seed=0):
    """Make towers as if trained: layers that are initialized with zeros are moved, and so are running means."""
    item_encoder, user_encoder = encoders
    torch.manual_seed(seed)
    towers = TwoTower(settings, item_encoder.specs, user_encoder.specs, N_TRAINED_ITEMS)
    with torch.no_grad():
        for weights in (*towers.parameters(), *towers.buffers()):
            if weights.is_floating_point() and weights.dim():
                weights += 0.1 * torch.rand_like(weights)
    return towers.eval()


def export(towers, encoders, directory, id_rows=(0, 1, -1)):
    item_encoder, user_encoder = encoders
    length = towers.settings.history.length if towers.reads_history else 0
    state = EncoderState(
        dim=towers.settings.dim, history_length=length, items=item_encoder.state, users=user_encoder.state
    )
    return export_towers(towers, state, (item_encoder.specs, user_encoder.specs), np.array(id_rows), directory)


def make_histories(batch_size, dim, lengths):
    vectors = torch.nn.functional.normalize(torch.randn(batch_size, max(lengths), dim), dim=-1)
    return vectors.numpy(), np.array(lengths)


def make_preset_settings(name):
    model = PRESETS[name].get("model", {})
    return ModelSettings(**model | {"preset": name, "history": model.get("history", {}) | {"length": LENGTH}})


CASES = {
    "pooled": (make_preset_settings("pooled"), ENCODERS),
    "dssm": (make_preset_settings("dssm"), ENCODERS),
    "set": (make_preset_settings("set"), ENCODERS),
    "mean, hidden": (synthetic.make_model_settings("mean", hidden=(16,)), (ENCODERS[0], NO_FEATURES)),
    "attention": (synthetic.make_model_settings("attention", norm="none"), (NO_FEATURES, NO_FEATURES)),
    "attention, hidden, batch norm": (
        synthetic.make_model_settings("attention", hidden=(16,), norm="batch"),
        ENCODERS,
    ),
    "causal": (synthetic.make_model_settings("causal"), (ENCODERS[0], NO_FEATURES)),
    "causal, hidden": (synthetic.make_model_settings("causal", hidden=(16,)), ENCODERS),
    "ensemble, causal": (synthetic.make_model_settings("causal", ensemble_size=2, hidden=(16,)), ENCODERS),
    "ensemble, mean": (synthetic.make_model_settings("mean", ensemble_size=4), (ENCODERS[0], NO_FEATURES)),
    "ids, no history": (synthetic.make_model_settings("none"), (NO_FEATURES, ENCODERS[1])),
}


IN_EXAMPLES = {
    "dssm",
    "causal",
    "ensemble, causal",
    "mean, hidden",
    "attention",
    "attention, hidden, batch norm",
    "causal, hidden",
    "ensemble, mean",
    "set",
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.examples) if case in IN_EXAMPLES else case for case in CASES]
)
def test_exported_towers_match_torch(tmp_path, case):
    settings, encoders = CASES[case]
    towers = make_towers(settings, encoders)
    export(towers, encoders, tmp_path)
    encoder = OnnxEncoder(tmp_path)
    dim = settings.dim
    assert (encoder.dim, encoder.history_length) == (dim, LENGTH if towers.reads_history else 0)
    for lengths in ([0], [1], [2], [LENGTH], [0] * 7, [LENGTH] * 7, [4, 0, 2, 1, 3, 0, 4]):
        batch_size = len(lengths)
        vectors, counts = make_histories(batch_size, dim, lengths)
        item_features, user_features = ITEM_FEATURES[:batch_size], USER_FEATURES[-batch_size:]
        item_tensors = {name: torch.from_numpy(x) for name, x in encoders[0].encode(item_features).items()}
        user_tensors = {name: torch.from_numpy(x) for name, x in encoders[1].encode(user_features).items()}
        rows = np.resize([0, 1, -1], batch_size)  # of the release, whose third item was not in training
        with torch.no_grad():
            expected_users = towers.user_tower(torch.from_numpy(vectors), torch.from_numpy(counts), user_tensors)
            table_rows = torch.from_numpy(np.where(rows < 0, N_TRAINED_ITEMS, rows))
            expected_items = towers.encode_items(table_rows, item_tensors)
        np.testing.assert_allclose(encoder.encode_users(user_features, vectors, counts), expected_users, atol=1e-4)
        np.testing.assert_allclose(encoder.encode_items(item_features, rows), expected_items, atol=1e-4)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Towers, the directory that they were exported to, and their hash."""
    directory = tmp_path_factory.mktemp("exported")
    towers = make_towers(synthetic.make_model_settings(), ENCODERS)
    return towers, directory, export(towers, ENCODERS, directory, id_rows=[3, -1, 0])


def test_unknown_item_has_the_last_row_of_the_id_table(exported):
    towers, directory, _ = exported
    table = towers.item_id_embedding.weight.detach().numpy()
    np.testing.assert_array_equal(np.load(directory / ITEM_ID_VECTORS_FILE), table[[3, 10, 0, 10]])
    by_row, unknown = OnnxEncoder(directory).encode_items(ITEM_FEATURES[[5, 5]], np.array([1, -1]))
    np.testing.assert_array_equal(by_row, unknown)


@pytest.mark.parametrize(("tower", "file"), [("item", ITEM_TOWER_FILE), ("user", QUERY_TOWER_FILE)])
def test_export_that_differs_from_torch_raises(tmp_path, monkeypatch, tower, file):
    towers = make_towers(synthetic.make_model_settings(), (NO_FEATURES, NO_FEATURES))
    strip_metadata = export_module._strip_metadata

    def corrupt(model):
        """Apply a cosine to the output of one tower."""
        strip_metadata(model)
        if ("history" in [graph_input.name for graph_input in model.graph.input]) == (tower == "user"):
            model.graph.node[-1].output[0] = "before"
            model.graph.node.append(onnx.helper.make_node("Cos", ["before"], ["vectors"]))

    monkeypatch.setattr(export_module, "_strip_metadata", corrupt)
    with pytest.raises(ExportError, match=rf"{re.escape(file)}: ONNX Runtime differs from torch .* not published"):
        export(towers, (NO_FEATURES, NO_FEATURES), tmp_path)


def test_parity_check_detects_one_changed_weight(exported, monkeypatch):
    towers, directory, _ = exported
    changed = torch.nn.Parameter(torch.tensor([0.5, 0.0, 0.0, 0.0]))
    monkeypatch.setattr(towers.user_tower.history_encoder, "mixture_logits", changed)
    names = ["history", "lengths"] + [f"feature.{name}" for name in ENCODERS[1].specs]
    with pytest.raises(ExportError, match=r"at batch size \d, history length \d"):
        _check_parity(
            QueryTowerWrapper(towers.user_tower, names),
            SampleInputs(names, ENCODERS[1].specs, 8),
            LENGTH,
            directory / QUERY_TOWER_FILE,
        )


def test_parity_check_fails_on_nan(exported):
    towers, directory, _ = exported
    names = ["id_vectors"] + [f"feature.{name}" for name in ENCODERS[0].specs]
    graph = ItemTowerWrapper(towers.item_tower, names)
    sample_inputs = SampleInputs(names, ENCODERS[0].specs, 8)
    _check_parity(graph, sample_inputs, LENGTH, directory / ITEM_TOWER_FILE)
    graph.forward = lambda *inputs: torch.full((len(inputs[0]), 8), torch.nan)
    with pytest.raises(ExportError, match="nan"):
        _check_parity(graph, sample_inputs, LENGTH, directory / ITEM_TOWER_FILE)


def test_encoder_hash_depends_on_weights_and_encoders_only(exported, tmp_path):
    _, directory, encoder_hash = exported
    assert re.fullmatch("[0-9a-f]{64}", encoder_hash)
    assert compute_encoder_hash(directory) == encoder_hash
    # The same weights, in a catalogue that has grown.
    same_towers = make_towers(synthetic.make_model_settings(), ENCODERS)
    assert export(same_towers, ENCODERS, tmp_path, id_rows=[3, -1, 0, -1, 2]) == encoder_hash
    for file in (ITEM_TOWER_FILE, QUERY_TOWER_FILE, ENCODERS_FILE):
        content = (tmp_path / file).read_bytes()
        (tmp_path / file).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert compute_encoder_hash(tmp_path) != encoder_hash
        (tmp_path / file).write_bytes(content)
    assert compute_encoder_hash(tmp_path) == encoder_hash


def test_exported_files_hold_no_source_locations(exported):
    for file in (ITEM_TOWER_FILE, QUERY_TOWER_FILE):
        content = (exported[1] / file).read_bytes()
        assert b".py" not in content
        assert b"stack_trace" not in content


def test_sample_inputs_cover_every_length_and_contain_padding():
    specs = ENCODERS[0].specs
    names = ["history", "lengths", "id_vectors", *(f"feature.{name}" for name in specs)]
    inputs = SampleInputs(names, specs, 8).generate(50, 3, n_values=2)
    assert list(inputs) == names
    assert inputs["history"].shape == (50, 3, 8)
    assert set(inputs["lengths"]) == {0, 1, 2, 3}
    for name, spec in specs.items():
        values = inputs[f"feature.{name}"]
        shapes = {"dense": (50, spec.size), "categorical": (50,), "multi_value": (50, 2)}
        assert values.shape == shapes[spec.kind]
        if spec.kind == "multi_value":
            assert (values == 0).all(axis=1).any()
            assert values.max() < spec.size


def test_exported_weights_are_released_with_the_towers(tmp_path):
    encoders = (FeatureEncoder.fit({"type": synthetic.FEATURES["type"]}, ITEM_FEATURES), NO_FEATURES)
    graph = ItemTowerWrapper(
        make_towers(synthetic.make_model_settings("mean"), encoders).item_tower,
        [ID_VECTORS_INPUT, FEATURE_INPUT_PREFIX + "type"],
    )
    _export_graph(graph, SampleInputs(graph.input_names, encoders[0].specs, 8), LENGTH, tmp_path / ITEM_TOWER_FILE)
    tables = [weakref.ref(weights) for weights in graph.parameters()]
    assert len(tables) == 1
    del graph
    gc.collect()
    assert tables[0]() is None


def write_by_concatenating(table, id_rows, path):
    """Oracle: the whole array in memory."""
    write_array(path, np.concatenate([table[id_rows], table[-1:]]))


def test_id_vectors_in_blocks_are_the_file_of_the_whole_array(tmp_path, monkeypatch):
    table = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
    monkeypatch.setattr(export_module, "_BLOCK_ROWS", 3)
    for id_rows in (np.array([], dtype=np.int64), np.array([6, -1, 0, 0, -1, 3, 2])):
        write_id_vectors([table[:, :2], table[:, 2:]], id_rows, tmp_path / "blocks.npy")
        write_by_concatenating(table, id_rows, tmp_path / "whole.npy")
        assert (tmp_path / "blocks.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


def test_writing_id_vectors_needs_no_memory_for_the_table(tmp_path):
    rows, dim = 2**19, 64
    table, id_rows = np.ones((rows + 1, dim), dtype=np.float32), np.arange(rows)
    peaks = [
        measure_peak_bytes(lambda _, write=write, tables=tables: write(tables, id_rows, tmp_path / "item_ids.npy"))
        for write, tables in ((write_id_vectors, [table]), (write_by_concatenating, table))
    ]
    assert peaks[0] < 0.3 * table.nbytes
    assert peaks[1] > 1.5 * table.nbytes
