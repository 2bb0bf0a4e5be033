import pytest
import torch

from vecall.data.feature_encoder import OOV, FeatureSpec
from vecall.towers.features import (
    CONCAT_EMBEDDING_DIM,
    ConcatenatedFeatures,
    SqrtNEmbeddingBag,
    SummedFeatures,
    build_categorical_embedding,
    to_module_key,
)

SHAPES = {
    "price": FeatureSpec("dense", 2),
    "type": FeatureSpec("one", 5),  # nn.Module has a `type` of its own
    "a.b%": FeatureSpec("bag", 4),
    "values": FeatureSpec("bag", 3),
}
FEATURES = {
    "price": torch.tensor([[0.5, 1.0], [0.0, 0.0]]),
    "type": torch.tensor([4, 0]),
    "a.b%": torch.tensor([[1, 3, 0], [0, 0, 0]]),
    "values": torch.tensor([[2], [1]]),
}


def test_a_bag_is_the_sum_by_the_root_of_the_number():
    bag = SqrtNEmbeddingBag(5, 3, 0.1)
    table = bag.table.weight
    torch.testing.assert_close(
        bag(torch.tensor([[2, 4, 0], [0, 3, 0]])), torch.stack([(table[2] + table[4]) / 2**0.5, table[3]])
    )
    assert bag(torch.tensor([[0, 0]])).tolist() == [[0.0, 0.0, 0.0]]
    assert bag(torch.empty(2, 0, dtype=torch.long)).tolist() == [[0.0] * 3] * 2


def test_summed_inputs_add_their_parts():
    inputs = SummedFeatures(SHAPES, 6, 0.1)
    parts = inputs.layers
    expected = sum(parts[to_module_key(name)](FEATURES[name]) for name in SHAPES)
    torch.testing.assert_close(inputs(FEATURES), expected)
    assert inputs(FEATURES).shape == (2, 6)


def test_concatenated_inputs_keep_dense_ones_as_they_are():
    inputs = ConcatenatedFeatures(SHAPES, 0.1)
    made = inputs(FEATURES)
    assert made.shape == (2, inputs.output_dim) == (2, 2 + 3 * CONCAT_EMBEDDING_DIM)
    torch.testing.assert_close(made[:, :2], FEATURES["price"])


@pytest.mark.parametrize("make", [lambda: SummedFeatures(SHAPES, 6, 0.1), lambda: ConcatenatedFeatures(SHAPES, 0.1)])
def test_features_come_in_any_order(make):
    inputs = make()
    torch.testing.assert_close(inputs(FEATURES), inputs(dict(reversed(FEATURES.items()))))


def test_names_of_layers_are_free_of_dots_and_stay_apart():
    names = ["type", "a.b", "a%2Eb", "a_b", "forward", "矢量"]
    assert len({to_module_key(name) for name in names}) == len(names)
    assert not any("." in to_module_key(name) for name in names)


def test_missing_and_never_seen_values_hardly_speak():
    torch.manual_seed(0)
    lengths = build_categorical_embedding(50, 16, 0.1).weight.norm(dim=1)
    assert lengths[: OOV + 1].max() < 0.05 * lengths[OOV + 1 :].min()
    assert lengths.min() > 0


def test_of_values_that_training_never_saw_nothing_is_learned():
    table = build_categorical_embedding(5, 4, 0.1)
    table(torch.tensor([OOV, 3])).sum().backward()
    assert table.weight.grad[OOV].tolist() == [0.0] * 4
    assert table.weight.grad[3].tolist() == [1.0] * 4


@pytest.mark.parametrize("scale", [0.1, 0.02])
def test_features_of_all_kinds_begin_equally_loud(scale):
    torch.manual_seed(0)
    inputs = SummedFeatures(
        {"x": FeatureSpec("dense", 300), "one": FeatureSpec("one", 400), "bag": FeatureSpec("bag", 400)}, 256, scale
    )
    known = torch.arange(OOV + 1, 400)
    inputs_of = {"x": torch.randn(200, 300), "one": known, "bag": known.unsqueeze(1)}
    for name, values in inputs_of.items():
        assert inputs.layers[to_module_key(name)](values).std().item() == pytest.approx(scale, rel=0.05), name
