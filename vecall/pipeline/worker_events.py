"""Progress and log records of a training process, sent through a pipe to the process that started it."""

import json
import logging
import os
import select
import threading
import time
from contextlib import ExitStack
from typing import BinaryIO

from vecall import progress
from vecall.progress import ProgressCallback

_READ_BYTES = 2**16


class EventSender(logging.Handler):
    """Log handler and progress listener that writes each event as a line of JSON.

    Args:
        pipe: Unbuffered writing end.
    """

    def __init__(self, pipe: BinaryIO) -> None:
        super().__init__()
        self._pipe = pipe
        self._write_lock = threading.Lock()

    def emit(self, record: logging.LogRecord) -> None:
        """Send a log record."""
        self._send("log", record.name, record.levelno, record.getMessage())

    def start_task(self, task: str, total: int) -> ProgressCallback:
        """Send the start of a task; the callback sends its steps."""
        self._send("start", task, total)

        def advance(steps: int = 1, note: str = "") -> None:
            self._send("advance", steps, note)

        return advance

    def stop_task(self) -> None:
        """Send the end of the most recent task."""
        self._send("stop")

    def write_line(self, text: str) -> None:
        """Send a line of text."""
        self._send("line", text)

    def _send(self, *event: str | int) -> None:
        with self._write_lock:
            self._pipe.write(json.dumps(event).encode() + b"\n")


class EventReceiver:
    """Reports the events of a process to the loggers and the progress listener of this one.

    Args:
        descriptor: Reading end of the pipe; `close` closes it.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._is_at_end = False
        self._incomplete_line = b""
        self._tasks: list[tuple[ExitStack, ProgressCallback]] = []

    def receive(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for events and report them; return whether there were any."""
        if self._is_at_end:
            time.sleep(timeout)
            return False
        if not select.select([self._descriptor], [], [], timeout)[0]:
            return False
        data = os.read(self._descriptor, _READ_BYTES)
        self._is_at_end = not data
        *lines, self._incomplete_line = (self._incomplete_line + data).split(b"\n")
        for line in lines:
            self._report(json.loads(line))
        return not self._is_at_end

    def _report(self, event: list[str | int]) -> None:
        match event:
            case ["log", str(name), int(level), str(message)]:
                logging.getLogger(name).log(level, "%s", message)
            case ["start", str(task), int(total)]:
                stack = ExitStack()
                self._tasks.append((stack, stack.enter_context(progress.track(task, total))))
            case ["advance", int(steps), str(note)]:
                self._tasks[-1][1](steps, note)
            case ["stop"]:
                self._tasks.pop()[0].close()
            case ["line", str(text)]:
                progress.announce(text)

    def close(self) -> None:
        """Close the pipe, and stop the tasks of a process that ended before them."""
        os.close(self._descriptor)
        while self._tasks:
            self._tasks.pop()[0].close()
