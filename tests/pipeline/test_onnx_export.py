import re

import numpy as np
import onnx
import pytest
import torch
from support import synthetic

from vecall.config import PRESETS
from vecall.data.feature_encoder import FeatureEncoder
from vecall.errors import ExportError
from vecall.pipeline import onnx_export as export_module
from vecall.pipeline.onnx_export import (
    ItemTowerWrapper,
    QueryTowerWrapper,
    SampleInputs,
    _check_parity,
    compute_encoder_hash,
    export_towers,
)
from vecall.release.encoder import (
    ENCODERS_FILE,
    ITEM_ID_VECTORS_FILE,
    ITEM_TOWER_FILE,
    QUERY_TOWER_FILE,
    EncoderState,
    OnnxEncoder,
)
from vecall.towers.settings import ModelSettings
from vecall.towers.two_tower import TwoTower

LENGTH = 4
ITEM_FIELDS, USER_FIELDS = synthetic.make_features(40, 1), synthetic.make_features(40, 2)
SIDES = FeatureEncoder.fit(synthetic.FEATURES, ITEM_FIELDS), FeatureEncoder.fit(synthetic.FEATURES, USER_FIELDS)
NO_FEATURES = FeatureEncoder.fit({}, ITEM_FIELDS)


def trained(settings, sides, seed=0):
    """Towers as if trained: layers that begin at zero are moved, running means too."""
    items, users = sides
    torch.manual_seed(seed)
    towers = TwoTower(settings, items.shapes, users.shapes, 10)
    with torch.no_grad():
        for weights in (*towers.parameters(), *towers.buffers()):
            if weights.is_floating_point() and weights.dim():
                weights += 0.1 * torch.rand_like(weights)
    return towers.eval()


def export(towers, sides, folder, id_rows=(0, 1, -1)):
    items, users = sides
    length = towers.settings.history.length if towers.reads_history else 0
    state = EncoderState(dim=towers.settings.dim, history_length=length, items=items.state, users=users.state)
    return export_towers(towers, state, (items.shapes, users.shapes), np.array(id_rows), folder)


def histories(batch, dim, lengths):
    vectors = torch.nn.functional.normalize(torch.randn(batch, max(lengths), dim), dim=-1)
    return vectors.numpy(), np.array(lengths)


def preset(name):
    model = PRESETS[name].get("model", {})
    return ModelSettings(**model | {"preset": name, "history": model.get("history", {}) | {"length": LENGTH}})


CASES = {
    "pooled": (preset("pooled"), SIDES),
    "founding": (preset("founding"), SIDES),
    "mean, hidden": (synthetic.make_model_settings("mean", hidden=(16,)), (SIDES[0], NO_FEATURES)),
    "attention": (synthetic.make_model_settings("attention", norm="none"), (NO_FEATURES, NO_FEATURES)),
    "attention, hidden, batch norm": (synthetic.make_model_settings("attention", hidden=(16,), norm="batch"), SIDES),
    "causal": (synthetic.make_model_settings("causal"), (SIDES[0], NO_FEATURES)),
    "causal, hidden": (synthetic.make_model_settings("causal", hidden=(16,)), SIDES),
    "members, causal": (synthetic.make_model_settings("causal", members=2, hidden=(16,)), SIDES),
    "members, mean": (synthetic.make_model_settings("mean", members=4), (SIDES[0], NO_FEATURES)),
    "ids, and users without a history": (synthetic.make_model_settings("none"), (NO_FEATURES, SIDES[1])),
}


@pytest.mark.parametrize("case", CASES)
def test_the_exported_files_answer_as_torch_does(tmp_path, case):
    settings, sides = CASES[case]
    towers = trained(settings, sides)
    export(towers, sides, tmp_path)
    encoder = OnnxEncoder(tmp_path)
    dim = settings.dim
    assert (encoder.dim, encoder.history_length) == (dim, LENGTH if towers.reads_history else 0)
    for lengths in ([0], [1], [2], [LENGTH], [0] * 7, [LENGTH] * 7, [4, 0, 2, 1, 3, 0, 4]):
        batch = len(lengths)
        vectors, counts = histories(batch, dim, lengths)
        fields, user_fields = ITEM_FIELDS[:batch], USER_FIELDS[-batch:]
        features = {name: torch.from_numpy(x) for name, x in sides[1].encode(user_fields).items()}
        rows = np.resize([0, 1, -1], batch)  # of the release, whose third item training did not know
        with torch.no_grad():
            expected = towers.user_tower(torch.from_numpy(vectors), torch.from_numpy(counts), features)
            known = torch.from_numpy(np.where(rows < 0, 10, rows))
            items = towers.encode_items(known, {n: torch.from_numpy(x) for n, x in sides[0].encode(fields).items()})
        np.testing.assert_allclose(encoder.encode_users(user_fields, vectors, counts), expected, atol=1e-4)
        np.testing.assert_allclose(encoder.encode_items(fields, rows), items, atol=1e-4)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Towers, the folder that they were exported to and their hash."""
    folder = tmp_path_factory.mktemp("exported")
    towers = trained(synthetic.make_model_settings(), SIDES)
    return towers, folder, export(towers, SIDES, folder, id_rows=[3, -1, 0])


def test_an_unknown_item_has_the_last_row_of_the_id_table(exported):
    towers, folder, _ = exported
    table = towers.item_ids.weight.detach().numpy()
    np.testing.assert_array_equal(np.load(folder / ITEM_ID_VECTORS_FILE), table[[3, 10, 0, 10]])
    by_row, unknown = OnnxEncoder(folder).encode_items(ITEM_FIELDS[[5, 5]], np.array([1, -1]))
    np.testing.assert_array_equal(by_row, unknown)


@pytest.mark.parametrize(("tower", "file"), [("item", ITEM_TOWER_FILE), ("user", QUERY_TOWER_FILE)])
def test_an_export_that_answers_otherwise_is_refused(tmp_path, monkeypatch, tower, file):
    towers = trained(synthetic.make_model_settings(), (NO_FEATURES, NO_FEATURES))
    forget = export_module._strip_metadata

    def spoil(model):
        """Sabotage the one tower: its answer goes through a cosine."""
        forget(model)
        if ("history" in [one.name for one in model.graph.input]) == (tower == "user"):
            model.graph.node[-1].output[0] = "before"
            model.graph.node.append(onnx.helper.make_node("Cos", ["before"], ["vectors"]))

    monkeypatch.setattr(export_module, "_forget_origins", spoil)
    with pytest.raises(ExportError, match=rf"{re.escape(file)}: ONNX Runtime differs from torch .* not published"):
        export(towers, (NO_FEATURES, NO_FEATURES), tmp_path)


def test_a_single_weight_that_differs_is_found(exported, monkeypatch):
    towers, folder, _ = exported
    monkeypatch.setattr(towers.user.history, "mixture", torch.nn.Parameter(torch.tensor([0.5, 0.0, 0.0, 0.0])))
    names = ["history", "lengths"] + [f"feature.{name}" for name in SIDES[1].specs]
    with pytest.raises(ExportError, match=r"at batch \d, history length \d"):
        _check_parity(
            QueryTowerWrapper(towers.user, names),
            SampleInputs(names, SIDES[1].specs, 8),
            LENGTH,
            folder / QUERY_TOWER_FILE,
        )


def test_no_number_is_no_equal_answer(exported):
    towers, folder, _ = exported
    names = ["id_vectors"] + [f"feature.{name}" for name in SIDES[0].specs]
    graph = ItemTowerWrapper(towers.item, names)
    examples = SampleInputs(names, SIDES[0].specs, 8)
    _check_parity(graph, examples, LENGTH, folder / ITEM_TOWER_FILE)
    graph.forward = lambda *inputs: torch.full((len(inputs[0]), 8), torch.nan)
    with pytest.raises(ExportError, match="nan"):
        _check_parity(graph, examples, LENGTH, folder / ITEM_TOWER_FILE)


def test_the_encoder_hash_is_of_the_weights_and_the_encoders(exported, tmp_path):
    _, folder, first = exported
    assert re.fullmatch("[0-9a-f]{64}", first)
    assert compute_encoder_hash(folder) == first
    # Equal weights again, in a catalogue that has grown.
    assert export(trained(synthetic.make_model_settings(), SIDES), SIDES, tmp_path, id_rows=[3, -1, 0, -1, 2]) == first
    for file in (ITEM_TOWER_FILE, QUERY_TOWER_FILE, ENCODERS_FILE):
        content = (tmp_path / file).read_bytes()
        (tmp_path / file).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert compute_encoder_hash(tmp_path) != first
        (tmp_path / file).write_bytes(content)
    assert compute_encoder_hash(tmp_path) == first


def test_the_files_tell_nothing_of_where_they_were_made(exported):
    for file in (ITEM_TOWER_FILE, QUERY_TOWER_FILE):
        content = (exported[1] / file).read_bytes()
        assert b".py" not in content
        assert b"stack_trace" not in content


def test_examples_are_of_every_size_and_have_gaps():
    shapes = SIDES[0].specs
    names = ["history", "lengths", "id_vectors", *(f"feature.{name}" for name in shapes)]
    made = SampleInputs(names, shapes, 8).generate(50, 3, n_values=2)
    assert list(made) == names
    assert made["history"].shape == (50, 3, 8)
    assert set(made["lengths"]) == {0, 1, 2, 3}
    for name, shape in shapes.items():
        values = made[f"feature.{name}"]
        assert values.shape == {"dense": (50, shape.size), "one": (50,), "bag": (50, 2)}[shape.kind]
        if shape.kind == "bag":
            assert (values == 0).all(axis=1).any()
            assert values.max() < shape.size
