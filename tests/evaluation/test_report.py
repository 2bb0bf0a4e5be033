import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from vecall.errors import ConfigError
from vecall.evaluation.report import ExampleUser, ReportContent, write_report

NASTY = "<script>alert('$title')</script> & \"co\""
METRICS = {"recall@10": 0.1, "recall@100": 0.431, "ndcg@10": 0.05, "coverage@10": 0.25}
CONTENT = ReportContent(
    title=f"title {NASTY}",
    headline=f"headline {NASTY}",
    protocol=(f"protocol {NASTY}",),
    models={
        "model": {"seen_excluded": METRICS, "seen_included": METRICS | {"recall@100": 0.377}},
        f"m {NASTY}": {"seen_excluded": METRICS | {"recall@100": 1.0}, "seen_included": METRICS},
    },
    dropped=((f"what {NASTY}", 1234, f"why {NASTY}"),),
    ann_rows=(
        {
            "k": 100,
            "recall": 0.9871,
            "recall_ci95": 0.002,
            "p50_ms": 0.65,
            "p99_ms": 12.5,
            "queries": 2000,
            "effort": None,
            "engine": f"hnsw {NASTY}",
        },
    ),
    ann_method=f"method {NASTY}",
    learning_curve_svg="<svg><title>curve</title></svg>",
    recall_over_k_svg="<svg><title>over k</title></svg>",
    examples=(
        ExampleUser(f"user {NASTY}", (f"taken {NASTY}",), (f"recalled {NASTY}", "other"), (f"recalled {NASTY}",)),
    ),
    environment={f"machine {NASTY}": f"two cores {NASTY}"},
)


class Balance(HTMLParser):
    """Tags that were opened and not closed."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def page(tmp_path):
    write_report(tmp_path / "report.html", CONTENT)
    return (tmp_path / "report.html").read_text("utf-8")


def test_every_text_is_escaped(page):
    assert "<script" not in page
    assert "$" not in page.replace("$title", "")
    for word in (
        "title",
        "headline",
        "protocol",
        "m",
        "what",
        "why",
        "hnsw",
        "method",
        "user",
        "taken",
        "recalled",
        "machine",
        "two cores",
    ):
        assert f"{word} &lt;script&gt;" in page, word


def test_the_page_stands_alone_and_is_well_formed(page):
    assert not re.search(r"(src|href)=|@import|url\(|https?://", page)
    parser = Balance()
    parser.feed(page)
    assert parser.open == []


def test_it_says_what_it_measured(page):
    excluded, included = page.index("seen items excluded"), page.index("seen items included")
    assert excluded < page.index("1.000</strong>") < included < page.index(">.377<")
    for text in (">1,234<", ">.987<", ">.650<", ">12.500<", ">2,000<", ">default<", "ANN recall@100", "over k"):
        assert text in page, text
    assert page.count("<figure") == 2
    assert "✓" in page


def test_what_is_missing_is_left_out(tmp_path):
    bare = replace(CONTENT, dropped=(), ann=(), learning_curve="", recall_over_k="", examples=(), environment={})
    write_report(tmp_path / "report.html", bare)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "every user, item and held-out interaction was judged" in page
    for heading in ("Plots", "Examples", "Environment", "ANN recall and latency"):
        assert f"<h2>{heading}" not in page


def test_an_empty_report_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="at least one model"):
        write_report(tmp_path / "report.html", replace(CONTENT, models={}))
    with pytest.raises(ConfigError, match="does not exist"):
        write_report(tmp_path / "nowhere" / "report.html", CONTENT)
