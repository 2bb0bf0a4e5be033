import pytest
import torch

from vecall.data.feature_encoder import FeatureSpec
from vecall.data.vocabulary import OOV
from vecall.towers.features import (
    CONCAT_EMBEDDING_DIM,
    ConcatenatedFeatures,
    SqrtNEmbeddingBag,
    SummedFeatures,
    build_categorical_embedding,
    to_module_key,
)

SPECS = {
    "price": FeatureSpec("dense", 2),
    "type": FeatureSpec("categorical", 5),  # nn.Module has an attribute `type`
    "a.b%": FeatureSpec("multi_value", 4),
    "values": FeatureSpec("multi_value", 3),
}
FEATURES = {
    "price": torch.tensor([[0.5, 1.0], [0.0, 0.0]]),
    "type": torch.tensor([4, 0]),
    "a.b%": torch.tensor([[1, 3, 0], [0, 0, 0]]),
    "values": torch.tensor([[2], [1]]),
}


def test_embedding_bag_divides_the_sum_by_the_square_root_of_the_count():
    bag = SqrtNEmbeddingBag(5, 3, 0.1)
    table = bag.table.weight
    torch.testing.assert_close(
        bag(torch.tensor([[2, 4, 0], [0, 3, 0]])), torch.stack([(table[2] + table[4]) / 2**0.5, table[3]])
    )
    assert bag(torch.tensor([[0, 0]])).tolist() == [[0.0, 0.0, 0.0]]
    assert bag(torch.empty(2, 0, dtype=torch.long)).tolist() == [[0.0] * 3] * 2


def test_summed_features_add_the_vectors_of_all_features():
    summed = SummedFeatures(SPECS, 6, 0.1)
    expected = sum(summed.layers[to_module_key(name)](FEATURES[name]) for name in SPECS)
    torch.testing.assert_close(summed(FEATURES), expected)
    assert summed(FEATURES).shape == (2, 6)


def test_concatenated_features_keep_dense_values_unchanged():
    concatenated = ConcatenatedFeatures(SPECS, 0.1)
    output = concatenated(FEATURES)
    assert output.shape == (2, concatenated.output_dim) == (2, 2 + 3 * CONCAT_EMBEDDING_DIM)
    torch.testing.assert_close(output[:, :2], FEATURES["price"])


@pytest.mark.parametrize(
    "make_features", [lambda: SummedFeatures(SPECS, 6, 0.1), lambda: ConcatenatedFeatures(SPECS, 0.1)]
)
def test_order_of_the_input_features_does_not_matter(make_features):
    features = make_features()
    torch.testing.assert_close(features(FEATURES), features(dict(reversed(FEATURES.items()))))


def test_module_keys_have_no_dots_or_quotes_and_stay_distinct():
    names = ["type", "a.b", "a%2Eb", "a_b", "forward", "矢量", 'a"b', "a%22b"]
    assert len({to_module_key(name) for name in names}) == len(names)
    assert not any("." in to_module_key(name) or '"' in to_module_key(name) for name in names)


def test_embeddings_of_missing_and_unseen_values_are_short():
    torch.manual_seed(0)
    norms = build_categorical_embedding(50, 16, 0.1).weight.norm(dim=1)
    assert norms[: OOV + 1].max() < 0.05 * norms[OOV + 1 :].min()
    assert norms.min() > 0


def test_embedding_of_unseen_values_has_no_gradient():
    table = build_categorical_embedding(5, 4, 0.1)
    table(torch.tensor([OOV, 3])).sum().backward()
    assert table.weight.grad[OOV].tolist() == [0.0] * 4
    assert table.weight.grad[3].tolist() == [1.0] * 4


@pytest.mark.parametrize("init_std", [0.1, 0.02])
def test_initial_vectors_of_all_kinds_have_the_same_scale(init_std):
    torch.manual_seed(0)
    specs = {
        "dense": FeatureSpec("dense", 300),
        "categorical": FeatureSpec("categorical", 400),
        "multi_value": FeatureSpec("multi_value", 400),
    }
    summed = SummedFeatures(specs, 256, init_std)
    seen_rows = torch.arange(OOV + 1, 400)
    inputs = {"dense": torch.randn(200, 300), "categorical": seen_rows, "multi_value": seen_rows.unsqueeze(1)}
    for name, values in inputs.items():
        assert summed.layers[to_module_key(name)](values).std().item() == pytest.approx(init_std, rel=0.05), name
