import dataclasses

import numpy as np
import pytest
import torch
from support import synthetic

from vecall.data.ragged import RaggedArray
from vecall.data.split import LabeledNegatives
from vecall.errors import TrainingError
from vecall.towers.two_tower import TwoTower
from vecall.training import module as recipe_module
from vecall.training.batches import SampleBatch
from vecall.training.data import take
from vecall.training.losses import masked_cross_entropy
from vecall.training.module import (
    TwoTowerModule,
    build_cosine_schedule,
    check_finite,
    pad_histories_with_targets,
    resolve_loss,
)
from vecall.training.negatives import SampledCandidates, sample_candidates
from vecall.training.seeding import seed_step
from vecall.training.settings import NegativeSettings, TrainingSettings


def recipe(problem=None, model=None, **settings):
    problem = problem or synthetic.make_training_data()
    torch.manual_seed(0)
    towers = TwoTower(model or synthetic.make_model_settings(), problem.item_specs, problem.user_specs, problem.n_items)
    made = TwoTowerModule(towers, problem, TrainingSettings(**{"batch": 16} | settings))
    made.on_fit_start()
    return made


def first_batch(made):
    return next(iter(made.train_dataloader()))


def test_auto_is_the_full_softmax_while_its_logits_fit(monkeypatch):
    settings = TrainingSettings(batch=10)
    monkeypatch.setattr(recipe_module, "_MOST_LOGITS", 1000)
    assert resolve_loss(settings, 100) == "softmax"
    assert resolve_loss(settings, 101) == "sampled_softmax"
    assert resolve_loss(TrainingSettings(batch=10, loss="bce"), 101) == "bce"
    with pytest.raises(TrainingError, match="negatives"):
        resolve_loss(TrainingSettings(batch=10, negatives=NegativeSettings(uniform=0)), 101)


def test_the_padding_of_a_history_is_the_positive():
    histories = torch.tensor([[1, 2, 0], [3, 3, 4], [0, 0, 0]])
    nothing = torch.zeros(3)
    batch = SampleBatch(
        users=nothing, target_items=nothing, labels=nothing, histories=histories, lengths=torch.tensor([2, 3, 0])
    )
    assert pad_histories_with_targets(batch, torch.tensor([5, 4, 2])).tolist() == [[1, 2, 5], [3, 3, 4], [2, 2, 2]]


@pytest.mark.parametrize("history_is_negative", [False, True])
def test_the_full_softmax_step_is_cross_entropy_over_the_catalogue(history_is_negative):
    made = recipe(loss="softmax", temperature=0.5, history_is_negative=history_is_negative)
    batch = first_batch(made)
    loss = made.training_step(batch, 0)
    items = made.towers.encode_items(torch.arange(synthetic.ITEMS), {})
    users = made.towers.encode_users(items, batch.histories, batch.lengths, {})
    scores = users @ items.T / 0.5
    for row, length in enumerate(batch.lengths if not history_is_negative else []):
        known = [item for item in batch.histories[row, :length].tolist() if item != batch.items[row]]
        scores[row, known] = -torch.inf
    torch.testing.assert_close(loss, masked_cross_entropy(scores, batch.items))


@pytest.mark.parametrize("history_is_negative", [False, True])
def test_the_sampled_step_is_a_softmax_over_the_list_that_was_drawn(history_is_negative):
    negatives = NegativeSettings(uniform=12, in_batch=6)
    made = recipe(loss="sampled_softmax", negatives=negatives, history_is_negative=history_is_negative, temperature=0.5)
    batch = first_batch(made)
    loss = made.training_step(batch, 3)
    seed_step(0, 0, 3)
    drawn = sample_candidates(negatives, batch.items, made.candidate_items, made.frequencies)
    items = made.towers.encode_items(torch.arange(synthetic.ITEMS), {})
    users = made.towers.encode_users(items, batch.histories, batch.lengths, {})
    expected = []
    for row, user in enumerate(users):
        positive = int(batch.items[row])
        left_out = {positive} | (
            set() if history_is_negative else set(batch.histories[row][: batch.lengths[row]].tolist())
        )
        logits = [user @ items[positive] / 0.5]
        for item, log_q in zip(drawn.rows.tolist(), drawn.log_q, strict=True):
            if item not in left_out:
                logits.append(user @ items[item] / 0.5 - log_q)
        expected.append(torch.stack(logits).logsumexp(0) - logits[0])
    torch.testing.assert_close(loss, torch.stack(expected).mean())


@pytest.mark.parametrize("encoder", ["mean", "causal"])
def test_known_negatives_stand_in_the_list_once_and_as_they_are(encoder):
    """Drawn ones are corrected; of a row's known ones only those that it did not take later, or before."""
    walks = synthetic.make_user_sequences()
    items = [
        [walk[1], walk[-1], (walk[0] + 1) % synthetic.ITEMS] for walk in walks
    ]  # taken, taken at last, never taken
    pairs = LabeledNegatives(
        np.repeat(np.arange(synthetic.USERS), 3), np.array(items).ravel(), np.zeros(3 * synthetic.USERS, dtype=np.int64)
    )
    negatives = NegativeSettings(uniform=30, hard=3)
    made = recipe(
        synthetic.make_training_data(negatives=pairs),
        synthetic.make_model_settings(encoder),
        loss="sampled_softmax",
        negatives=negatives,
        temperature=0.5,
    )
    made.eval()
    batch = first_batch(made)
    loss = made.training_step(batch, 3)
    seed_step(0, 0, 3)
    drawn = sample_candidates(negatives, batch.items, made.candidate_items, made.frequencies)
    vectors = made.towers.encode_items(torch.arange(synthetic.ITEMS), {})
    users = batch.encode_users(made.towers, vectors, {})
    expected, both = [], 0
    for row, (user, taker) in enumerate(zip(users, batch.takers.tolist(), strict=True)):
        positive, before = int(batch.items[row]), set(batch.histories[row][: batch.lengths[row]].tolist())
        known = set(items[taker]) - before - {positive}
        logits = [user @ vectors[item] / 0.5 for item in [positive, *known]]
        for item, log_q in zip(drawn.rows.tolist(), drawn.log_q, strict=True):
            both += item in known
            if item not in before | known | {positive}:
                logits.append(user @ vectors[item] / 0.5 - log_q)
        expected.append(torch.stack(logits).logsumexp(0) - logits[0])
    assert both
    torch.testing.assert_close(loss, torch.stack(expected).mean() * made._compute_batch_weight(batch))


@pytest.mark.parametrize("loss", ["softmax", "sampled_softmax", "bce"])
def test_each_member_learns_by_itself(loss):
    """The loss is the mean of theirs, and what one has to learn the other does not see."""
    made = recipe(
        model=synthetic.make_model_settings("mean", members=2),
        loss=loss,
        negatives=NegativeSettings(uniform=20),
        temperature=0.5,
    )
    batch, half = first_batch(made), synthetic.make_model_settings().dim // 2
    losses = []
    with pytest.MonkeyPatch.context() as patch:
        members = made._zip_members
        for one in (0, 1):
            patch.setattr(made, "_members", lambda *both, one=one: [list(members(*both))[one]])
            made.zero_grad()
            losses.append(made.training_step(batch, 0))
            losses[-1].backward()
            of_ids = made.towers.item_id_embedding.weight.grad.abs().sum(0)
            assert (of_ids > 0).tolist() == [one == 0] * half + [one == 1] * half
    torch.testing.assert_close(made.training_step(batch, 0), torch.stack(losses).mean())
    assert losses[0] != losses[1]


UNTAKEN = 7


def test_items_are_met_by_opinions():
    disliked = LabeledNegatives(np.array([0, 1]), np.array([synthetic.ITEMS - 1] * 2), np.array([2, 2]))
    problem = synthetic.make_training_data(item_features=True, n_unobserved_items=UNTAKEN, negatives=disliked)
    taken = np.arange(synthetic.ITEMS - UNTAKEN)
    assert problem.observed_items.tolist() == [*taken, synthetic.ITEMS - 1]
    older = dataclasses.replace(problem, learned_before=np.array([3, synthetic.ITEMS - 3]))
    assert older.observed_items.tolist() == [*taken, synthetic.ITEMS - 3, synthetic.ITEMS - 1]
    # Where nothing is learned of items without ids, all are told apart.
    for features, hidden in ((False, 0.3), (True, 0.0)):
        made = recipe(
            synthetic.make_training_data(item_features=features, n_unobserved_items=UNTAKEN),
            synthetic.make_model_settings(id_dropout=hidden),
        )
        assert made.candidate_items.tolist() == made.candidate_index.tolist() == list(range(synthetic.ITEMS))


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
def test_what_no_one_took_is_no_negative(loss, encoder):
    problem = synthetic.make_training_data(item_features=True, n_unobserved_items=UNTAKEN)
    made = recipe(
        problem,
        synthetic.make_model_settings(encoder, id_dropout=0.1),
        loss=loss,
        negatives=NegativeSettings(uniform=200),
    )
    made.towers.eval()  # none is hidden
    made.training_step(first_batch(made), 0).backward()
    of_ids = made.towers.item_id_embedding.weight.grad.abs().sum(1)
    assert (of_ids[: synthetic.ITEMS - UNTAKEN] > 0).all()
    assert (of_ids[synthetic.ITEMS - UNTAKEN :] == 0).all()


def test_the_race_is_among_the_items_that_are_met():
    problem = synthetic.make_training_data(item_features=True, n_unobserved_items=UNTAKEN)
    # Rows of items and places among the met ones differ where the first item is not met.
    shifted = dataclasses.replace(
        problem, train=RaggedArray(problem.histories.offsets, (problem.histories.values + UNTAKEN) % synthetic.ITEMS)
    )
    made = recipe(shifted, synthetic.make_model_settings(id_dropout=0.3), loss="softmax", temperature=0.5)
    made.towers.eval()  # none is hidden
    batch = first_batch(made)
    loss = made.training_step(batch, 0)
    items = made.towers.encode_items(torch.arange(synthetic.ITEMS), made._device_features["items"])
    scores = made.towers.encode_users(items, batch.histories, batch.lengths, {}) @ items.T / 0.5
    scores[:, :UNTAKEN] = -torch.inf
    for row, length in enumerate(batch.lengths):
        known = [item for item in batch.histories[row, :length].tolist() if item != batch.items[row]]
        scores[row, known] = -torch.inf
    torch.testing.assert_close(loss, masked_cross_entropy(scores, batch.items))


@pytest.mark.parametrize("loss", ["softmax", "sampled_softmax"])
@pytest.mark.parametrize("user_features", [False, True])
def test_a_causal_step_is_the_mean_over_all_places_one_by_one(loss, user_features):
    """Every item is a candidate once, so that both losses are the full softmax."""
    problem = synthetic.make_training_data(user_features=user_features)
    made = recipe(
        problem, synthetic.make_model_settings(history={"encoder": "causal", "length": 4}), loss=loss, temperature=0.5
    )
    made.eval()  # no dropout
    batch = first_batch(made)
    assert len(batch.items) > len(batch.users)
    with pytest.MonkeyPatch.context() as patch:
        everything = SampledCandidates(torch.arange(synthetic.ITEMS), torch.zeros(synthetic.ITEMS))
        patch.setattr(recipe_module, "draw_candidates", lambda *_: everything)
        found = made.training_step(batch, 0)
    items = made.towers.encode_items(torch.arange(synthetic.ITEMS), {})
    features = take(made._device_features["users"], batch.users[batch.owners])
    users = made.towers.encode_users(items, batch.histories, batch.lengths, features)
    scores = users @ items.T / 0.5
    for row, length in enumerate(batch.lengths):
        scores[row, [item for item in batch.histories[row, :length].tolist() if item != batch.items[row]]] = -torch.inf
    torch.testing.assert_close(found, masked_cross_entropy(scores, batch.items) * len(batch.items) / 16)


def test_places_of_short_windows_count_as_much_as_those_of_long_ones():
    """Windows of like lengths lie in a batch together; the mean over steps is that over all places."""
    walks = [np.arange(2 + user % 5) for user in range(40)]
    problem = dataclasses.replace(synthetic.make_training_data(), train=RaggedArray.from_lists(walks))
    made = recipe(
        problem, synthetic.make_model_settings(history={"encoder": "causal", "length": 6}), loss="softmax", batch=5
    )
    made.eval()
    batches = list(made.train_dataloader())
    assert len({len(batch.target_items) for batch in batches}) > 1
    steps = torch.stack([made.training_step(batch, 1) for batch in batches])
    places = sum(len(batch.target_items) for batch in batches)
    means = [step / made._compute_batch_weight(batch) for step, batch in zip(steps, batches, strict=True)]
    by_place = sum(len(batch.target_items) * mean for batch, mean in zip(batches, means, strict=True)) / places
    torch.testing.assert_close(steps.mean(), by_place)


def test_in_batch_frequencies_are_those_of_the_samples():
    """Histories here start with an item that is never a positive: nothing came before it."""
    train = RaggedArray.from_lists([[0, 1, 2], [0, 2]])
    made = recipe(dataclasses.replace(synthetic.make_training_data(), train=train), loss="sampled_softmax")
    np.testing.assert_allclose(made.frequencies[:3], [0, 1 / 3, 2 / 3], rtol=1e-6)
    with_users = dataclasses.replace(synthetic.make_training_data(user_features=True), train=train)
    np.testing.assert_allclose(recipe(with_users, loss="sampled_softmax").frequencies[:3], [0.4, 0.2, 0.4], rtol=1e-6)


def test_bce_draws_negatives_beside_positives_alone():
    pairs = LabeledNegatives(np.arange(8), np.arange(8), np.ones(8, dtype=np.int64))
    made = recipe(
        synthetic.make_training_data(negatives=pairs), loss="bce", negatives=NegativeSettings(uniform=3), batch=1000
    )
    seen = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe_module, "bce_pairs", lambda scores, labels: seen.update(labels=labels) or scores.sum())
        batch = first_batch(made)
        made.training_step(batch, 0)
    positives = int(batch.labels.sum())
    assert (positives, len(batch.labels)) == (240, 248)
    assert len(seen["labels"]) == 240 * 4 + 8
    assert seen["labels"].sum() == positives


def test_what_cannot_be_learned_from_is_said():
    short = dataclasses.replace(synthetic.make_training_data(), train=RaggedArray.from_lists([[0], [1]]))
    with pytest.raises(TrainingError, match="two positives"):
        recipe(short)
    with pytest.raises(TrainingError, match="no negatives"):
        recipe(loss="bce", negatives=NegativeSettings(uniform=0))
    for loss in (float("nan"), float("inf")):
        with pytest.raises(TrainingError, match=r"epoch 3; lower training\.lr"):
            check_finite(loss, 3)


def test_the_learning_rate_rises_and_falls():
    share = build_cosine_schedule(100)
    rates = [share(step) for step in range(101)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5] == pytest.approx(1)
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[52] == pytest.approx(0.02 + 0.98 * 0.5, abs=0.01)
    assert rates[100] == pytest.approx(0.02)
    assert build_cosine_schedule(1)(0) == 1
