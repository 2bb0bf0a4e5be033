import re
from xml.etree import ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest

from vecall.evaluation import plots

EPOCHS = [{"epoch": e, "loss": 5.0 / e, "recall@100": 0.1 * e - 0.01 * e * e} for e in range(1, 9)]
MODELS = {
    "model": {"recall@10": 0.1, "recall@100": 0.43, "ndcg@10": 0.2},
    "a<b & c": {"recall@10": 0.2, "recall@100": 0.3},
}
DRAWN = {
    "learning": lambda: plots.plot_learning_curve(EPOCHS),
    "recall": lambda: plots.plot_recall_over_k(MODELS),
    "scores": lambda: plots.plot_score_histograms(np.linspace(0.5, 2.0, 9), np.linspace(-1.0, 1.0, 50)),
    "one score": lambda: plots.plot_score_histograms(np.ones(3), np.ones(5)),
    "popularity": lambda: plots.plot_recalled_popularity(
        {"model": np.array([[0, 1, -1], [5, 1, 0]])}, np.arange(300.0)
    ),
    "nothing taken": lambda: plots.plot_recalled_popularity({"model": np.array([[0]])}, np.zeros(3)),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_plot_is_the_same_well_formed_text_each_time(name):
    before = dict(mpl.rcParams)
    first = DRAWN[name]()
    assert DRAWN[name]() == first
    ET.fromstring(first)
    assert first.startswith("<svg")
    assert "<dc:date" not in first
    assert not re.search(r'"#(?!\w+-\w)|: #', first), "each colour must be a variable, so that the page can darken it"
    assert dict(mpl.rcParams) == before


def test_the_ring_is_at_the_epoch_that_was_kept():
    assert "kept: .250" in plots.plot_learning_curve(EPOCHS)  # the highest
    scored = [epoch | {"score": float(epoch["epoch"] == 7)} for epoch in EPOCHS]
    assert "kept: .210" in plots.plot_learning_curve(scored, selection_metric="score")


def test_ids_of_two_plots_never_meet():
    ids = [
        set(re.findall(r' id="([^"]+)"', draw()))
        for draw in map(DRAWN.get, ("learning", "recall", "scores", "popularity"))
    ]
    assert len(set.union(*ids)) == sum(map(len, ids))


def test_a_name_is_text_not_markup():
    svg = DRAWN["recall"]()
    assert "a&lt;b &amp; c" in svg
    assert "a<b" not in svg


def test_a_model_keeps_its_colour_whatever_stands_beside_it():
    alone, together = plots.assign_styles(["ease"]), plots.assign_styles(["other", "model", "ease", "popularity"])
    assert alone["ease"] == together["ease"]
    assert len(set(together.values())) == 4


@pytest.mark.parametrize(
    ("value", "text"), [(0.4314, ".431"), (0.0, ".000"), (1.0, "1.000"), (12.0, "12.000"), (-0.5, "-.500")]
)
def test_three_digits(value, text):
    assert plots.format_decimal(value) == text
