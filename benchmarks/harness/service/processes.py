"""Child processes that are measured: the service, and the lower bound of its latency."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

from harness.environment import make_child_environment
from harness.service.load import LoadResult

WORKER_COUNTS = tuple(sorted({1, os.cpu_count() or 1}))
_POLL_SECONDS = 0.1
_MAX_READINESS_POLLS = 600
_STOP_TIMEOUT_SECONDS = 60


class ServerProcess:
    """`vecall serve` on a free port, while the `with` block runs.

    Attributes:
        process: the process that was started; with several workers it supervises them.
        port: where the service listens.
    """

    def __init__(self, store: Path, *options: str) -> None:
        self._command = [sys.executable, "-m", "vecall", "serve", "--store", str(store), "--port", "0", *options]

    def __enter__(self) -> "ServerProcess":
        self._log_file = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            self._command, stderr=self._log_file, stdout=subprocess.DEVNULL, env=make_child_environment()
        )
        while not (match := re.search(r"running on http://[^ ]*?:(\d+)", self.read_log())):
            if self.process.poll() is not None:
                raise SystemExit(self.read_log())
            time.sleep(_POLL_SECONDS)
        self.port = int(match.group(1))
        self._wait_until_ready()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(_STOP_TIMEOUT_SECONDS)
        self._log_file.close()

    def read_log(self) -> str:
        """Return all that the service has logged so far."""
        self._log_file.seek(0)
        return self._log_file.read()

    def _wait_until_ready(self) -> None:
        for _ in range(_MAX_READINESS_POLLS):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=10).close()
            except urllib.error.URLError:  # it does not listen yet, or answers 503
                time.sleep(_POLL_SECONDS)
            else:
                return
        seconds = _MAX_READINESS_POLLS * _POLL_SECONDS
        raise SystemExit(
            f"the service on port {self.port} was not ready within {seconds:.0f} s:\n{self.read_log()[-2000:]}"
        )


class LowerBoundProcess:
    """`harness.service.lower_bound`, while the `with` block runs."""

    def __init__(self, store: Path) -> None:
        self._command = [sys.executable, "-m", "harness.service.lower_bound", str(store)]

    def __enter__(self) -> "LowerBoundProcess":
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=make_child_environment()
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=_STOP_TIMEOUT_SECONDS)  # closes its input, at whose end it exits

    def run_burst(self, seconds: float, *, rate: float | None = None) -> LoadResult:
        """Run calls for some seconds: one after another, or at a mean rate per second."""
        if self._process.stdin is None or self._process.stdout is None:
            raise SystemExit("the lower bound's process was not started: use it in a `with` block")
        self._process.stdin.write(json.dumps({"seconds": seconds, "rate": rate}) + "\n")
        self._process.stdin.flush()
        result = json.loads(self._process.stdout.readline())
        latencies = result["latencies_seconds"]
        return LoadResult(latencies, Counter({200: len(latencies)}), result["wall_seconds"], result["cpu_seconds"])
