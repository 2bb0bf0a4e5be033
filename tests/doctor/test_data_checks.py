"""Checks of the tables: each finds its planted fault, and nothing above info in healthy tables."""

import dataclasses
from functools import partial

import numpy as np
import polars as pl
import pytest
from support.doctor import list_levels, make_config, make_context, make_rows

from vecall.data.split import TEST, TRAIN
from vecall.doctor.checks import (
    all_positive_labels,
    batch_collisions,
    dropped_rows,
    duplicates_over_splits,
    events_swamp_histories,
    malformed_ids,
    own_protocol,
    repeats_hidden,
    repeats_swamp_histories,
    targets_in_features,
    targets_in_histories,
    tied_times,
    unknown_values,
    untrained_items,
)
from vecall.doctor.context import LabelRange, OrderFacts, RecallGap
from vecall.doctor.examination import diagnose
from vecall.evaluation.segments import build_segments


def with_items_table(n_items=60, **columns):
    return pl.DataFrame({"id": [f"i{item:03}" for item in range(n_items)], **columns})


def test_healthy_tables_have_nothing_above_info():
    config = make_config(
        schema={
            "items": {
                "id": "id",
                "id_type": "string",
                "features": {"kind": {"kind": "category"}, "n": {"kind": "numeric"}},
            },
            "users": {"id": "id", "id_type": "string", "features": {"city": {"kind": "category"}}},
        },
        model={"id_dropout": 0.1},
    )
    items = with_items_table(kind=["a", "b", "c"] * 20, n=[float(n) for n in range(60)])
    users = pl.DataFrame({"id": [f"u{user:03}" for user in range(40)], "city": ["x", "y"] * 20})
    context = make_context(config=config, items=items, users=users)
    encoders = context.dataset.fit_feature_encoders(
        context.split.train.values, np.flatnonzero(context.split.train.lengths)
    )
    findings = diagnose(dataclasses.replace(context, encoders=encoders))
    assert {finding.level for finding in findings} <= {"info"}, findings
    assert "own_protocol" in {finding.check for finding in findings}


def test_repeated_targets_are_found():
    rows = [(f"u{u}", f"i{(u + t % 3) % 30}", t) for u in range(30) for t in range(8)]
    [finding] = targets_in_histories.check(make_context(rows))
    assert (finding.level, finding.value, finding.setting) == ("warning", 1.0, "data.repeats")
    assert "100.0%" in finding.message.en


def test_repeated_targets_of_an_earlier_kind_are_told_as_such():
    """`data.repeats` goes by kind, so it changes nothing."""
    columns = {"user": "user", "item": "item", "time": "time", "event": "kind", "targets": ["buy"]}
    rows = [
        (user, item, 2 * time + is_bought, "buy" if is_bought else "view")
        for user, item, time in make_rows()
        for is_bought in (0, 1)
    ]
    for repeats in ("keep", "first"):
        config = make_config(schema={"interactions": columns}, data={"repeats": repeats})
        [finding] = targets_in_histories.check(make_context(rows, config, columns=EVENT_COLUMNS))
        assert (finding.level, finding.value) == ("warning", 1.0)
        assert (finding.setting, "goes by kind" in finding.message.en) == ("schema.interactions.weights", True)


def test_rows_written_twice_are_found_over_the_parts():
    rows = [row for row in make_rows() for _ in range(2)]
    [finding] = duplicates_over_splits.check(make_context(rows))
    assert (finding.level, finding.setting) == ("error", "data.repeats")
    # With each row twice, leave-one-out holds out both copies of the last one: validation and test are the same.
    context = make_context(rows)
    parts, positives = context.split.positive_parts, context.dataset.interactions.positives
    triples = list(zip(positives.users, positives.items, positives.times, strict=True))
    earliest = {}
    for triple, part in zip(triples, parts, strict=True):
        earliest[triple] = min(part, earliest.get(triple, TEST))
    held_out = [(triple, part) for triple, part in zip(triples, parts, strict=True) if part != TRAIN]
    assert finding.value == sum(earliest[triple] < part for triple, part in held_out) / len(held_out) == 0.5


def test_items_viewed_and_bought_at_one_time_are_not_written_twice():
    columns = {"user": "user", "item": "item", "time": "time", "event": "kind"}
    config = make_config(schema={"interactions": columns})
    rows = [(*row, kind) for row in make_rows() for kind in ("view", "buy")]
    assert duplicates_over_splits.check(make_context(rows, config, columns=EVENT_COLUMNS)) == []
    rows = [row for row in rows for _ in range(2)]
    [finding] = duplicates_over_splits.check(make_context(rows, config, columns=EVENT_COLUMNS))
    assert finding.level == "error"


def test_no_duplicates_are_found_in_distinct_rows():
    assert duplicates_over_splits.check(make_context()) == []


def test_user_feature_that_names_the_target_is_found():
    config = make_config(
        schema={"users": {"id": "id", "id_type": "string", "features": {"last": {"kind": "category"}}}}
    )
    rows = make_rows()
    last_items = {user: item for user, item, _ in rows}
    users = pl.DataFrame({"id": list(last_items), "last": list(last_items.values())})
    [finding] = targets_in_features.check(make_context(rows, config, users=users))
    assert (finding.level, finding.value, finding.setting) == ("error", 1.0, "schema.users.features.last")
    first_items = {user: item for user, item, _ in reversed(rows)}
    users = pl.DataFrame({"id": list(first_items), "last": list(first_items.values())})
    assert targets_in_features.check(make_context(rows, config, users=users)) == []


def test_context_that_names_the_target_is_found():
    columns = {"user": "user", "item": "item", "time": "time", "context": {"sku": {"kind": "category"}}}
    config = make_config(schema={"interactions": columns})
    for copy, is_found in ((True, True), (False, False)):
        rows = [(*row, row[1] if copy else f"i{number % 60:03}") for number, row in enumerate(make_rows())]
        findings = targets_in_features.check(make_context(rows, config, columns=("user", "item", "time", "sku")))
        settings = [(finding.level, finding.setting) for finding in findings]
        assert settings == ([("error", "schema.interactions.context.sku")] if is_found else [])


def test_item_feature_that_counts_the_test_is_found():
    config = make_config(schema={"items": {"id": "id", "id_type": "string", "features": {"n": {"kind": "numeric"}}}})
    context = make_context(config=config, items=with_items_table(n=[0.0] * 60))
    counts = context.dataset.popularity.tolist()
    [finding] = targets_in_features.check(make_context(config=config, items=with_items_table(n=counts)))
    assert (finding.level, finding.setting) == ("error", "schema.items.features.n")
    train_counts = np.bincount(context.split.train.values, minlength=60).astype(float).tolist()
    assert targets_in_features.check(make_context(config=config, items=with_items_table(n=train_counts))) == []


def test_item_feature_that_counts_purchases_before_the_test_is_none_where_views_weigh_nothing():
    """Views are in the training and not in the popularity, which says nothing of the test."""
    interactions = {"user": "user", "item": "item", "time": "time", "event": "kind", "weights": {"view": 0, "buy": 1}}
    items = {"id": "id", "id_type": "string", "features": {"bought": {"kind": "numeric"}}}
    config = make_config(schema={"interactions": interactions, "items": items})
    rows = [(*row, "buy" if row[2] > 4 else "view") for row in make_rows()]
    make = partial(make_context, rows, config, columns=("user", "item", "time", "kind"))
    context = make(items=with_items_table(bought=[0.0] * 60))
    positives = context.dataset.interactions.positives
    bought = positives.items[(positives.weights > 0) & (context.split.positive_parts != TEST)]
    before = np.bincount(bought, minlength=60).astype(float).tolist()
    assert targets_in_features.check(make(items=with_items_table(bought=before))) == []
    all_counts = context.dataset.popularity.tolist()
    assert list_levels(targets_in_features.check(make(items=with_items_table(bought=all_counts)))) == [
        ("targets_in_features", "error")
    ]


def test_user_feature_that_names_an_item_of_the_history_is_none():
    """Users come back to it, so that it names targets, too."""
    features = {"favourite": {"kind": "category"}}
    config = make_config(schema={"users": {"id": "id", "id_type": "string", "features": features}})
    rows = [(f"u{user}", f"i{user % 20 + time % 2}", time) for user in range(40) for time in range(6)]
    users = pl.DataFrame({"id": [f"u{user}" for user in range(40)], "favourite": [f"i{u % 20 + 1}" for u in range(40)]})
    context = make_context(rows, config, users=users)
    assert all(context.split.test.targets.values == context.split.test.histories.values[1::5])
    assert targets_in_features.check(context) == []


def test_values_spelled_otherwise_in_newer_rows_are_found():
    config = make_config(schema={"items": {"id": "id", "id_type": "string", "features": {"kind": {"kind": "tags"}}}})
    rows = [(f"u{u}", f"i{item:03}", t) for u in range(30) for t, item in enumerate([u % 10, 10 + u % 10, 20, 30 + u])]
    items = with_items_table(kind=[["old"] if item < 30 else ["OLD"] for item in range(60)])
    context = make_context(rows, config, items=items)
    encoders = context.dataset.fit_feature_encoders(context.split.train.values, np.arange(30))
    [finding] = unknown_values.check(dataclasses.replace(context, encoders=encoders))
    assert (finding.level, finding.value, finding.setting) == ("warning", 1.0, "schema.items.features.kind")


def test_test_users_that_the_users_table_lacks_are_found():
    config = make_config(
        schema={"users": {"id": "id", "id_type": "string", "features": {"city": {"kind": "category"}}}}
    )
    users = pl.DataFrame({"id": [f"u{user:03}" for user in range(10)], "city": ["x"] * 10})
    context = make_context(config=config, users=users)
    encoders = context.dataset.fit_feature_encoders(context.split.train.values, np.arange(40))
    [finding] = unknown_values.check(dataclasses.replace(context, encoders=encoders))
    assert (finding.level, finding.value, finding.setting) == ("warning", 0.75, "data.users")


def test_items_that_training_has_not_seen_are_found_with_what_would_help():
    rows = [(f"u{u}", f"i{item:03}", t) for u in range(30) for t, item in enumerate([u % 10, 10 + u % 10, 20, 30 + u])]
    finding = untrained_items.check(make_context(rows))[0]
    assert (finding.level, finding.value, finding.setting) == ("warning", 1.0, "schema.items.features")
    features = {"items": {"id": "id", "id_type": "string", "features": {"n": {"kind": "numeric"}}}}
    items = with_items_table(n=[1.0] * 60)
    finding = untrained_items.check(make_context(rows, make_config(schema=features), items=items))[0]
    assert (finding.level, finding.setting) == ("warning", "model.id_dropout")
    config = make_config(schema=features, model={"id_dropout": 0.2})
    findings = untrained_items.check(make_context(rows, config, items=items))
    assert {finding.level for finding in findings} == {"info"}


def test_catalogue_of_items_that_nobody_took_is_told():
    rows = make_rows(items=20)
    findings = untrained_items.check(make_context(rows, items=with_items_table()))
    assert list_levels(findings) == [("untrained_items", "info")]
    assert findings[0].setting == "data.items"


def test_repeats_that_fill_the_history_are_found():
    rows = [(f"u{u}", f"i{0 if t < 12 else t + u}", t) for u in range(30) for t in range(16)]
    [finding] = repeats_swamp_histories.check(make_context(rows))
    assert (finding.level, finding.setting) == ("warning", "data.repeats")
    assert finding.value == pytest.approx(11 / 15, abs=1e-3)
    assert repeats_swamp_histories.check(make_context()) == []
    sets = make_config(model={"history": {"encoder": "set"}})  # which are read without repeats
    assert repeats_swamp_histories.check(make_context(rows, sets)) == []


@pytest.mark.parametrize(("repeat", "text"), [({}, "the channel repeat, which"), (False, "turn the channel repeat on")])
def test_repeats_that_requests_hide_are_found(repeat, text):
    rows = [(f"u{u}", f"i{t % 4 + u}", t) for u in range(30) for t in range(5)]
    [finding] = repeats_hidden.check(make_context(rows, make_config(channels={"repeat": repeat})))
    assert (finding.level, finding.value, finding.setting) == ("info", 0.2, "channels.repeat")
    assert text in finding.message.en
    assert "exclude_seen = false" in finding.message.en
    assert "exclude_seen = false" in finding.message.zh
    assert repeats_hidden.check(make_context()) == []


EVENT_COLUMNS = ("user", "item", "time", "kind")


def make_event_context(kinds, **interactions):
    """Make the context of users whose interactions are of these kinds, one after the other."""
    names = {"user": "user", "item": "item", "time": "time", "event": "kind"}
    config = make_config(schema={"interactions": names | interactions})
    rows = [(*row, kinds[row[2] % len(kinds)]) for row in make_rows(items=200, length=40)]
    return make_context(rows, config, columns=EVENT_COLUMNS)


@pytest.mark.parametrize(
    ("kinds", "interactions", "level", "setting"),
    [
        (["view"] * 19 + ["buy"], {"targets": ["buy"]}, "warning", "schema.interactions.weights"),
        (["view"] * 19 + ["buy"], {"weights": {"view": 0.0, "buy": 1.0}}, "info", "schema.interactions.weights"),
        (["view", "buy"], {}, "info", "schema.interactions.targets"),
        (["view", "buy", "buy"], {"targets": ["buy"]}, None, None),
    ],
)
def test_views_that_drown_purchases_are_found(kinds, interactions, level, setting):
    findings = events_swamp_histories.check(make_event_context(kinds, **interactions))
    assert [(finding.level, finding.setting) for finding in findings] == ([(level, setting)] if level else [])
    if level == "warning":
        assert findings[0].value == pytest.approx(0.95)
        assert "(buy are)" in findings[0].message.en


@pytest.mark.parametrize(("encoder", "level"), [("causal", "warning"), ("mean", "info")])
def test_equal_times_are_found(encoder, level):
    rows = [(user, item, 0) for user, item, _ in make_rows()]
    config = make_config(model={"history": {"encoder": encoder}})
    assert list_levels(tied_times.check(make_context(rows, config))) == [("tied_times", level)]


@pytest.mark.parametrize(
    ("model", "level"), [(None, "warning"), (RecallGap(0.1, 0.2, 0.01), "warning"), (RecallGap(0.2, 0.2, 0.0), "info")]
)
def test_table_sorted_by_item_without_times_is_found(model, level):
    config = make_config(schema={"interactions": {"user": "user", "item": "item"}})
    rows = sorted((user, item) for user, item, _ in make_rows())
    context = make_context(rows, config, columns=("user", "item"))
    order = None if model is None else OrderFacts("recall@100", 2000, model, None)
    findings = tied_times.check(dataclasses.replace(context, order=order))
    assert list_levels(findings) == [("tied_times", level)]
    assert "sorted by item" in findings[0].message.en


def test_order_that_is_not_used_is_not_told():
    """A random split of a table without times says that the order says nothing."""
    config = make_config(schema={"interactions": {"user": "user", "item": "item"}}, data={"split": "random"})
    for rows in (sorted((user, item) for user, item, _ in make_rows()), [row[:2] for row in make_rows()]):
        context = make_context(rows, config, columns=("user", "item"))
        context = dataclasses.replace(context, dataset=dataclasses.replace(context.dataset, has_order=False))
        assert tied_times.check(context) == []


@pytest.mark.parametrize("split", ["leave_one_out", "random"])
def test_equal_times_decide_what_is_held_out_one_by_one_alone(split):
    rows = [(user, item, 0) for user, item, _ in make_rows()]
    [finding] = tied_times.check(make_context(rows, make_config(data={"split": split})))
    assert ("leave-one-out" in finding.message.en) == (split == "leave_one_out")


def test_table_without_times_is_told():
    config = make_config(schema={"interactions": {"user": "user", "item": "item"}})
    rows = [(user, item) for user, item, _ in make_rows()]
    findings = tied_times.check(make_context(rows, config, columns=("user", "item")))
    assert list_levels(findings) == [("tied_times", "info")]


@pytest.mark.parametrize(
    ("labels", "level"),
    [
        (LabelRange(0.0, 10.0, 0.6), "warning"),  # Book-Crossing: 0 is "not rated"
        (LabelRange(-1.0, 1.0, 0.1), "warning"),
        (LabelRange(0.5, 5.0, 0.1), "info"),  # MovieLens
        (LabelRange(0.0, 0.0, 1.0), "info"),
    ],
)
def test_labels_that_separate_nothing_are_found(labels, level):
    config = make_config(
        schema={"interactions": {"user": "user", "item": "item", "time": "time", "label": "stars", "positive": -2.0}}
    )
    rows = [(*row, labels.maximum) for row in make_rows()]
    context = make_context(rows, config, columns=("user", "item", "time", "stars"))
    findings = all_positive_labels.check(dataclasses.replace(context, labels=labels))
    assert list_levels(findings) == [("all_positive_labels", level)]
    assert findings[0].setting == "schema.interactions.positive"


def test_labels_that_separate_are_not_found():
    config = make_config(
        schema={"interactions": {"user": "user", "item": "item", "time": "time", "label": "stars", "positive": 3.0}}
    )
    rows = [(*row, float(1 + index % 5)) for index, row in enumerate(make_rows())]
    context = make_context(rows, config, columns=("user", "item", "time", "stars"))
    assert all_positive_labels.check(dataclasses.replace(context, labels=LabelRange(1.0, 5.0, 0.2))) == []


def test_rows_dropped_for_unknown_items_are_found():
    findings = dropped_rows.check(make_context(items=with_items_table(50), bad_rows="drop"))
    assert list_levels(findings) == [("dropped_rows", "warning")]
    assert "an item of the items table" in findings[0].message.en
    assert dropped_rows.check(make_context(items=with_items_table(60))) == []


@pytest.mark.parametrize(
    ("spell", "level", "words"),
    [
        (lambda user: f"{user}.0", "warning", "'0.0'"),
        (lambda user: f"{user % 20:0{5 if user < 20 else 1}}", "warning", "'0', '00000'"),
        (lambda user: str(10**7 * (1 + user % 9) + user if user % 8 else 10**6 + user), "info", "8 digits"),
    ],
)
def test_ids_that_went_through_a_number_are_found(spell, level, words):
    rows = [(spell(int(user[1:])), item, time) for user, item, time in make_rows()]
    [finding] = malformed_ids.check(make_context(rows))
    assert (finding.check, finding.level, finding.setting) == ("malformed_ids", level, "schema.users.id_type")
    assert words in finding.message.en


@pytest.mark.parametrize("spell", [str, "{:05}".format, "{:08}".format, "u{}".format])
def test_sound_ids_are_not_found(spell):
    rows = [(spell(int(user[1:])), item, time) for user, item, time in make_rows()]
    assert malformed_ids.check(make_context(rows)) == []


def test_more_negatives_than_items_are_found():
    config = make_config(training={"loss": "sampled_softmax", "negatives": {"uniform": 100}})
    [finding] = batch_collisions.check(make_context(config=config))
    assert (finding.level, finding.setting) == ("warning", "training.loss")


@pytest.mark.parametrize(
    ("training", "setting"),
    [
        ({"loss": "bce", "negatives": {"uniform": 4}}, "training.loss"),
        (
            {"loss": "sampled_softmax", "negatives": {"uniform": 9, "in_batch": 0}, "mask_history": False},
            "training.mask_history",
        ),
    ],
)
def test_negatives_that_the_user_took_are_found(training, setting):
    rows = make_rows(items=20, length=10)
    [finding] = batch_collisions.check(make_context(rows, make_config(training=training)))
    assert (finding.level, finding.setting) == ("warning", setting)
    assert finding.value == pytest.approx(8 / 20)  # each user has 8 of 20 items in training
    masked = make_config(training=training | {"mask_history": True})
    assert len(batch_collisions.check(make_context(rows, masked))) == (training["loss"] == "bce")


def test_collisions_within_a_batch_count_by_frequency():
    training = {"loss": "sampled_softmax", "negatives": {"uniform": 0, "in_batch": 64}, "mask_history": False}
    context = make_context(make_rows(items=20, length=10), make_config(training=training))
    [finding] = batch_collisions.check(context)
    train = context.split.train
    frequencies = np.bincount(train.values, minlength=20) / len(train.values)
    expected = np.mean([frequencies[np.unique(train[user])].sum() for user in range(40)])
    assert finding.value == pytest.approx(expected, abs=1e-4)


def test_protocol_is_told():
    [finding] = own_protocol.check(make_context())
    assert finding.level == "info"
    assert "leave-one-out" in finding.message.en
    assert "leave-one-out" in finding.message.zh


def test_schema_of_an_items_table_that_is_not_there_is_no_fault():
    schema = {"items": {"id": "id", "id_type": "string", "title": "name", "attributes": {"brand": "string"}}}
    context = make_context(config=make_config(schema=schema))
    assert targets_in_features.check(context) == []
    segments = build_segments(("brand",), context.dataset, context.split, context.split.test, np.ones(60))
    assert {segment.bucket for segment in segments} <= {"missing"}
