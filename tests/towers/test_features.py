import pytest
import torch

from vecall.data.feature_encoder import NEVER_SEEN, Shape
from vecall.towers.features import SIDE_BY_SIDE_WIDTH, Bag, ConcatenatedInputs, SummedInputs, part_name, value_embedding

SHAPES = {
    "price": Shape("dense", 2),
    "type": Shape("one", 5),  # nn.Module has a `type` of its own
    "a.b%": Shape("bag", 4),
    "values": Shape("bag", 3),
}
FEATURES = {
    "price": torch.tensor([[0.5, 1.0], [0.0, 0.0]]),
    "type": torch.tensor([4, 0]),
    "a.b%": torch.tensor([[1, 3, 0], [0, 0, 0]]),
    "values": torch.tensor([[2], [1]]),
}


def test_a_bag_is_the_sum_by_the_root_of_the_number():
    bag = Bag(5, 3, 0.1)
    table = bag.table.weight
    torch.testing.assert_close(
        bag(torch.tensor([[2, 4, 0], [0, 3, 0]])), torch.stack([(table[2] + table[4]) / 2**0.5, table[3]])
    )
    assert bag(torch.tensor([[0, 0]])).tolist() == [[0.0, 0.0, 0.0]]
    assert bag(torch.empty(2, 0, dtype=torch.long)).tolist() == [[0.0] * 3] * 2


def test_summed_inputs_add_their_parts():
    inputs = SummedInputs(SHAPES, 6, 0.1)
    parts = inputs.parts
    expected = sum(parts[part_name(name)](FEATURES[name]) for name in SHAPES)
    torch.testing.assert_close(inputs(FEATURES), expected)
    assert inputs(FEATURES).shape == (2, 6)


def test_concatenated_inputs_keep_dense_ones_as_they_are():
    inputs = ConcatenatedInputs(SHAPES, 0.1)
    made = inputs(FEATURES)
    assert made.shape == (2, inputs.width) == (2, 2 + 3 * SIDE_BY_SIDE_WIDTH)
    torch.testing.assert_close(made[:, :2], FEATURES["price"])


@pytest.mark.parametrize("make", [lambda: SummedInputs(SHAPES, 6, 0.1), lambda: ConcatenatedInputs(SHAPES, 0.1)])
def test_features_come_in_any_order(make):
    inputs = make()
    torch.testing.assert_close(inputs(FEATURES), inputs(dict(reversed(FEATURES.items()))))


def test_names_of_layers_are_free_of_dots_and_stay_apart():
    names = ["type", "a.b", "a%2Eb", "a_b", "forward", "矢量"]
    assert len({part_name(name) for name in names}) == len(names)
    assert not any("." in part_name(name) for name in names)


def test_missing_and_never_seen_values_hardly_speak():
    torch.manual_seed(0)
    lengths = value_embedding(50, 16, 0.1).weight.norm(dim=1)
    assert lengths[: NEVER_SEEN + 1].max() < 0.05 * lengths[NEVER_SEEN + 1 :].min()
    assert lengths.min() > 0


def test_of_values_that_training_never_saw_nothing_is_learned():
    table = value_embedding(5, 4, 0.1)
    table(torch.tensor([NEVER_SEEN, 3])).sum().backward()
    assert table.weight.grad[NEVER_SEEN].tolist() == [0.0] * 4
    assert table.weight.grad[3].tolist() == [1.0] * 4


@pytest.mark.parametrize("scale", [0.1, 0.02])
def test_features_of_all_kinds_begin_equally_loud(scale):
    torch.manual_seed(0)
    inputs = SummedInputs({"x": Shape("dense", 300), "one": Shape("one", 400), "bag": Shape("bag", 400)}, 256, scale)
    known = torch.arange(NEVER_SEEN + 1, 400)
    inputs_of = {"x": torch.randn(200, 300), "one": known, "bag": known.unsqueeze(1)}
    for name, values in inputs_of.items():
        assert inputs.parts[part_name(name)](values).std().item() == pytest.approx(scale, rel=0.05), name
