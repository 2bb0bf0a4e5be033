import pytest
import torch
from support import synthetic

from vecall.data.feature_encoder import FeatureSpec
from vecall.towers.settings import HistorySettings
from vecall.towers.two_tower import TwoTower
from vecall.training.data import take, to_tensors

PROBLEM = synthetic.make_training_data(item_features=True, user_features=True)
ITEMS, USERS = (to_tensors(one, torch.device("cpu")) for one in (PROBLEM.item_features, PROBLEM.user_features))


def towers(*, items=PROBLEM.item_specs, users=PROBLEM.user_specs, seed=0, **model):
    torch.manual_seed(seed)
    made = TwoTower(synthetic.make_model_settings(**model), items, users, synthetic.ITEMS).eval()
    with torch.no_grad():  # as if trained: layers that begin at zero are moved
        for weights in made.user_tower.parameters():
            weights += 0.1 * torch.randn_like(weights)
    return made


def users_of(made, rows, histories, lengths):
    items = made.encode_items(torch.arange(synthetic.ITEMS), ITEMS if made.item.combine.inputs else {})
    return made.encode_users(items, histories, lengths, take(USERS, rows) if made.user.combine.inputs else {})


def some_histories():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(synthetic.ITEMS, (9, 4), generator=generator), torch.tensor([0, 1, 2, 3, 4, 4, 0, 2, 3])


def one_kind(shapes):
    """The features of each kind alone."""
    return [{name: shape} for name, shape in shapes.items()]


@pytest.mark.parametrize("encoder", ["none", "mean", "attention", "causal"])
@pytest.mark.parametrize("hidden", [(), (16,)])
@pytest.mark.parametrize("norm", ["layer", "batch", "none"])
def test_vectors_have_length_1_and_do_not_depend_on_the_batch(encoder, hidden, norm):
    made = towers(encoder=encoder, hidden=hidden, norm=norm, dropout=0.5, id_dropout=0.5)
    rows = torch.arange(9)
    histories, lengths = some_histories()
    with torch.no_grad():
        items = made.encode_items(rows, take(ITEMS, rows))
        users = users_of(made, rows, histories, lengths)
        for vectors in (items, users):
            torch.testing.assert_close(vectors.norm(dim=1), torch.ones(9))
        alone = [made.encode_items(rows[i : i + 1], take(ITEMS, rows[i : i + 1])) for i in rows]
        torch.testing.assert_close(torch.cat(alone), items)
        alone = [users_of(made, rows[i : i + 1], histories[i : i + 1], lengths[i : i + 1]) for i in rows]
        torch.testing.assert_close(torch.cat(alone), users)


@pytest.mark.parametrize("hidden", [(), (16,)])
@pytest.mark.parametrize("shapes", one_kind(PROBLEM.item_specs), ids=list)
def test_a_feature_of_any_kind_alone_tells_items_and_users_apart(hidden, shapes):
    made = towers(items=shapes, users=shapes, hidden=hidden, item_id=False, encoder="none")
    rows = torch.arange(20)
    with torch.no_grad():
        for vectors in (
            made.encode_items(rows, take(ITEMS, rows)),
            made.encode_users(torch.empty(0), torch.empty(20, 0), torch.zeros(20), take(USERS, rows)),
        ):
            assert torch.isfinite(vectors).all()
            lengths = vectors.norm(dim=1)
            nothing = lengths == 0  # an empty list of tags and nothing else has no direction
            torch.testing.assert_close(lengths[~nothing], torch.ones(int((~nothing).sum())))
            assert nothing.sum() < 10
            assert len(vectors.round(decimals=4).unique(dim=0)) > 1


def test_padding_of_histories_never_matters():
    made = towers()
    histories, lengths = some_histories()
    other = torch.where(torch.arange(4) < lengths[:, None], histories, synthetic.ITEMS - 1)
    with torch.no_grad():
        rows = torch.arange(9)
        torch.testing.assert_close(users_of(made, rows, histories, lengths), users_of(made, rows, other, lengths))


def test_an_unknown_item_is_its_features_alone():
    made = towers()
    features = take(ITEMS, torch.tensor([3]))
    with torch.no_grad():
        unknown = made.encode_items(torch.tensor([synthetic.ITEMS]), features)
        alone = torch.nn.functional.normalize(made.item_tower.combiner.feature_embedding(features), dim=-1)
        torch.testing.assert_close(unknown, alone)  # untrained, its id adds nothing
        assert not torch.allclose(unknown, made.encode_items(torch.tensor([3]), features))


def test_a_hidden_id_has_a_direction_to_begin_from():
    """The gradient of a normalised vector of zeros is without bounds; Adam would remember it for thousands of steps."""
    made = towers(id_dropout=0.25).train()
    made.item_id_embedding.weight.grad = None
    nothing = {name: torch.zeros_like(values) for name, values in take(ITEMS, torch.tensor([3])).items()}
    vector = made.encode_items(torch.tensor([synthetic.ITEMS]), nothing)
    vector[0, 0].backward()
    assert 0 < made.item_id_embedding.weight.grad.abs().max() < 100


def test_ids_are_hidden_in_training_alone():
    made = towers(id_dropout=0.25, dropout=0.0)
    rows = torch.full((4000,), 5)
    own = made.item_id_embedding.weight[5]
    torch.manual_seed(0)
    assert torch.equal(made.item_id_embedding(made._apply_id_dropout(rows)), own.expand(4000, -1))
    made.train()
    hidden = (made._apply_id_dropout(rows) == synthetic.ITEMS).float().mean().item()
    assert hidden == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("encoder", ["mean", "attention", "causal"])
def test_a_share_of_the_history_is_not_seen_in_training_alone(encoder):
    made = towers(history=HistorySettings(encoder=encoder, item_dropout=0.25))
    vectors, histories = torch.randn(5, 8), torch.randint(5, (200, 20))
    assert torch.equal(made._gather_history_vectors(vectors, histories), vectors[histories])
    made.train()
    read = made._gather_history_vectors(vectors, histories)
    hidden = (read == 0).all(-1)
    assert hidden.float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(read[~hidden], vectors[histories][~hidden])


def test_places_of_a_window_are_read_with_gaps_too():
    made = towers(history=HistorySettings(encoder="causal", item_dropout=0.5), dropout=0.0, users={}).train()
    windows = torch.randn(5, 8), torch.randint(5, (3, 20)), torch.tensor([0, 1, 2]), torch.tensor([20, 0, 9]), {}
    once, again = made.encode_positions(*windows), made.encode_positions(*windows)
    assert not torch.equal(once[0], again[0])
    assert torch.equal(once[1], again[1])  # nothing was read there


def test_a_history_of_which_nothing_is_seen_is_no_danger():
    made = towers(history=HistorySettings(item_dropout=0.99)).train()
    histories, lengths = some_histories()
    users_of(made, torch.arange(9), histories, lengths).sum().backward()
    assert all(weights.grad is None or weights.grad.isfinite().all() for weights in made.parameters())


def test_without_features_no_id_is_hidden():
    made = towers(items={}, id_dropout=0.9).train()
    assert torch.equal(made._apply_id_dropout(torch.arange(9)), torch.arange(9))


def test_dropout_is_for_training_alone():
    made = towers(dropout=0.5, hidden=(8,))
    rows = torch.arange(9)
    with torch.no_grad():
        assert torch.equal(made.encode_items(rows, take(ITEMS, rows)), made.encode_items(rows, take(ITEMS, rows)))
        made.train()
        assert not torch.equal(made.encode_items(rows, take(ITEMS, rows)), made.encode_items(rows, take(ITEMS, rows)))


def test_the_item_tower_does_not_grow_with_the_catalogue():
    sizes = {
        n: sum(
            w.numel()
            for w in TwoTower(
                synthetic.make_model_settings(), {"x": FeatureSpec("one", 5)}, {}, n
            ).item_tower.parameters()
        )
        for n in (9, 99)
    }
    assert sizes[9] == sizes[99]


def test_every_weight_learns():
    for hidden in ((), (16,)):
        made = towers(hidden=hidden, history=HistorySettings(encoder="attention")).train()
        histories, lengths = some_histories()
        loss = (users_of(made, torch.arange(9), histories, lengths) * torch.randn(9, 8)).sum()
        loss.backward()
        silent = [n for n, w in made.named_parameters() if w.grad is None or not w.grad.abs().sum()]
        assert silent == []
