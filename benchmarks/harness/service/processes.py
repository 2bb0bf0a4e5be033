"""What is measured, in processes of their own: the service, and the bare calls under it."""

import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

from harness.service.load import LoadResult


class ServerProcess:
    """`vecall serve`, while the `with` block runs."""

    def __init__(self, store: Path, *options: str) -> None:
        self._command = [sys.executable, "-m", "vecall", "serve", "--store", str(store), "--port", "0", *options]

    def __enter__(self) -> "ServerProcess":
        self._log_file = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(self._command, stderr=self._log_file, stdout=subprocess.DEVNULL)
        while not (found := re.search(r"running on http://[^ ]*?:(\d+)", self.read_log())):
            if self.process.poll() is not None:
                raise SystemExit(self.read_log())
            time.sleep(0.1)
        self.port = int(found.group(1))
        self._wait_until_ready()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(60)
        self._log_file.close()

    def read_log(self) -> str:
        self._log_file.seek(0)
        return self._log_file.read()

    def _wait_until_ready(self) -> None:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=10).close()
            except urllib.error.URLError:  # it does not listen yet, or is not ready
                time.sleep(0.1)
            else:
                return
        raise SystemExit("the service does not become ready")


class LowerBoundProcess:
    """`service_bare.py`, while the `with` block runs."""

    def __init__(self, store: Path) -> None:
        self._command = [sys.executable, str(Path(__file__).with_name("service_bare.py")), str(store)]

    def __enter__(self) -> "LowerBoundProcess":
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)  # it ends with its input

    def run_burst(self, seconds: float, *, rate: float | None = None) -> LoadResult:
        """One burst: one call after another, or at a rate."""
        if self._process.stdin is None or self._process.stdout is None:
            raise SystemExit("the bare calls were not begun")
        self._process.stdin.write(json.dumps({"seconds": seconds, "rate": rate}) + "\n")
        self._process.stdin.flush()
        told = json.loads(self._process.stdout.readline())
        return LoadResult(told["calls"], Counter({200: len(told["calls"])}), told["took"], told["cpu"])
