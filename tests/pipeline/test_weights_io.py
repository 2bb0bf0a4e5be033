"""Weights files: written without a copy, mapped when read, and replaced rather than overwritten."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import synthetic
from support.memory import measure_peak_bytes
from torch import nn

from vecall.data.feature_encoder import FeatureEncoder
from vecall.pipeline import weights_io
from vecall.pipeline.weights_io import load_module, save_weights
from vecall.towers.two_tower import TwoTower

SPECS = FeatureEncoder.fit(synthetic.FEATURES, synthetic.make_features(40)).specs
TABLE_BYTES = 2**27
TABLE_ROWS, TABLE_DIM = 2**19, 64


def make_towers(encoder="mean", n_items=20, **model):
    return TwoTower(synthetic.make_model_settings(encoder, **model), SPECS, SPECS, n_items)


def load_by_copying(build, path):
    """Oracle: fresh weights, overwritten by those of the file."""
    module = build()
    module.load_state_dict(load_file(path))
    return module


@pytest.fixture(params=[0, weights_io._MIN_MAPPED_BYTES], ids=["mapped", "copied"])
def min_mapped_bytes(request, monkeypatch):
    monkeypatch.setattr(weights_io, "_MIN_MAPPED_BYTES", request.param)


@pytest.mark.usefixtures("min_mapped_bytes")
@pytest.mark.parametrize(
    ("encoder", "model"),
    [
        ("mean", {}),
        ("mean", {"hidden": (16,), "norm": "batch"}),
        ("attention", {}),
        ("causal", {"ensemble_size": 2}),
        ("set", {"ensemble_size": 2}),
    ],
)
def test_loaded_module_equals_that_of_copied_weights(tmp_path, encoder, model):
    save_weights(make_towers(encoder, **model), path := tmp_path / "weights.safetensors")
    loaded = load_module(lambda: make_towers(encoder, **model), path)
    expected = load_by_copying(lambda: make_towers(encoder, **model), path)
    assert dict(loaded.named_parameters()).keys() == dict(expected.named_parameters()).keys()
    for tensors in ("named_parameters", "named_buffers"):  # among these the buffers that the file lacks
        for (name, tensor), (_, other) in zip(getattr(loaded, tensors)(), getattr(expected, tensors)(), strict=True):
            assert torch.equal(tensor, other), name
            assert (tensor.requires_grad, tensor.dtype) == (other.requires_grad, other.dtype)


def test_file_is_that_of_safetensors(tmp_path):
    module = make_towers()
    save_weights(module, tmp_path / "weights.safetensors")
    save_file(module.state_dict(), tmp_path / "expected.safetensors")
    assert (tmp_path / "weights.safetensors").read_bytes() == (tmp_path / "expected.safetensors").read_bytes()


@pytest.mark.usefixtures("min_mapped_bytes")
def test_changed_weights_are_not_written_to_the_file_and_can_replace_it(tmp_path):
    save_weights(make_towers(), path := tmp_path / "weights.safetensors")
    module, other = load_module(make_towers, path), load_module(make_towers, path)
    with torch.no_grad():
        module.item_id_embedding.weight += 1
    assert torch.equal(load_file(path)["item_id_embedding.weight"], other.item_id_embedding.weight)
    save_weights(module, path)
    assert torch.equal(load_file(path)["item_id_embedding.weight"], module.item_id_embedding.weight)
    assert torch.equal(other.item_id_embedding.weight + 1, module.item_id_embedding.weight)  # mapped from the old file
    assert list(tmp_path.iterdir()) == [path]


def test_initializers_work_again_after_loading(tmp_path):
    save_weights(make_towers(), path := tmp_path / "weights.safetensors")
    load_module(make_towers, path)
    assert nn.Embedding(3, 2).weight.std() > 0
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_module(lambda: make_towers(dim=16), path)
    assert nn.Embedding(3, 2).weight.std() > 0


def make_table():
    table = nn.Embedding(TABLE_ROWS, TABLE_DIM)
    nn.init.normal_(table.weight, std=0.1)
    return table


def test_saving_and_loading_need_no_memory_for_the_table(tmp_path):
    path = tmp_path / "weights.safetensors"
    assert measure_peak_bytes(lambda table: save_weights(table, path), make_table) < 0.3 * TABLE_BYTES
    assert measure_peak_bytes(lambda _: load_module(make_table, path)) < 0.3 * TABLE_BYTES
    assert measure_peak_bytes(lambda _: load_module(make_table, path).weight.sum()) < 1.3 * TABLE_BYTES
    assert measure_peak_bytes(lambda _: load_by_copying(make_table, path).weight.sum()) > 1.9 * TABLE_BYTES
