"""Progress: lines of a log with rate and time left, and where they go."""

import logging

import pytest

from vecall import progress
from vecall.progress import LOG_INTERVAL_SECONDS, ProgressLog, format_duration, format_pace


class Clock:
    """Clock that a test turns by hand."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_log_has_a_line_every_30_seconds_and_the_duration():
    lines, clock = [], Clock()
    with progress.report_to(ProgressLog(lines.append, clock)), progress.track("epoch 1", 10_000) as advance:
        for _ in range(640):
            clock.now += 0.125
            advance(10)
        clock.now += 100
        advance(3600, "resting")
    assert lines == [
        "epoch 1: 2,400 of 10,000 (24 %), 80/s, 95 s left",
        "epoch 1: 4,800 of 10,000 (48 %), 80/s, 65 s left",
        "epoch 1: 10,000 of 10,000 (100 %), 43/s, resting",
        "epoch 1: 10,000 of 10,000 (100 %) in 3 min",
    ]


def test_announced_line_is_written_at_once_and_without_a_listener_logged(caplog):
    lines = []
    with progress.report_to(ProgressLog(lines.append)), progress.track("long", 2):
        progress.announce("9 items")
    assert lines == ["9 items"]
    with caplog.at_level(logging.INFO, logger="vecall"):
        progress.announce("8 items")
    with progress.report_to(None):
        progress.announce("7 items")
    assert [record.message for record in caplog.records] == ["8 items"]


def test_short_task_logs_nothing():
    lines, clock = [], Clock()
    with progress.report_to(ProgressLog(lines.append, clock)), progress.track("short", 2) as advance:
        clock.now += LOG_INTERVAL_SECONDS - 1
        advance(2)
    assert lines == []


def test_nested_and_aborted_tasks_log_under_their_names():
    lines, clock = [], Clock()

    def run_and_abort():
        with progress.track("inner", 4) as advance:
            clock.now += 40
            advance(1)
            raise KeyboardInterrupt

    with progress.report_to(ProgressLog(lines.append, clock)), progress.track("outer", 4) as advance:
        with pytest.raises(KeyboardInterrupt):
            run_and_abort()
        advance(1)
    assert [line.split(":")[0] for line in lines] == ["inner", "inner", "outer", "outer"]
    assert lines[0] == "inner: 1 of 4 (25 %), 40.0 s each, 2 min left"
    assert lines[1] == "inner: 1 of 4 (25 %) in 40 s"


def test_task_of_no_steps_logs_without_share_and_time_left():
    lines, clock = [], Clock()
    with progress.report_to(ProgressLog(lines.append, clock)), progress.track("empty", 0) as advance:
        clock.now += 31
        advance(0)
    assert lines == ["empty: 0 of 0", "empty: 0 of 0 in 31 s"]


def test_without_a_listener_progress_goes_to_the_logger(caplog, monkeypatch):
    monkeypatch.setattr(progress, "LOG_INTERVAL_SECONDS", 0.0)
    with caplog.at_level(logging.INFO, logger="vecall"), progress.track("quiet", 2) as advance:
        advance(1)
    assert caplog.messages[0].startswith("quiet: 1 of 2 (50 %), ")
    assert {record.levelno for record in caplog.records} == {logging.INFO}


def test_progress_sent_to_nobody_is_dropped(caplog, monkeypatch):
    monkeypatch.setattr(progress, "LOG_INTERVAL_SECONDS", 0.0)
    with caplog.at_level(logging.INFO, logger="vecall"), progress.report_to(None), progress.track("x", 1) as advance:
        advance(1)
    assert not caplog.messages


@pytest.mark.parametrize(
    ("rate", "remaining", "text"),
    [
        (1234.5, 10, "1,234/s, 0 s left"),
        (9.96, 0, "10.0/s"),
        (2.5, 250, "2.5/s, 2 min left"),
        (0.25, 1, "4.0 s each, 4 s left"),
        (100.0, 3_600_000, "100/s, 10.0 h left"),
    ],
)
def test_pace_is_a_rate_and_the_time_left(rate, remaining, text):
    assert format_pace(rate, remaining) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (99, "99 s"), (100, "2 min"), (5999, "100 min"), (6000, "1.7 h")]
)
def test_duration_has_two_digits_or_so(seconds, text):
    assert format_duration(seconds) == text
