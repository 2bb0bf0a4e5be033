"""A store being served, in this process and in one of its own."""

import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

from starlette.testclient import TestClient

from vecall.service.app import create_app
from vecall.service.auth import ApiKeys
from vecall.service.recall_service import RecallService
from vecall.service.settings import ServeSettings

JSON = {"Content-Type": "application/json"}


def eventually(told, seconds=20.0):
    """Wait until something is so."""
    ends = time.monotonic() + seconds
    while not told():
        assert time.monotonic() < ends, "it has not become so"
        time.sleep(0.01)


@contextmanager
def served(store, keys=ApiKeys(), **settings):  # noqa: B008 - frozen
    """A client of the application over a store, once it is ready."""
    serving = RecallService.open(store, ServeSettings(**{"poll_seconds": 0.05, "sample": 1.0} | settings))
    with TestClient(create_app(serving, keys), base_url="http://localhost") as client:
        client.serving = serving
        eventually(lambda: serving.not_ready_reason is None)
        yield client


class Process:
    """`vecall serve` in a process of its own."""

    def __init__(self, store, log, *options, environment=None):
        command = [sys.executable, "-m", "vecall", "serve", "--store", str(store), "--port", "0", *options]
        with log.open("w") as out:
            self.process = subprocess.Popen(command, stderr=out, stdout=out, env=environment)
        self._log = log
        eventually(self._has_begun, 60)
        self.url = "http://127.0.0.1:" + re.search(r"running on http://[^ ]*?:(\d+)", self.log()).group(1)
        eventually(self._is_ready, 60)

    def log(self):
        return self._log.read_text()

    def _has_begun(self):
        assert self.process.poll() is None, self.log()
        return "running on" in self.log()

    def _is_ready(self):
        assert self.process.poll() is None, self.log()
        try:
            return self.ask("/readyz")[0] == 200
        except OSError:  # of several processes none listens before it is ready
            return False

    def ask(self, path, body=None, **headers):
        """Status and content."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, JSON | headers)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"null")

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(20)
