"""Losses of sets: the softmax over all items against dense autograd, and the sampled one against the formula."""

import dataclasses

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
from vecall.training.module import TwoTowerModule
from vecall.training.negatives import SampledCandidates, sample_candidates
from vecall.training.seeding import seed_step
from vecall.training.settings import NegativeSettings, TrainingSettings

TEMPERATURE = 0.5


def make_module(data=None, model=None, **settings):
    data = data or synthetic.make_training_data()
    torch.manual_seed(0)
    towers = TwoTower(
        model or synthetic.make_model_settings("set"), data.item_specs, data.user_specs, data.n_items
    ).eval()
    with torch.no_grad():  # as after training: what begins at 0 has an effect too
        for parameter in towers.user_tower.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    settings = {"batch": 20, "temperature": TEMPERATURE} | settings
    module = TwoTowerModule(towers, data, TrainingSettings(**settings))
    module.on_fit_start()
    return module


def make_weighted_data(**settings):
    """Training data in which the positives of an item weigh 0, 0.5, 1 or 2."""
    data = synthetic.make_training_data(**settings)
    table = np.array([0.5, 0, 2, 1, 1], dtype=np.float32)
    return dataclasses.replace(data, history_weights=table[data.histories.values % len(table)])


def split_by_user(items, counts):
    return [part.tolist() for part in torch.split(items, counts.tolist())]


def iterate_users(module, batch):
    """Yield user row, items read, items hidden, and the scores of all items in float64 of each user of a batch."""
    rows = torch.arange(module.data.n_items)
    items = module.towers.encode_items(rows, take(module._device_features["items"], rows))
    features = take(module._device_features["users"], batch.users)
    inputs, targets = (
        split_by_user(batch.input_items, batch.input_counts),
        split_by_user(batch.target_items, batch.target_counts),
    )
    for row, (user, read, hidden) in enumerate(zip(batch.users.tolist(), inputs, targets, strict=True)):
        own_features = {name: values[row : row + 1] for name, values in features.items()}
        vector = module.towers.encode_users(items, torch.tensor([read]), torch.tensor([len(read)]), own_features)[0]
        yield user, read, hidden, (items @ vector).double() / TEMPERATURE


def compute_full_loss(module, batch, *, mask_history, smoothing=0.0):
    """Dense oracle of the step: the sum over all targets of their weighted losses / B."""
    weights, losses = split_by_user(batch.weights, batch.target_counts), []
    for own_weights, (_, read, hidden, scores) in zip(weights, iterate_users(module, batch), strict=True):
        kept = [item for item in range(len(scores)) if not (mask_history and item in read)]
        log_probs = scores[kept] - scores[kept].logsumexp(0)
        for weight, item in zip(own_weights, hidden, strict=True):
            log_prob = log_probs[kept.index(item)]
            losses.append(-weight * ((1 - smoothing) * log_prob + smoothing * log_probs.mean()))
    return torch.stack(losses).sum() * module.data.weight_scale / module.settings.batch


@pytest.mark.parametrize(
    ("data", "mask_history", "smoothing"),
    [
        (synthetic.make_training_data(), True, 0.0),
        (synthetic.make_training_data(item_features=True, user_features=True), False, 0.0),
        (make_weighted_data(user_features=True), True, 0.2),
    ],
    ids=["plain", "features, history not masked", "weights, smoothing"],
)
def test_softmax_step_of_sets_equals_dense_autograd(data, mask_history, smoothing):
    module = make_module(data, loss="softmax", mask_history=mask_history, label_smoothing=smoothing)
    batches = list(module.train_dataloader())
    assert len(batches) == 3
    parameters = list(module.towers.parameters())
    loss, expected = (
        module.training_step(batches[1], 1),
        compute_full_loss(module, batches[1], mask_history=mask_history, smoothing=smoothing),
    )
    torch.testing.assert_close(loss, expected.float())
    gradients = [torch.autograd.grad(value, parameters, allow_unused=True) for value in (loss, expected)]
    for actual, own in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, own, rtol=1e-3, atol=1e-5)


def test_members_of_an_ensemble_have_a_softmax_each():
    module = make_module(model=synthetic.make_model_settings("set", ensemble_size=2), loss="softmax")
    batch = next(iter(module.train_dataloader()))
    loss = module.training_step(batch, 0)
    items, losses = module.towers.encode_items(torch.arange(synthetic.ITEMS), {}), []
    users = module.towers.encode_users_by_sets(items, batch.input_items, batch.input_counts, {})
    for part in (slice(0, 4), slice(4, 8)):
        scores = 2 * users[:, part] @ items[:, part].T / TEMPERATURE
        scores[batch.input_owners, batch.input_items] = -torch.inf
        log_probs = scores.log_softmax(1)[batch.target_owners, batch.target_items]
        losses.append(-(batch.weights * log_probs).sum() / module.settings.batch)
    torch.testing.assert_close(loss, torch.stack(losses).mean())


@pytest.mark.parametrize("mask_history", [True, False])
@pytest.mark.parametrize("data", [synthetic.make_training_data(), make_weighted_data()], ids=["plain", "weights"])
def test_sampled_step_equals_the_formula_with_hard_negatives_once(data, mask_history):
    sequences = synthetic.make_user_sequences()
    # Of each user: two items of the history, one hidden or read, and two items that the user never takes.
    disliked = [
        [*sequence[:2], (sequence[0] + 1) % synthetic.ITEMS, (sequence[0] + 2) % synthetic.ITEMS]
        for sequence in sequences
    ]
    pairs = HardNegatives(
        np.repeat(np.arange(synthetic.USERS), 4), np.array(disliked).ravel(), np.zeros(4 * synthetic.USERS, np.int64)
    )
    negatives = NegativeSettings(uniform=30, in_batch=10, hard=4)
    module = make_module(
        dataclasses.replace(data, hard_negatives=pairs),
        loss="sampled_softmax",
        negatives=negatives,
        mask_history=mask_history,
    )
    batch = next(iter(module.train_dataloader()))
    loss = module.training_step(batch, 3)
    seed_step(0, 0, 3)
    sampled = sample_candidates(negatives, *batch.step_targets, module.candidate_items, module.frequencies)
    losses, n_sampled_hard = [], 0
    weights = split_by_user(batch.weights, batch.target_counts)
    for own_weights, (user, read, hidden, scores) in zip(weights, iterate_users(module, batch), strict=True):
        excluded = set(hidden) | (set(read) if mask_history else set())
        hard = set(disliked[user]) - excluded
        logits = [scores[item] for item in [*hidden, *hard]]
        for item, log_expected_count in zip(sampled.rows.tolist(), sampled.log_expected_counts, strict=True):
            n_sampled_hard += item in hard
            if item not in excluded | hard:
                logits.append(scores[item] - log_expected_count)
        log_sum_exp = torch.stack(logits).logsumexp(0)
        losses += [weight * (log_sum_exp - scores[item]) for weight, item in zip(own_weights, hidden, strict=True)]
    assert n_sampled_hard
    expected = torch.stack(losses).sum() * module.data.weight_scale / module.settings.batch
    torch.testing.assert_close(loss, expected.float())


@pytest.mark.parametrize("mask_history", [True, False])
def test_sampled_step_over_all_items_is_the_full_one_with_the_same_gradients(mask_history):
    data, results = make_weighted_data(), []
    all_items = SampledCandidates(
        torch.arange(synthetic.ITEMS), torch.zeros(synthetic.ITEMS), torch.full((synthetic.ITEMS,), -1)
    )
    for loss in ("softmax", "sampled_softmax"):
        module = make_module(data, loss=loss, mask_history=mask_history, label_smoothing=0.1)
        batch = next(iter(module.train_dataloader()))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loss_module, "sample_candidates", lambda *_: all_items)
            value = module.training_step(batch, 0)
        results.append((value, *torch.autograd.grad(value, list(module.towers.parameters()))))
    for full, sampled in zip(*results, strict=True):
        torch.testing.assert_close(sampled, full, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "negatives", [NegativeSettings(uniform=300), NegativeSettings(uniform=20, in_batch=90)], ids=["uniform", "in batch"]
)
@pytest.mark.parametrize("data", [synthetic.make_training_data(), make_weighted_data()], ids=["plain", "weights"])
def test_mean_of_sampled_steps_over_epochs_is_the_full_one(data, negatives):
    means = {}
    for loss in ("softmax", "sampled_softmax"):
        module, losses = make_module(data, loss=loss, negatives=negatives, batch=60), []
        with torch.no_grad():
            for epoch in range(60):
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(TwoTowerModule, "current_epoch", epoch)
                    losses += [module.training_step(batch, 0).item() for batch in module.train_dataloader()]
        means[loss] = np.mean(losses)
    assert means["sampled_softmax"] == pytest.approx(means["softmax"], rel=0.01)


def test_item_that_is_always_first_has_a_finite_score_in_the_batch():
    """Sequences have no target at the first position; sets have."""
    histories = RaggedArray.from_lists([[0, 1 + user % 5, 6 + user % 3] for user in range(30)])
    data = dataclasses.replace(synthetic.make_training_data(), histories=histories)
    negatives = NegativeSettings(uniform=0, in_batch=20)
    module = make_module(data, loss="sampled_softmax", negatives=negatives)
    assert module.frequencies[0] == pytest.approx(1 / 3)
    assert all(torch.isfinite(module.training_step(batch, 0)) for batch in module.train_dataloader())


def test_too_little_data_for_sets_is_refused_with_what_to_do():
    data = synthetic.make_training_data()
    singles = RaggedArray.from_lists([[0], [1, 1], []])
    with pytest.raises(TrainingError, match=r"at most one different item .* model\.preset = 'pooled'"):
        make_module(dataclasses.replace(data, histories=singles))
    weightless = dataclasses.replace(data, history_weights=np.zeros(len(data.histories.values), dtype=np.float32))
    with pytest.raises(TrainingError, match=r"weight above 0: give kinds .* schema.interactions.weights"):
        make_module(weightless)


@pytest.mark.parametrize("loss", ["softmax", "sampled_softmax"])
def test_users_of_one_item_are_learned_from_by_their_features(loss):
    data = dataclasses.replace(
        synthetic.make_training_data(user_features=True), histories=RaggedArray.from_lists([[5], [7], []])
    )
    module = make_module(data, loss=loss)
    (batch,) = module.train_dataloader()
    assert (batch.input_counts.tolist(), sorted(batch.target_items.tolist())) == ([0, 0], [5, 7])
    loss = module.training_step(batch, 0)
    loss.backward()
    assert torch.isfinite(loss)
    assert any(parameter.grad.any() for parameter in module.towers.user_tower.combiner.parameters())
