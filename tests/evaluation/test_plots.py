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
PLOTS = {
    "learning": lambda: plots.plot_learning_curve(EPOCHS),
    "recall": lambda: plots.plot_recall_over_k(MODELS),
    "scores": lambda: plots.plot_score_histograms(np.linspace(0.5, 2.0, 9), np.linspace(-1.0, 1.0, 50)),
    "one score": lambda: plots.plot_score_histograms(np.ones(3), np.ones(5)),
    "popularity": lambda: plots.plot_recalled_popularity(
        {"model": np.array([[0, 1, -1], [5, 1, 0]])}, np.arange(300.0)
    ),
    "channels": lambda: plots.plot_channels({"vector": (0.4, 0.0), "similar": (0.3, 0.1)}, metric="recall@100"),
    "no interactions": lambda: plots.plot_recalled_popularity({"model": np.array([[0]])}, np.zeros(3)),
}


@pytest.mark.parametrize("name", PLOTS)
def test_plot_is_deterministic_and_well_formed(name):
    before = dict(mpl.rcParams)
    first = PLOTS[name]()
    assert PLOTS[name]() == first
    ET.fromstring(first)
    assert first.startswith("<svg")
    assert "<dc:date" not in first
    assert not re.search(r'"#(?!\w+-\w)|: #', first), (
        "each color must be a CSS variable, so that the page can redefine it in dark mode"
    )
    assert dict(mpl.rcParams) == before


def test_selected_epoch_has_the_best_selection_metric():
    assert "selected: 0.250" in plots.plot_learning_curve(EPOCHS)  # the highest
    with_score = [epoch | {"score": float(epoch["epoch"] == 7)} for epoch in EPOCHS]
    assert "selected: 0.210" in plots.plot_learning_curve(with_score, selection_metric="score")


def test_element_ids_of_different_plots_are_distinct():
    ids = [
        set(re.findall(r' id="([^"]+)"', plot()))
        for plot in map(PLOTS.get, ("learning", "recall", "scores", "popularity", "channels"))
    ]
    assert len(set.union(*ids)) == sum(map(len, ids))


def test_model_name_is_escaped():
    svg = PLOTS["recall"]()
    assert "a&lt;b &amp; c" in svg
    assert "a<b" not in svg


def test_well_known_model_has_the_same_style_in_every_plot():
    alone, together = plots.assign_styles(["ease"]), plots.assign_styles(["other", "model", "ease", "popularity"])
    assert alone["ease"] == together["ease"]
    assert len(set(together.values())) == 4


@pytest.mark.parametrize(
    ("value", "text"), [(0.4314, "0.431"), (0.0, "0.000"), (1.0, "1.000"), (12.0, "12.000"), (-0.5, "-0.500")]
)
def test_numbers_have_three_decimals_and_a_leading_zero(value, text):
    assert plots.format_decimal(value) == text
