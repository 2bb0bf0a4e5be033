"""Serving a store in tests: in this process by a test client, or in a process of its own."""

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

JSON_HEADERS = {"Content-Type": "application/json"}


def wait_until(condition, timeout_seconds=20.0):
    """Poll until a condition holds."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)


@contextmanager
def open_test_client(store, keys=ApiKeys(), **settings):  # noqa: B008 - frozen
    """A test client of a ready application; every recall is sampled for online ANN recall."""
    service = RecallService.open(store, ServeSettings(**{"poll_seconds": 0.05, "recall_sample_rate": 1.0} | settings))
    with TestClient(create_app(service, keys), base_url="http://localhost") as client:
        client.service = service
        wait_until(lambda: service.not_ready_reason is None)
        yield client


class ServerProcess:
    """A running `vecall serve`.

    Attributes:
        process: the process.
        url: address of the service, on a free port.
    """

    def __init__(self, store, log_path, *options, environment=None):
        command = [sys.executable, "-m", "vecall", "serve", "--store", str(store), "--port", "0", *options]
        with log_path.open("w") as log:
            self.process = subprocess.Popen(command, stderr=log, stdout=log, env=environment)
        self._log_path = log_path
        wait_until(self._has_started, 60)
        self.url = "http://127.0.0.1:" + re.search(r"running on http://[^ ]*?:(\d+)", self.read_log()).group(1)
        wait_until(self._is_ready, 60)

    def read_log(self):
        return self._log_path.read_text()

    def _has_started(self):
        assert self.process.poll() is None, self.read_log()
        return "running on" in self.read_log()

    def _is_ready(self):
        assert self.process.poll() is None, self.read_log()
        try:
            return self.request("/readyz")[0] == 200
        except OSError:  # workers listen only once they are ready
            return False

    def request(self, path, body=None, **headers):
        """Send a request with an optional JSON body; returns status and parsed body."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, JSON_HEADERS | headers)
        try:
            with urllib.request.urlopen(request, timeout=20) as response:
                return response.status, json.loads(response.read() or b"null")
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"null")

    def drain(self):
        """Stop it as an operator does, so that its workers have released the store."""
        self.process.terminate()
        self.process.wait(60)

    def stop(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(20)
