"""Checks of a model's ranking, vectors and training: each finds its planted fault."""

import dataclasses

import numpy as np
import pytest
from support.doctor import list_levels, make_config, make_context, make_ranking, make_training

from vecall.doctor.checks import (
    below_baselines,
    collapsed_vectors,
    hubs,
    learning_rate_off,
    missing_logq,
    order_unused,
    overfitting,
    popularity_bias,
    temperature_off,
    too_few_epochs,
    trained_on_test,
)
from vecall.doctor.context import DoctorContext, OrderFacts, RecallGap, TrainingFacts
from vecall.doctor.examination import diagnose

CONFIG = make_config()


def test_healthy_model_has_nothing_above_info():
    vectors = np.random.default_rng(0).standard_normal((500, 32)).astype(np.float32)
    context = dataclasses.replace(
        make_context(config=make_config(training={"epochs": 4})),
        ranking=make_ranking(),
        order=OrderFacts("recall@20", 2000, RecallGap(0.4, 0.35, 0.005), RecallGap(0.3, 0.25, 0.005)),
        item_vectors=vectors,
        training=make_training([3.5, 3.0, 2.8, 2.75], [0.10, 0.15, 0.18, 0.182]),
    )
    findings = diagnose(context)
    assert {finding.level for finding in findings} <= {"info"}, findings


@pytest.mark.parametrize(
    ("recall", "popularity", "ease", "level"),
    [
        (0.046, 0.083, 0.156, "error"),  # Book-Crossing
        (0.083, 0.083, 0.05, "error"),  # level with popularity
        (0.36, 0.2, 0.4, "warning"),
        (0.30, 0.2, 0.4, "error"),
        (0.39, 0.2, 0.4, None),  # within two standard errors
        (0.40, 0.2, 0.3, None),
    ],
)
def test_model_below_a_baseline_is_found(recall, popularity, ease, level):
    ranking = make_ranking(recall, popularity=popularity, ease=ease)
    findings = below_baselines.check(DoctorContext(ranking=ranking))
    assert list_levels(findings) == ([("below_baselines", level)] if level else [])
    for finding in findings:
        assert f"{recall:.3f}" in finding.message.en
        assert finding.setting == "model.preset"


def test_each_baseline_is_named_with_its_own_relation():
    [finding] = below_baselines.check(DoctorContext(ranking=make_ranking(0.1, popularity=0.098, ease=0.2)))
    assert "0.100, below ease 0.200, level with popularity 0.098 (400" in finding.message.en
    assert "A closed form of the same histories finds more" in finding.message.en
    [finding] = below_baselines.check(DoctorContext(ranking=make_ranking(0.1, popularity=0.098, ease=0.05)))
    assert "0.100, level with popularity 0.098 (" in finding.message.en
    assert "closed form" not in finding.message.en


def test_few_users_level_with_popularity_are_chance():
    assert below_baselines.check(DoctorContext(ranking=make_ranking(0.21, ease=0.1, users=10))) == []


def test_baseline_that_was_skipped_is_told():
    ranking = make_ranking(skipped_baselines={"ease": "too large"})
    findings = below_baselines.check(DoctorContext(ranking=ranking))
    assert list_levels(findings) == [("below_baselines", "info")]


ORDERED, UNORDERED = RecallGap(0.4, 0.3, 0.01), RecallGap(0.4, 0.4, 0.01)


@pytest.mark.parametrize(
    ("model", "probe", "encoder", "level", "setting"),
    [
        (UNORDERED, ORDERED, "mean", "warning", "model.preset"),
        (UNORDERED, ORDERED, "causal", "warning", "training.epochs"),
        (UNORDERED, UNORDERED, "causal", "warning", "model.preset"),
        (UNORDERED, UNORDERED, "mean", "info", "model.preset"),
        (UNORDERED, UNORDERED, "set", None, None),
        (UNORDERED, ORDERED, "set", "warning", "model.preset"),
        (ORDERED, UNORDERED, "causal", None, None),
        (RecallGap(0.028, 0.064, 0.004), UNORDERED, "mean", "error", "model.preset"),  # Book-Crossing
        (RecallGap(0.38, 0.42, 0.01), ORDERED, "mean", "warning", "model.preset"),
        (ORDERED, ORDERED, "causal", None, None),
    ],
)
def test_order_that_carries_nothing_misleads_or_is_ignored_is_found(model, probe, encoder, level, setting):
    config = make_config(model={"history": {"encoder": encoder}})
    facts = OrderFacts("recall@100", 2000, model, probe)
    findings = order_unused.check(DoctorContext(config=config, order=facts))
    assert [(finding.level, finding.setting) for finding in findings] == ([(level, setting)] if level else [])
    few = dataclasses.replace(facts, user_count=20)
    assert order_unused.check(DoctorContext(config=config, order=few)) == []


def test_vectors_in_a_cone_are_found():
    vectors = np.random.default_rng(0).standard_normal((500, 32)).astype(np.float32)
    assert collapsed_vectors.check(DoctorContext(config=CONFIG, item_vectors=vectors)) == []
    for shift, level in ((1.5, "warning"), (8.0, "error")):
        [finding] = collapsed_vectors.check(DoctorContext(config=CONFIG, item_vectors=vectors + shift))
        assert (finding.level, finding.setting) == (level, "training.temperature")
        units = (vectors + shift) / np.linalg.norm(vectors + shift, axis=1, keepdims=True)
        cosines = units @ units.T
        assert finding.value == pytest.approx(cosines[np.triu_indices(500, 1)].mean(), abs=1e-3)


def test_vectors_of_few_dimensions_are_found():
    rng = np.random.default_rng(0)
    vectors = (rng.standard_normal((500, 2)) @ rng.standard_normal((2, 64))).astype(np.float32)
    [finding] = collapsed_vectors.check(DoctorContext(config=CONFIG, item_vectors=vectors))
    assert finding.level == "warning"
    assert finding.value <= 2.001


def test_hub_is_found_and_a_popular_item_is_none():
    ranking = make_ranking()
    rows = [
        (f"u{user}", f"i{item:04}", time) for user in range(500) for time, item in enumerate(range(user, 2000, 500))
    ]
    context = make_context(rows)
    assert hubs.check(dataclasses.replace(context, ranking=ranking)) == []
    top_rows = ranking.top_rows.copy()
    top_rows[:300, 0] = 1999
    [finding] = hubs.check(dataclasses.replace(context, ranking=dataclasses.replace(ranking, top_rows=top_rows)))
    assert (finding.level, finding.value) == ("warning", (top_rows == 1999).sum() / 400)
    assert "'i1999'" in finding.message.en
    top_rows[:300, 0] = 0  # the most popular item
    assert hubs.check(dataclasses.replace(context, ranking=dataclasses.replace(ranking, top_rows=top_rows))) == []


def test_popular_items_for_everyone_are_found():
    ranking = make_ranking()
    assert popularity_bias.check(DoctorContext(ranking=ranking)) == []
    popular = np.broadcast_to(np.arange(20), (400, 20))
    [finding] = popularity_bias.check(DoctorContext(ranking=dataclasses.replace(ranking, top_rows=popular)))
    assert (finding.level, finding.value) == ("warning", 1.0)
    same = np.broadcast_to(np.arange(500, 520), (400, 20))  # for everyone the same, though not popular
    assert len(popularity_bias.check(DoctorContext(ranking=dataclasses.replace(ranking, top_rows=same)))) == 1


@pytest.mark.parametrize(
    ("training", "level"),
    [
        ({"temperature": 1.0}, "warning"),
        ({"temperature": 0.005}, "warning"),
        ({"temperature": 1.0, "loss": "bce"}, "info"),
        ({"temperature": 0.1}, None),
        ({"temperature": 0.07}, None),
        ({"temperature": "learned"}, None),
        ({"temperature": 0.2, "loss": "bce"}, None),
    ],
)
def test_temperature_that_cannot_separate_is_found(training, level):
    findings = temperature_off.check(make_context(config=make_config(training=training)))
    assert list_levels(findings) == ([("temperature_off", level)] if level else [])


def check_training(check, losses, scores, **training):
    config = make_config(training={"epochs": len(losses)} | training)
    return check(dataclasses.replace(make_context(config=config), training=make_training(losses, scores)))


def test_rising_loss_is_found():
    [finding] = check_training(learning_rate_off.check, [3.0, 2.5, 3.4], [0.1, 0.2, 0.1])
    assert (finding.level, finding.setting) == ("warning", "training.lr")
    assert "in epoch 3" in finding.message.en


def test_loss_of_zero_is_no_rise():
    assert check_training(learning_rate_off.check, [0.0, 0.0], [0.1, 0.2]) == []


def test_loss_of_guessing_is_found():
    [finding] = check_training(learning_rate_off.check, [4.095, 4.094], [0.01, 0.01])  # ln 60 = 4.094
    assert (finding.level, finding.setting) == ("error", "training.lr")


def test_loss_of_sets_is_not_compared_with_guessing():
    config = make_config(model={"history": {"encoder": "set"}}, training={"epochs": 2})
    context = dataclasses.replace(make_context(config=config), training=make_training([50.0, 45.0], [0.1, 0.2]))
    assert learning_rate_off.check(context) == []


@pytest.mark.parametrize("weight", [0.1, 1.0, 30.0])
def test_loss_of_guessing_does_not_depend_on_the_weights_of_kinds(weight):
    """Training scales them to a mean of 1."""
    context = make_context(config=make_config(training={"epochs": 2}))
    weights = np.full(len(context.split.train.values), weight, dtype=np.float32)
    context = dataclasses.replace(context, split=dataclasses.replace(context.split, train_weights=weights))
    for loss, is_found in ((1.0, False), (3.0, False), (4.1, True)):
        training = make_training([loss + 0.01, loss], [0.1, 0.1])
        findings = learning_rate_off.check(dataclasses.replace(context, training=training))
        assert bool(findings) == is_found


def test_score_that_still_rises_in_the_last_epoch_is_found():
    [finding] = check_training(too_few_epochs.check, [3.0, 2.5, 2.2], [0.1, 0.15, 0.2])
    assert (finding.level, finding.setting) == ("warning", "training.epochs")
    assert check_training(too_few_epochs.check, [3.0, 2.5, 2.2], [0.1, 0.15, 0.2], epochs=30) == []  # stopped early
    assert check_training(too_few_epochs.check, [3.0, 2.5, 2.2], [0.1, 0.199, 0.2]) == []


def test_overfitting_is_found():
    [finding] = check_training(overfitting.check, [3.0, 2.0, 1.0], [0.2, 0.15, 0.1])
    assert (finding.level, finding.setting) == ("warning", "training.lr")
    [finding] = check_training(overfitting.check, [3.0, 2.0, 1.0], [0.1, 0.2, 0.1])
    assert (finding.level, finding.setting) == ("info", "model.dropout")
    assert check_training(overfitting.check, [3.0, 2.0, 1.0], [0.1, 0.2, 0.21]) == []


@pytest.mark.parametrize(("share", "level"), [(0.2, "error"), (0.005, "warning"), (0.0, None)])
def test_weights_that_have_seen_the_test_are_found(share, level):
    findings = trained_on_test.check(DoctorContext(training=TrainingFacts((), 0, share)))
    assert list_levels(findings) == ([("trained_on_test", level)] if level else [])


def test_negatives_from_the_batch_alone_are_found():
    config = make_config(training={"loss": "sampled_softmax", "negatives": {"uniform": 0, "in_batch": 512}})
    [finding] = missing_logq.check(DoctorContext(config=config))
    assert (finding.level, finding.setting) == ("warning", "training.negatives.uniform")


@pytest.mark.parametrize(
    ("loss", "setting"),
    [
        ("bce", "training.loss"),
        ("softmax", "training.weight_decay"),
        ("auto", "training.weight_decay"),  # which is a softmax over 2,000 items
        ("sampled_softmax", "training.negatives.hard"),
    ],
)
def test_popular_items_that_sink_are_found(loss, setting):
    ranking = make_ranking(0.05)
    rare = np.argsort(ranking.item_counts)[:20]
    sunken = dataclasses.replace(
        ranking, top_rows=np.broadcast_to(rare, (400, 20)), target_rows=np.argsort(-ranking.item_counts)[:50]
    )
    config = make_config(training={"loss": loss})
    [finding] = missing_logq.check(DoctorContext(config=config, ranking=sunken))
    assert (finding.level, finding.setting) == ("warning", setting)
    assert missing_logq.check(DoctorContext(config=config, ranking=make_ranking())) == []
