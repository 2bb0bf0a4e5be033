import pytest
import torch
from support import synthetic

from vecall.data.feature_encoder import FeatureSpec
from vecall.towers.settings import HistorySettings
from vecall.towers.two_tower import TwoTower
from vecall.training.data import take, to_tensors

DATA = synthetic.make_training_data(item_features=True, user_features=True)
ITEM_FEATURES, USER_FEATURES = (
    to_tensors(features, torch.device("cpu")) for features in (DATA.item_features, DATA.user_features)
)


def make_towers(*, item_specs=DATA.item_specs, user_specs=DATA.user_specs, seed=0, **model):
    torch.manual_seed(seed)
    towers = TwoTower(synthetic.make_model_settings(**model), item_specs, user_specs, synthetic.ITEMS).eval()
    with torch.no_grad():  # as after training: layers whose initial weights are 0 have an effect too
        for parameter in towers.user_tower.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return towers


def encode_users(towers, rows, histories, lengths):
    item_features = ITEM_FEATURES if towers.item_tower.combiner.feature_embedding else {}
    user_features = take(USER_FEATURES, rows) if towers.user_tower.combiner.feature_embedding else {}
    items = towers.encode_items(torch.arange(synthetic.ITEMS), item_features)
    return towers.encode_users(items, histories, lengths, user_features)


def make_histories():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(synthetic.ITEMS, (9, 4), generator=generator), torch.tensor([0, 1, 2, 3, 4, 4, 0, 2, 3])


@pytest.mark.parametrize("encoder", ["none", "mean", "attention", "causal", "set"])
@pytest.mark.parametrize("hidden", [(), (16,)])
@pytest.mark.parametrize("norm", ["layer", "batch", "none"])
def test_vectors_have_length_1_and_do_not_depend_on_the_batch(encoder, hidden, norm):
    towers = make_towers(encoder=encoder, hidden=hidden, norm=norm, dropout=0.5, id_dropout=0.5)
    rows = torch.arange(9)
    histories, lengths = make_histories()
    with torch.no_grad():
        items = towers.encode_items(rows, take(ITEM_FEATURES, rows))
        users = encode_users(towers, rows, histories, lengths)
        for vectors in (items, users):
            torch.testing.assert_close(vectors.norm(dim=1), torch.ones(9))
        single = [towers.encode_items(rows[i : i + 1], take(ITEM_FEATURES, rows[i : i + 1])) for i in rows]
        torch.testing.assert_close(torch.cat(single), items)
        single = [encode_users(towers, rows[i : i + 1], histories[i : i + 1], lengths[i : i + 1]) for i in rows]
        torch.testing.assert_close(torch.cat(single), users)


@pytest.mark.parametrize("hidden", [(), (16,)])
@pytest.mark.parametrize("specs", [{name: spec} for name, spec in DATA.item_specs.items()], ids=list)
def test_a_single_feature_of_any_kind_distinguishes_items_and_users(hidden, specs):
    towers = make_towers(item_specs=specs, user_specs=specs, hidden=hidden, item_id=False, encoder="none")
    rows = torch.arange(20)
    with torch.no_grad():
        for vectors in (
            towers.encode_items(rows, take(ITEM_FEATURES, rows)),
            towers.encode_users(torch.empty(0), torch.empty(20, 0), torch.zeros(20), take(USER_FEATURES, rows)),
        ):
            assert torch.isfinite(vectors).all()
            norms = vectors.norm(dim=1)
            is_zero = norms == 0  # an empty list of tags as the only feature has no direction
            torch.testing.assert_close(norms[~is_zero], torch.ones(int((~is_zero).sum())))
            assert is_zero.sum() < 10
            assert len(vectors.round(decimals=4).unique(dim=0)) > 1


def test_padding_of_histories_does_not_change_user_vectors():
    towers = make_towers()
    rows = torch.arange(9)
    histories, lengths = make_histories()
    repadded = torch.where(torch.arange(4) < lengths[:, None], histories, synthetic.ITEMS - 1)
    with torch.no_grad():
        expected = encode_users(towers, rows, histories, lengths)
        torch.testing.assert_close(expected, encode_users(towers, rows, repadded, lengths))


@pytest.mark.parametrize("model", [{}, {"ensemble_size": 2}, {"hidden": (16,)}])
def test_users_by_sets_are_those_of_padded_histories(model):
    towers, rows = make_towers(encoder="set", **model), torch.arange(9)
    histories, lengths = make_histories()
    items = torch.cat([history[:length] for history, length in zip(histories, lengths, strict=True)])
    item_vectors = towers.encode_items(torch.arange(synthetic.ITEMS), ITEM_FEATURES)
    features = take(USER_FEATURES, rows)
    padded, by_sets = (
        towers.encode_users(item_vectors, histories, lengths, features),
        towers.encode_users_by_sets(item_vectors, items, lengths, features),
    )
    torch.testing.assert_close(by_sets, padded)
    weights = torch.randn(padded.shape)
    gradients = [
        torch.autograd.grad((users * weights).sum(), list(towers.parameters()), retain_graph=True)
        for users in (padded, by_sets)
    ]
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_users_without_any_item_are_encoded_by_sets():
    towers = make_towers(encoder="set")
    features, nothing = take(USER_FEATURES, torch.arange(3)), torch.zeros(3, dtype=torch.int64)
    item_vectors = torch.randn(4, 8, requires_grad=True)
    by_sets = towers.encode_users_by_sets(item_vectors, torch.empty(0, dtype=torch.int64), nothing, features)
    torch.testing.assert_close(by_sets, towers.encode_users(item_vectors, nothing.unsqueeze(1), nothing, features))
    by_sets.sum().backward()
    assert not item_vectors.grad.any()


def test_unknown_item_is_encoded_from_its_features_only():
    towers = make_towers()
    features = take(ITEM_FEATURES, torch.tensor([3]))
    with torch.no_grad():
        unknown = towers.encode_items(torch.tensor([synthetic.ITEMS]), features)
        from_features = torch.nn.functional.normalize(towers.item_tower.combiner.feature_embedding(features), dim=-1)
        torch.testing.assert_close(unknown, from_features)  # without id dropout, the id vector of unknown items is 0
        assert not torch.allclose(unknown, towers.encode_items(torch.tensor([3]), features))


def test_initial_id_vector_of_unknown_items_has_a_direction():
    """The gradient of a normalized zero vector is unbounded; Adam would remember it for thousands of steps."""
    towers = make_towers(id_dropout=0.25).train()
    towers.item_id_embedding.weight.grad = None
    zero_features = {name: torch.zeros_like(values) for name, values in take(ITEM_FEATURES, torch.tensor([3])).items()}
    vector = towers.encode_items(torch.tensor([synthetic.ITEMS]), zero_features)
    vector[0, 0].backward()
    assert 0 < towers.item_id_embedding.weight.grad.abs().max() < 100


def test_ids_are_hidden_in_training_only():
    towers = make_towers(id_dropout=0.25, dropout=0.0)
    rows = torch.full((4000,), 5)
    id_vector = towers.item_id_embedding.weight[5]
    torch.manual_seed(0)
    assert torch.equal(towers.item_id_embedding(towers._apply_id_dropout(rows)), id_vector.expand(4000, -1))
    towers.train()
    hidden_share = (towers._apply_id_dropout(rows) == synthetic.ITEMS).float().mean().item()
    assert hidden_share == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("encoder", ["mean", "attention", "causal"])
def test_items_of_histories_are_dropped_in_training_only(encoder):
    towers = make_towers(history=HistorySettings(encoder=encoder, item_dropout=0.25))
    vectors, histories = torch.randn(5, 8), torch.randint(5, (200, 20))
    assert torch.equal(towers._gather_with_item_dropout(vectors, histories), vectors[histories])
    towers.train()
    gathered = towers._gather_with_item_dropout(vectors, histories)
    is_dropped = (gathered == 0).all(-1)
    assert is_dropped.float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(gathered[~is_dropped], vectors[histories][~is_dropped])


def test_item_dropout_applies_to_positions_of_windows():
    history = HistorySettings(encoder="causal", item_dropout=0.5)
    towers = make_towers(history=history, dropout=0.0, user_specs={}).train()
    windows = torch.randn(5, 8), torch.randint(5, (3, 20)), torch.tensor([0, 1, 2]), torch.tensor([20, 0, 9]), {}
    first, second = towers.encode_users_at_positions(*windows), towers.encode_users_at_positions(*windows)
    assert not torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])  # position 0 reads no item


def test_gradient_is_finite_when_all_items_of_a_history_are_dropped():
    towers = make_towers(history=HistorySettings(item_dropout=0.99)).train()
    histories, lengths = make_histories()
    encode_users(towers, torch.arange(9), histories, lengths).sum().backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in towers.parameters())


def test_no_id_is_hidden_without_item_features():
    towers = make_towers(item_specs={}, id_dropout=0.9).train()
    assert torch.equal(towers._apply_id_dropout(torch.arange(9)), torch.arange(9))


def test_dropout_applies_in_training_only():
    towers = make_towers(dropout=0.5, hidden=(8,))
    rows = torch.arange(9)
    features = take(ITEM_FEATURES, rows)
    with torch.no_grad():
        assert torch.equal(towers.encode_items(rows, features), towers.encode_items(rows, features))
        towers.train()
        assert not torch.equal(towers.encode_items(rows, features), towers.encode_items(rows, features))


def test_size_of_the_item_tower_does_not_depend_on_the_catalogue():
    specs = {"x": FeatureSpec("categorical", 5)}
    sizes = {}
    for n_items in (9, 99):
        towers = TwoTower(synthetic.make_model_settings(), specs, {}, n_items)
        sizes[n_items] = sum(parameter.numel() for parameter in towers.item_tower.parameters())
    assert sizes[9] == sizes[99]


def test_every_parameter_has_a_gradient():
    for hidden in ((), (16,)):
        towers = make_towers(hidden=hidden, history=HistorySettings(encoder="attention")).train()
        histories, lengths = make_histories()
        loss = (encode_users(towers, torch.arange(9), histories, lengths) * torch.randn(9, 8)).sum()
        loss.backward()
        without_gradient = [
            name
            for name, parameter in towers.named_parameters()
            if parameter.grad is None or not parameter.grad.abs().sum()
        ]
        assert without_gradient == []
