"""Checks of a release: each finds its planted fault."""

import json

import numpy as np
import polars as pl
import pytest
from support.doctor import list_levels

from vecall.data.ragged import RaggedArray
from vecall.doctor.answer_facts import describe_answers
from vecall.doctor.checks import (
    ann_recall_low,
    answers_eaten,
    index_tuned_elsewhere,
    served_vectors_differ,
    unexamined,
)
from vecall.doctor.context import AnnFacts, AnswerFacts, DoctorContext, ServedVectorFacts
from vecall.doctor.finding import Message
from vecall.index.settings import IndexSettings


@pytest.mark.parametrize(("recall", "level"), [(0.5, "error"), (0.9, "warning"), (0.97, None), (1.0, None)])
def test_ann_recall_below_its_target_is_found(recall, level):
    findings = ann_recall_low.check(DoctorContext(ann=AnnFacts(100, recall, 0.98, 0.98, 500)))
    assert list_levels(findings) == ([("ann_recall_low", level)] if level else [])


@pytest.mark.parametrize(
    ("recall", "recorded", "count", "is_found"),
    [(0.9, 0.99, 500, True), (0.98, 0.99, 500, False), (0.9, None, 500, False), (0.9, 0.99, 10, False)],
)
def test_index_tuned_on_other_users_is_found(recall, recorded, count, is_found):
    findings = index_tuned_elsewhere.check(DoctorContext(ann=AnnFacts(100, recall, recorded, 0.8, count)))
    assert list_levels(findings) == [("index_tuned_elsewhere", "warning")] * is_found


@pytest.mark.parametrize(
    ("facts", "levels"),
    [
        (ServedVectorFacts(golden_difference=0.3), ["error"]),
        (ServedVectorFacts(golden_difference=float("nan")), ["error"]),
        (ServedVectorFacts(1e-6, 100, 0.5, 100, 0.02), ["warning", "info"]),
        (ServedVectorFacts(1e-6, 100, 0.0, 100, 0.0), []),
    ],
)
def test_vectors_other_than_the_served_ones_are_found(facts, levels):
    findings = served_vectors_differ.check(DoctorContext(served=facts))
    assert [finding.level for finding in findings] == levels
    json.dumps([finding.as_json() for finding in findings], allow_nan=False)


def test_users_who_have_seen_nearly_all_are_found():
    facts = AnswerFacts(n_items=200, k=100, seen_counts=np.array([150] * 5 + [3] * 95), null_shares={})
    [finding] = answers_eaten.check(DoctorContext(answers=facts))
    assert (finding.level, finding.value, finding.setting) == ("warning", 0.05, "index.ks")


def test_attributes_that_filters_cannot_match_are_found():
    histories = RaggedArray.from_lists([[0, 0, 1], [], [2]])
    attributes = pl.DataFrame(
        {"year": [None] * 9 + [1], "kind": ["a", " A"] * 5, "title": [f"t{n}" for n in range(10)]}
    )
    facts = describe_answers(histories, attributes, 10, IndexSettings(ks=(5,)))
    assert facts.seen_counts.tolist() == [2, 1]
    assert (facts.k, facts.null_shares, facts.blank_attributes) == (
        5,
        {"year": 0.9, "kind": 0.0, "title": 0.0},
        ("kind",),
    )
    findings = answers_eaten.check(DoctorContext(answers=facts))
    assert list_levels(findings) == [("answers_eaten", "warning"), ("answers_eaten", "info")]


def test_what_was_not_examined_is_told():
    reason = Message("no tables", "没有表")
    [finding] = unexamined.check(DoctorContext(unexamined=(reason,)))
    assert finding.as_json("zh") == {
        "check": "unexamined",
        "level": "info",
        "message": "没有表",
        "value": None,
        "setting": "--config",
    }
