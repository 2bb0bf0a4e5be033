import re

import numpy as np
import onnx
import pytest
import tiny
import torch

from vecall import export as export_module
from vecall.config import PRESETS
from vecall.data.encode import Encoders
from vecall.errors import ExportError
from vecall.export import Examples, ItemGraph, QueryGraph, encoder_hash, export_towers
from vecall.release.encoder import ITEM_IDS, ITEM_TOWER, QUERY_TOWER, Encoder, TowersState
from vecall.towers.settings import ModelSettings
from vecall.towers.two_tower import TwoTower

LENGTH = 4
ITEM_FIELDS, USER_FIELDS = tiny.fields(40, 1), tiny.fields(40, 2)
SIDES = Encoders.fit(tiny.FEATURES, ITEM_FIELDS), Encoders.fit(tiny.FEATURES, USER_FIELDS)
NO_FEATURES = Encoders.fit({}, ITEM_FIELDS)


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
    state = TowersState(dim=towers.settings.dim, history_length=length, items=items.state, users=users.state)
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
    "mean alone": (tiny.model("mean"), (NO_FEATURES, NO_FEATURES)),
    "mean, hidden": (tiny.model("mean", hidden=(16,)), SIDES),
    "attention": (tiny.model("attention", norm="none"), SIDES),
    "attention, hidden, batch norm": (tiny.model("attention", hidden=(16,), norm="batch"), SIDES),
    "no history": (tiny.model("none"), (NO_FEATURES, SIDES[1])),
}


@pytest.mark.parametrize("case", CASES)
def test_the_exported_files_answer_as_torch_does(tmp_path, case):
    settings, sides = CASES[case]
    towers = trained(settings, sides)
    export(towers, sides, tmp_path)
    encoder = Encoder(tmp_path)
    dim = settings.dim
    assert (encoder.dim, encoder.history_length) == (dim, LENGTH if towers.reads_history else 0)
    for lengths in ([0], [1], [2], [LENGTH], [0] * 7, [LENGTH] * 7, [4, 0, 2, 1, 3, 0, 4]):
        batch = len(lengths)
        vectors, counts = histories(batch, dim, lengths)
        fields, user_fields = ITEM_FIELDS[:batch], USER_FIELDS[-batch:]
        features = {name: torch.from_numpy(x) for name, x in sides[1].encode(user_fields).items()}
        rows = np.resize([0, 1, -1], batch)  # of the release, whose third item training did not know
        with torch.no_grad():
            expected = towers.user(torch.from_numpy(vectors), torch.from_numpy(counts), features)
            known = torch.from_numpy(np.where(rows < 0, 10, rows))
            items = towers.encode_items(known, {n: torch.from_numpy(x) for n, x in sides[0].encode(fields).items()})
        np.testing.assert_allclose(encoder.encode_users(user_fields, vectors, counts), expected, atol=1e-4)
        np.testing.assert_allclose(encoder.encode_items(fields, rows), items, atol=1e-4)


@pytest.mark.parametrize("kind", tiny.FEATURES)
def test_a_feature_of_each_kind_alone(tmp_path, kind):
    """And with nothing else: no ids, no history."""
    sides = Encoders.fit({kind: tiny.FEATURES[kind]}, ITEM_FIELDS), Encoders.fit({kind: tiny.FEATURES[kind]}, USER_FIELDS)
    towers = trained(tiny.model("none", item_id=False), sides)
    export(towers, sides, tmp_path)
    assert not (tmp_path / ITEM_IDS).exists()
    features = {name: torch.from_numpy(x) for name, x in sides[0].encode(ITEM_FIELDS).items()}
    with torch.no_grad():
        expected = towers.item(None, features)
    rows = np.full(len(ITEM_FIELDS), -1)
    np.testing.assert_allclose(Encoder(tmp_path).encode_items(ITEM_FIELDS, rows), expected, atol=1e-4)


def test_an_unknown_item_has_the_last_row_of_the_id_table(tmp_path):
    sides = SIDES
    towers = trained(tiny.model(), sides)
    export(towers, sides, tmp_path, id_rows=[3, -1, 0])
    table = towers.item_ids.weight.detach().numpy()
    np.testing.assert_array_equal(np.load(tmp_path / ITEM_IDS), table[[3, 10, 0, 10]])
    encoder = Encoder(tmp_path)
    fields = ITEM_FIELDS[[5, 5]]
    by_row, unknown = encoder.encode_items(fields, np.array([1, -1]))
    np.testing.assert_array_equal(by_row, unknown)


@pytest.mark.parametrize(("tower", "file"), [("item", ITEM_TOWER), ("user", QUERY_TOWER)])
def test_an_export_that_answers_otherwise_is_refused(tmp_path, monkeypatch, tower, file):
    towers = trained(tiny.model(), (NO_FEATURES, NO_FEATURES))
    forget = export_module._forget_origins

    def spoil(model):
        """Sabotage one weight of the tower that is looked at."""
        forget(model)
        if ("history" in [one.name for one in model.graph.input]) == (tower == "user"):
            last = model.graph.node[-1]
            model.graph.node.append(onnx.helper.make_node("Cos", list(last.output), ["spoilt"]))
            model.graph.output[0].name = "vectors"
            last.output[0], model.graph.node[-1].input[0] = "before", "before"
            model.graph.node[-1].output[0] = "vectors"

    monkeypatch.setattr(export_module, "_forget_origins", spoil)
    with pytest.raises(ExportError, match=rf"{re.escape(file)}: ONNX Runtime differs from torch .* not published"):
        export(towers, (NO_FEATURES, NO_FEATURES), tmp_path)


def test_a_single_weight_that_differs_is_found(tmp_path):
    towers = trained(tiny.model(), SIDES)
    export(towers, SIDES, tmp_path)
    with torch.no_grad():
        towers.user.history.mixture[0] += 0.5
    names = ["history", "lengths"] + [f"feature.{name}" for name in SIDES[1].shapes]
    graph = QueryGraph(towers.user, names)
    with pytest.raises(ExportError, match=r"at batch \d, history length \d"):
        export_module._accept(graph, Examples(names, SIDES[1].shapes, 8), LENGTH, tmp_path / QUERY_TOWER)


def test_no_answer_is_no_equal_answer(tmp_path):
    """An export that gives NaN is refused."""
    towers = trained(tiny.model(), (NO_FEATURES, NO_FEATURES))
    export(towers, (NO_FEATURES, NO_FEATURES), tmp_path)
    graph = ItemGraph(towers.item, ["id_vectors"])
    graph.forward = lambda *inputs: torch.full((len(inputs[0]), 8), torch.nan)
    with pytest.raises(ExportError, match="nan"):
        export_module._accept(graph, Examples(["id_vectors"], {}, 8), LENGTH, tmp_path / ITEM_TOWER)


def test_the_encoder_hash_is_of_the_weights_and_the_encoders(tmp_path):
    def made(name, *, seed=0, sides=SIDES, id_rows=(0, 1)):
        folder = tmp_path / name
        folder.mkdir()
        digest = export(trained(tiny.model(), sides, seed), sides, folder, id_rows)
        assert digest == encoder_hash(folder)
        return digest

    first = made("first")
    assert re.fullmatch("[0-9a-f]{64}", first)
    assert made("again") == first
    assert made("more items", id_rows=(0, 1, 2, -1)) == first
    assert made("other weights", seed=1) != first
    others = Encoders.fit(tiny.FEATURES, USER_FIELDS.with_columns(**{"price.eur": 3.0}))
    assert made("other encoders", sides=(SIDES[0], others)) != first


def test_the_files_tell_nothing_of_where_they_were_made(tmp_path):
    export(trained(tiny.model(), SIDES), SIDES, tmp_path)
    for file in (ITEM_TOWER, QUERY_TOWER):
        content = (tmp_path / file).read_bytes()
        assert b".py" not in content
        assert b"stack_trace" not in content


def test_examples_are_of_every_size_and_have_gaps():
    shapes = SIDES[0].shapes
    names = ["history", "lengths", "id_vectors", *(f"feature.{name}" for name in shapes)]
    made = Examples(names, shapes, 8).make(50, 3, bag=2)
    assert list(made) == names
    assert made["history"].shape == (50, 3, 8)
    assert set(made["lengths"]) == {0, 1, 2, 3}
    for name, shape in shapes.items():
        values = made[f"feature.{name}"]
        assert values.shape == {"dense": (50, shape.size), "one": (50,), "bag": (50, 2)}[shape.kind]
        if shape.kind == "bag":
            assert (values == 0).all(axis=1).any()
            assert values.max() < shape.size
