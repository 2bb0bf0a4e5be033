"""Terminal output: progress as bars in a terminal, as lines elsewhere."""

import io

from rich.console import Console

from vecall import console, progress
from vecall.cli import output


def make_console(*, is_terminal):
    return Console(file=io.StringIO(), force_terminal=is_terminal, width=80, highlight=False)


def test_bar_shows_count_rate_and_duration_in_80_columns(monkeypatch):
    terminal = make_console(is_terminal=True)
    monkeypatch.setattr(console, "err", terminal)
    with progress.report_to(console.build_progress_listener()), progress.track("epoch 1", 39_062) as advance:
        for _ in range(2):
            advance(19_531)
    shown = terminal.file.getvalue()
    assert "39062/39062" in shown
    assert "/s, 0 s" in shown
    assert "…" not in shown


def test_log_file_gets_lines_without_control_characters(monkeypatch):
    log_file = make_console(is_terminal=False)
    monkeypatch.setattr(console, "err", log_file)
    monkeypatch.setattr(progress, "LOG_INTERVAL_SECONDS", 0.0)
    with progress.report_to(console.build_progress_listener()), progress.track("[epoch] 1", 4) as advance:
        advance(1)
    first, last = log_file.file.getvalue().splitlines()
    assert first.startswith("[epoch] 1: 1 of 4 (25 %), ")
    assert last == "[epoch] 1: 1 of 4 (25 %) in 0 s"


def test_announced_line_stands_above_the_bars_as_it_is(monkeypatch):
    terminal = make_console(is_terminal=True)
    monkeypatch.setattr(console, "err", terminal)
    with progress.report_to(console.build_progress_listener()), progress.track("epoch 1", 4):
        progress.announce("[9] items")
    assert "[9] items" in terminal.file.getvalue()


def test_results_are_printed_as_they_are(capsys, monkeypatch):
    """Ids, titles and paths may look like rich's markup, of which "[/x]" would even raise."""
    text = "runs/[bold]/[/x] :apple:"
    monkeypatch.setattr(console.out, "_width", 200)
    output.print_result({}, text, as_json=False)
    console.print_table(text, ["id"], [[text]])
    assert capsys.readouterr().out.count(text) == 3
