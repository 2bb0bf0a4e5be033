import dataclasses
import itertools

import numpy as np
import pytest
import torch
from support import synthetic

from vecall.data.ragged import RaggedArray
from vecall.data.split import HardNegatives
from vecall.errors import TrainingError
from vecall.towers.two_tower import TwoTower
from vecall.training import loss_module
from vecall.training.data import take
from vecall.training.losses import check_finite, masked_cross_entropy
from vecall.training.module import TwoTowerModule
from vecall.training.negatives import SampledCandidates, sample_candidates
from vecall.training.seeding import seed_step
from vecall.training.settings import NegativeSettings, TrainingSettings

N_UNOBSERVED = 7


def make_module(data=None, model=None, **settings):
    data = data or synthetic.make_training_data()
    torch.manual_seed(0)
    towers = TwoTower(model or synthetic.make_model_settings(), data.item_specs, data.user_specs, data.n_items)
    module = TwoTowerModule(towers, data, TrainingSettings(**{"batch": 16} | settings))
    module.on_fit_start()
    return module


def get_first_batch(module):
    return next(iter(module.train_dataloader()))


def get_history(batch, row):
    """Item rows that are read at a row of a batch, without padding."""
    return batch.histories[row, : batch.lengths[row]].tolist()


def mask_histories(scores, batch):
    """Set the scores of each row's history to -inf, except that of its target."""
    for row, target in enumerate(batch.target_items):
        scores[row, [item for item in get_history(batch, row) if item != target]] = -torch.inf
    return scores


@pytest.mark.parametrize("mask_history", [True, False])
def test_softmax_step_is_cross_entropy_over_the_catalogue(mask_history):
    module = make_module(loss="softmax", temperature=0.5, mask_history=mask_history)
    batch = get_first_batch(module)
    loss = module.training_step(batch, 0)
    items = module.towers.encode_items(torch.arange(synthetic.ITEMS), {})
    users = module.towers.encode_users(items, batch.histories, batch.lengths, {})
    scores = users @ items.T / 0.5
    if mask_history:
        mask_histories(scores, batch)
    torch.testing.assert_close(loss, masked_cross_entropy(scores, batch.target_items))


@pytest.mark.parametrize("mask_history", [True, False])
def test_sampled_softmax_step_is_softmax_over_the_sampled_candidates(mask_history):
    negatives = NegativeSettings(uniform=12, in_batch=6)
    module = make_module(loss="sampled_softmax", negatives=negatives, mask_history=mask_history, temperature=0.5)
    batch = get_first_batch(module)
    loss = module.training_step(batch, 3)
    seed_step(0, 0, 3)
    sampled = sample_candidates(negatives, *batch.step_targets, module.candidate_items, module.frequencies)
    items = module.towers.encode_items(torch.arange(synthetic.ITEMS), {})
    users = module.towers.encode_users(items, batch.histories, batch.lengths, {})
    expected = []
    for row, user in enumerate(users):
        target = int(batch.target_items[row])
        ignored = {target, *(get_history(batch, row) if mask_history else [])}
        logits = [user @ items[target] / 0.5]
        owners = sampled.owners.tolist()
        for item, log_expected_count, owner in zip(
            sampled.rows.tolist(), sampled.log_expected_counts, owners, strict=True
        ):
            if item not in ignored and owner != batch.target_users[row]:
                logits.append(user @ items[item] / 0.5 - log_expected_count)
        expected.append(torch.stack(logits).logsumexp(0) - logits[0])
    torch.testing.assert_close(loss, torch.stack(expected).mean())


@pytest.mark.parametrize("encoder", ["mean", "causal"])
def test_hard_negatives_are_in_the_softmax_once_and_uncorrected(encoder):
    """Sampled candidates are corrected, and none is a positive of the same user; hard ones are nothing that is read."""
    sequences = synthetic.make_user_sequences()
    # Of each user: an item of the history, the item held out, and an item that the user never takes.
    disliked = [[sequence[1], sequence[-1], (sequence[0] + 1) % synthetic.ITEMS] for sequence in sequences]
    pairs = HardNegatives(
        np.repeat(np.arange(synthetic.USERS), 3),
        np.array(disliked).ravel(),
        np.zeros(3 * synthetic.USERS, dtype=np.int64),
    )
    negatives = NegativeSettings(uniform=30, in_batch=20, hard=3)
    module = make_module(
        synthetic.make_training_data(negatives=pairs),
        synthetic.make_model_settings(encoder),
        loss="sampled_softmax",
        negatives=negatives,
        temperature=0.5,
    )
    module.eval()
    batch = get_first_batch(module)
    loss = module.training_step(batch, 3)
    seed_step(0, 0, 3)
    sampled = sample_candidates(negatives, *batch.step_targets, module.candidate_items, module.frequencies)
    items = module.towers.encode_items(torch.arange(synthetic.ITEMS), {})
    users = batch.encode_users(module.towers, items, {})
    expected, n_sampled_hard, n_own = [], 0, 0
    for row, (user, user_row) in enumerate(zip(users, batch.target_users.tolist(), strict=True)):
        target, history = int(batch.target_items[row]), set(get_history(batch, row))
        hard = set(disliked[user_row]) - history - {target}
        logits = [user @ items[item] / 0.5 for item in [target, *hard]]
        owners = sampled.owners.tolist()
        for item, log_expected_count, owner in zip(
            sampled.rows.tolist(), sampled.log_expected_counts, owners, strict=True
        ):
            n_sampled_hard += item in hard
            if item not in history | hard | {target}:
                n_own += owner == user_row
                if owner != user_row:
                    logits.append(user @ items[item] / 0.5 - log_expected_count)
        expected.append(torch.stack(logits).logsumexp(0) - logits[0])
    assert n_sampled_hard
    assert n_own or encoder == "mean"  # of one user several windows' positions are in a step
    torch.testing.assert_close(loss, torch.stack(expected).mean() * module._compute_batch_weight(batch))


@pytest.mark.parametrize("loss", ["softmax", "sampled_softmax", "bce"])
def test_ensemble_members_learn_independently(loss):
    """The loss is the mean of the members' losses, and the gradient of a member's loss is 0 for the other member."""
    module = make_module(
        model=synthetic.make_model_settings("mean", ensemble_size=2),
        loss=loss,
        negatives=NegativeSettings(uniform=20),
        temperature=0.5,
    )
    batch, member_dim = get_first_batch(module), synthetic.make_model_settings().dim // 2
    losses = []
    with pytest.MonkeyPatch.context() as patch:
        zip_members = module._zip_members
        for member in (0, 1):
            patch.setattr(module, "_zip_members", lambda *vectors, member=member: [list(zip_members(*vectors))[member]])
            module.zero_grad()
            losses.append(module.training_step(batch, 0))
            losses[-1].backward()
            gradients = module.towers.item_id_embedding.weight.grad.abs().sum(0)
            assert (gradients > 0).tolist() == [member == 0] * member_dim + [member == 1] * member_dim
    torch.testing.assert_close(module.training_step(batch, 0), torch.stack(losses).mean())
    assert losses[0] != losses[1]


def test_items_are_observed_by_positives_dislikes_or_an_older_model():
    disliked = HardNegatives(np.array([0, 1]), np.array([synthetic.ITEMS - 1] * 2), np.array([2, 2]))
    data = synthetic.make_training_data(item_features=True, n_unobserved_items=N_UNOBSERVED, negatives=disliked)
    positives = np.arange(synthetic.ITEMS - N_UNOBSERVED)
    assert data.observed_items.tolist() == [*positives, synthetic.ITEMS - 1]
    warm_started = dataclasses.replace(data, warm_started_items=np.array([3, synthetic.ITEMS - 3]))
    assert warm_started.observed_items.tolist() == [*positives, synthetic.ITEMS - 3, synthetic.ITEMS - 1]


@pytest.mark.parametrize(("item_features", "id_dropout"), [(False, 0.3), (True, 0.0)])
def test_all_items_are_candidates_without_id_dropout_or_features(item_features, id_dropout):
    module = make_module(
        synthetic.make_training_data(item_features=item_features, n_unobserved_items=N_UNOBSERVED),
        synthetic.make_model_settings(id_dropout=id_dropout),
    )
    assert module.candidate_items.tolist() == module.candidate_index.tolist() == list(range(synthetic.ITEMS))


@pytest.mark.parametrize(
    ("loss", "encoder"),
    [
        ("softmax", "mean"),
        ("softmax", "causal"),
        ("sampled_softmax", "mean"),
        ("sampled_softmax", "causal"),
        ("bce", "mean"),
    ],
)
def test_unobserved_items_are_no_negatives(loss, encoder):
    module = make_module(
        synthetic.make_training_data(item_features=True, n_unobserved_items=N_UNOBSERVED),
        synthetic.make_model_settings(encoder, id_dropout=0.1),
        loss=loss,
        negatives=NegativeSettings(uniform=200),
    )
    module.towers.eval()  # no id is hidden
    module.training_step(get_first_batch(module), 0).backward()
    gradients = module.towers.item_id_embedding.weight.grad.abs().sum(1)
    assert (gradients[: synthetic.ITEMS - N_UNOBSERVED] > 0).all()
    assert (gradients[synthetic.ITEMS - N_UNOBSERVED :] == 0).all()


def test_softmax_is_over_the_observed_items():
    data = synthetic.make_training_data(item_features=True, n_unobserved_items=N_UNOBSERVED)
    # Now the first items are unobserved, so that the index of a candidate differs from its row.
    shifted = RaggedArray(data.histories.offsets, (data.histories.values + N_UNOBSERVED) % synthetic.ITEMS)
    module = make_module(
        dataclasses.replace(data, histories=shifted),
        synthetic.make_model_settings(id_dropout=0.3),
        loss="softmax",
        temperature=0.5,
    )
    module.towers.eval()  # no id is hidden
    batch = get_first_batch(module)
    loss = module.training_step(batch, 0)
    items = module.towers.encode_items(torch.arange(synthetic.ITEMS), module._device_features["items"])
    scores = module.towers.encode_users(items, batch.histories, batch.lengths, {}) @ items.T / 0.5
    scores[:, :N_UNOBSERVED] = -torch.inf
    torch.testing.assert_close(loss, masked_cross_entropy(mask_histories(scores, batch), batch.target_items))


@pytest.mark.parametrize("loss", ["softmax", "sampled_softmax"])
@pytest.mark.parametrize("user_features", [False, True])
def test_causal_step_is_the_mean_loss_of_its_positions(loss, user_features):
    """Every item is a candidate once, so that both losses are the full softmax."""
    module = make_module(
        synthetic.make_training_data(user_features=user_features),
        synthetic.make_model_settings(history={"encoder": "causal", "length": 4}),
        loss=loss,
        temperature=0.5,
    )
    module.eval()  # no dropout
    batch = get_first_batch(module)
    assert len(batch.target_items) > len(batch.users)
    with pytest.MonkeyPatch.context() as patch:
        all_items = SampledCandidates(
            torch.arange(synthetic.ITEMS), torch.zeros(synthetic.ITEMS), torch.full((synthetic.ITEMS,), -1)
        )
        patch.setattr(loss_module, "sample_candidates", lambda *_: all_items)
        step_loss = module.training_step(batch, 0)
    items = module.towers.encode_items(torch.arange(synthetic.ITEMS), {})
    features = take(module._device_features["users"], batch.users[batch.window_index])
    users = module.towers.encode_users(items, batch.histories, batch.lengths, features)
    expected = masked_cross_entropy(mask_histories(users @ items.T / 0.5, batch), batch.target_items)
    torch.testing.assert_close(step_loss, expected * len(batch.target_items) / 16)


def make_weighted_data(weights, **settings):
    """Training data in which the positives of item i weigh `weights[i % len(weights)]`."""
    data = synthetic.make_training_data(**settings)
    table = np.array(weights, dtype=np.float32)
    return dataclasses.replace(data, history_weights=table[data.histories.values % len(table)])


@pytest.mark.parametrize(
    ("loss", "encoder"),
    [("bce", "mean"), *itertools.product(["softmax", "sampled_softmax"], ["mean", "causal"])],
)
def test_step_is_the_sum_of_the_weighted_losses_of_its_targets(loss, encoder):
    """Each target's own loss is that of a step in which the others weigh 0."""
    module = make_module(
        make_weighted_data([0.5, 2, 1, 0, 0.25]),
        synthetic.make_model_settings(encoder),
        loss=loss,
        batch=8,
        negatives=NegativeSettings(uniform=10),
    )
    module.eval()
    batch = get_first_batch(module)
    assert batch.weights.min() > 0
    assert (batch.target_items % 5 != 3).all()

    def step(weights):
        return module.training_step(dataclasses.replace(batch, weights=weights), 0)

    losses = torch.stack([step(row) for row in torch.eye(len(batch.weights))])
    torch.testing.assert_close(step(batch.weights), (batch.weights * losses).sum())
    torch.testing.assert_close(step(None), losses.sum())


@pytest.mark.parametrize("loss", ["softmax", "bce"])
def test_scale_of_the_weights_does_not_matter(loss):
    disliked = HardNegatives(np.arange(9), np.arange(9), np.full(9, 2))
    small, large = (
        make_module(make_weighted_data(np.array([0.1, 0.3, 0]) * scale, negatives=disliked), loss=loss)
        for scale in (1, 100)
    )
    losses = [module.training_step(get_first_batch(module), 0) for module in (small, large)]
    torch.testing.assert_close(*losses)
    sampled = small.data.histories.values % 3
    assert small.data.weight_scale == pytest.approx(1 / np.array([0.1, 0.3])[sampled[sampled < 2]].mean())


def test_positives_of_weight_0_are_candidates_and_no_targets():
    module = make_module(make_weighted_data([1, 0]), loss="sampled_softmax")
    assert (module.frequencies[1::2] == 0).all()
    assert module.frequencies.sum() == pytest.approx(1)
    assert set(range(synthetic.ITEMS)) >= set(module.candidate_items.tolist()) >= {1, 3}
    with pytest.raises(TrainingError, match=r"weight above 0: give kinds .* schema.interactions.weights"):
        make_module(make_weighted_data([0]))


def test_positions_of_short_and_long_windows_have_the_same_weight():
    """Windows of similar length are batched together; the mean over steps must be the mean over all positions."""
    sequences = [np.arange(2 + user % 5) for user in range(40)]
    module = make_module(
        dataclasses.replace(synthetic.make_training_data(), histories=RaggedArray.from_lists(sequences)),
        synthetic.make_model_settings(history={"encoder": "causal", "length": 6}),
        loss="softmax",
        batch=5,
    )
    module.eval()
    batches = list(module.train_dataloader())
    assert len({len(batch.target_items) for batch in batches}) > 1
    steps = torch.stack([module.training_step(batch, 1) for batch in batches])
    n_positions = sum(len(batch.target_items) for batch in batches)
    means = [step / module._compute_batch_weight(batch) for step, batch in zip(steps, batches, strict=True)]
    total = sum(len(batch.target_items) * mean for batch, mean in zip(batches, means, strict=True))
    torch.testing.assert_close(steps.mean(), total / n_positions)


def test_in_batch_frequencies_are_those_of_the_samples():
    """Without user features, the first item of a history is no sample: it has no history before it."""
    histories = RaggedArray.from_lists([[0, 1, 2], [0, 2]])
    data = dataclasses.replace(synthetic.make_training_data(), histories=histories)
    module = make_module(data, loss="sampled_softmax")
    np.testing.assert_allclose(module.frequencies[:3], [0, 1 / 3, 2 / 3], rtol=1e-6)
    data = dataclasses.replace(synthetic.make_training_data(user_features=True), histories=histories)
    module = make_module(data, loss="sampled_softmax")
    np.testing.assert_allclose(module.frequencies[:3], [0.4, 0.2, 0.4], rtol=1e-6)


def test_bce_samples_negatives_for_positives_only():
    pairs = HardNegatives(np.arange(8), np.arange(8), np.ones(8, dtype=np.int64))
    module = make_module(
        synthetic.make_training_data(negatives=pairs), loss="bce", negatives=NegativeSettings(uniform=3), batch=1000
    )
    recorded_labels = []

    def record_labels(scores, labels, _):
        recorded_labels.append(labels)
        return scores.sum()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_module, "binary_cross_entropy", record_labels)
        batch = get_first_batch(module)
        module.training_step(batch, 0)
    n_positives = int(batch.labels.sum())
    assert (n_positives, len(batch.labels)) == (240, 248)
    (labels,) = recorded_labels
    assert len(labels) == 240 * 4 + 8
    assert labels.sum() == n_positives


def test_data_without_positives_or_negatives_is_refused():
    histories = RaggedArray.from_lists([[0], [1]])
    with pytest.raises(TrainingError, match="at most one training positive"):
        make_module(dataclasses.replace(synthetic.make_training_data(), histories=histories))
    with pytest.raises(TrainingError, match="no negatives"):
        make_module(loss="bce", negatives=NegativeSettings(uniform=0))


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_loss_that_is_not_finite_is_an_error(loss):
    with pytest.raises(TrainingError, match=r"epoch 4; lower training\.lr"):
        check_finite(loss, 3)
