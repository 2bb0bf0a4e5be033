import errno
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from vecall.errors import ConfigError
from vecall.evaluation.channel_table import ChannelTable
from vecall.evaluation.report import (
    ExampleUser,
    FindingRow,
    ReportContent,
    SelectionRow,
    SelectionSection,
    write_report,
)
from vecall.evaluation.segment_tables import SegmentTable
from vecall.runtime import durable_files

MARKUP = "<script>alert('{{ content.title }}')</script> & \"co\""
METRICS = {"recall@10": 0.1, "recall@100": 0.431, "ndcg@10": 0.05, "coverage@10": 0.25}
CONTENT = ReportContent(
    title=f"title {MARKUP}",
    headline=f"headline {MARKUP}",
    comparison=f"comparison {MARKUP}",
    advice=f"advice {MARKUP}",
    segment_tables=(
        SegmentTable(
            f"segment {MARKUP}",
            (f"recall, m {MARKUP}", "ndcg@10, m"),
            ((f"bucket {MARKUP}", 4321, (0.25, 0.5)), ("empty", 0, (None, None))),
        ),
    ),
    protocol=(f"protocol {MARKUP}",),
    models={
        "model": {"seen_excluded": METRICS, "seen_included": METRICS | {"recall@100": 0.377}},
        f"m {MARKUP}": {"seen_excluded": METRICS | {"recall@100": 1.0}, "seen_included": METRICS},
    },
    dropped=((f"what {MARKUP}", 1234, f"why {MARKUP}"),),
    ann_rows=(
        {
            "k": 100,
            "recall": 0.9871,
            "recall_ci95": 0.002,
            "p50_ms": 0.65,
            "p99_ms": 12.5,
            "queries": 2000,
            "effort": None,
            "engine": f"hnsw {MARKUP}",
        },
    ),
    ann_method=f"method {MARKUP}",
    channel_table=ChannelTable(
        "channels",
        (f"column {MARKUP}",),
        ((f"channel {MARKUP}", (f"cell {MARKUP}",)), ("similar", ("0.125",))),
        f"asked {MARKUP}",
    ),
    learning_curve_svg="<svg><title>curve</title></svg>",
    recall_over_k_svg="<svg><title>over k</title></svg>",
    examples=(ExampleUser(f"user {MARKUP}", (f"history {MARKUP}",), (f"recalled {MARKUP}", "other")),),
    environment={f"machine {MARKUP}": f"two cores {MARKUP}"},
    findings=(FindingRow("error", f"check {MARKUP}", f"found {MARKUP}", f"change {MARKUP}"),),
    selection=SelectionSection(
        preset=f"tried {MARKUP}",
        reason=f"reason {MARKUP}",
        recall_key="recall@100",
        rows=(
            SelectionRow("set", 0.29, 0.025, 0.29, 0.024, 1234, 4.2),
            SelectionRow(f"tried {MARKUP}", 0.349, 0.0454, 0.261, 0.025, 1234, 13.1),
            SelectionRow("popularity", 0.123),
        ),
        left_out=((f"sequence {MARKUP}", f"problem {MARKUP}"),),
    ),
)


class TagBalanceParser(HTMLParser):
    """Keeps the stack of tags that are open."""

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


def test_every_text_is_escaped_and_not_a_template(page):
    assert "<script" not in page
    for word in (
        "title",
        "headline",
        "comparison",
        "advice",
        "segment",
        "bucket",
        "protocol",
        "m",
        "what",
        "why",
        "hnsw",
        "method",
        "user",
        "history",
        "recalled",
        "machine",
        "two cores",
        "check",
        "found",
        "change",
        "tried",
        "reason",
        "sequence",
        "problem",
        "column",
        "channel",
        "cell",
        "asked",
    ):
        assert f"{word} &lt;script&gt;alert(&#39;{{{{ content.title }}}}" in page, word


def test_page_is_self_contained_and_well_formed(page):
    assert not re.search(r"(src|href)=|@import|url\(|https?://", page)
    parser = TagBalanceParser()
    parser.feed(page)
    assert parser.open == []


def test_page_shows_metrics_counts_and_plots(page):
    excluded, included = page.index("seen items excluded"), page.index("seen items included")
    assert excluded < page.index("1.000</strong>") < included < page.index(">0.377<")
    for text in (">1,234<", ">0.987<", ">0.650<", ">12.500<", ">2,000<", ">default<", "ANN recall@100", "over k"):
        assert text in page, text
    assert page.count("<figure") == 2
    assert "final list, best first" in page


def test_sections_without_content_are_omitted(tmp_path):
    bare = replace(
        CONTENT,
        comparison="",
        segment_tables=(),
        dropped=(),
        ann_rows=(),
        learning_curve_svg="",
        recall_over_k_svg="",
        examples=(),
        environment={},
    )
    write_report(tmp_path / "report.html", bare)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "every user, item and held-out interaction was evaluated" in page
    for heading in ("Metrics by segment", "Plots", "Examples", "Environment", "ANN recall and latency"):
        assert f"<h2>{heading}" not in page


def test_report_without_models_or_directory_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="at least one model"):
        write_report(tmp_path / "report.html", replace(CONTENT, models={}))
    with pytest.raises(ConfigError, match="does not exist"):
        write_report(tmp_path / "nowhere" / "report.html", CONTENT)


def test_report_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("before", encoding="utf-8")

    def fail(path: object, content: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable_files, "write_and_fsync", fail)
    with pytest.raises(ConfigError, match="No space left on device"):
        write_report(path, CONTENT)
    assert path.read_text(encoding="utf-8") == "before"


def test_every_number_has_its_leading_zero(page):
    text = re.sub(r"<style>.*?</style>|<svg.*?</svg>|<[^>]*>", " ", page, flags=re.DOTALL)
    assert re.findall(r"(?<![\w.])-?\.\d+", text) == []


def test_best_value_of_a_column_is_highlighted(page):
    table = page[page.index("seen items excluded") : page.index("seen items included")]
    assert re.findall(r"<strong>([^<]*)</strong>", table) == [
        "0.100",
        "0.050",
        "0.250",
        "0.100",
        "1.000",
        "0.050",
        "0.250",
    ]
    assert table.count("<td>0.431</td>") == 1


def test_trials_stand_beside_baselines_and_the_choice_is_highlighted(page, tmp_path):
    section = page[page.index("<h2>Choice of the preset") : page.index("<h2>Excluded")]
    assert re.findall(r"<td><strong>([^<]*)</strong>", section) == ["0.349", "0.045"]
    for text in (
        "<td>1,234</td>",
        "<td>13</td>",
        "<td>0.123</td>\n<td>–</td>",
        "recall@100, shuffled",
        "was not tried",
    ):
        assert text in section, text
    write_report(tmp_path / "named.html", replace(CONTENT, selection=None))
    assert "Choice of the preset" not in (tmp_path / "named.html").read_text("utf-8")


@pytest.mark.parametrize(("findings", "text"), [(None, None), ((), "No errors or warnings.")])
def test_section_of_findings_is_there_only_if_doctor_was_asked(tmp_path, findings, text):
    write_report(tmp_path / "report.html", replace(CONTENT, findings=findings))
    page = (tmp_path / "report.html").read_text("utf-8")
    assert ("Findings of vecall doctor" in page) == (findings is not None)
    assert text is None or text in page
