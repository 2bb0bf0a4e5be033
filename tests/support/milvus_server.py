"""A real Milvus server for tests, from PyPI's package `milvus`, in the network namespace of the test process."""

import ctypes
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

from support.network_namespace import OWN, VARIABLE

TOKEN = "root:Milvus"
PYTHON_VARIABLE = "VECALL_MILVUS_SERVER_PYTHON"  # of the environment with the package `milvus`
_LAUNCHER = Path(__file__).parent / "milvus_launcher.py"
_HEALTH_URL = "http://127.0.0.1:9091/healthz"
_START_TIMEOUT_SECONDS = 120
_PR_SET_PDEATHSIG = 1


class MilvusServer:
    """A server process on 127.0.0.1 with login; kill, freeze and start it at will.

    Attributes:
        uri: its address, the same after a restart.
    """

    def __init__(self, directory):
        self._directory, self._process = Path(directory), None
        self.start()
        self.uri = f"http://127.0.0.1:{(self._directory / 'port').read_text()}"

    @property
    def pid(self):
        return self._process.pid

    def start(self, wait=True):
        """Start it; with `wait`, return once it is healthy, which does not mean that collections are loaded."""
        python = Path(os.environ[PYTHON_VARIABLE]).absolute()
        command = [python, _LAUNCHER, self._directory, python.parents[1] / "server"]
        with (self._directory / "log").open("a") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, preexec_fn=_die_with_parent
            )
        if wait:
            self.wait_until_healthy()

    def wait_until_healthy(self):
        deadline = time.monotonic() + _START_TIMEOUT_SECONDS
        while not _is_healthy():
            assert self._process.poll() is None, self.read_log()
            assert time.monotonic() < deadline, self.read_log()
            time.sleep(0.2)

    def kill(self):
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(30)

    def freeze(self):
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self):
        os.kill(self._process.pid, signal.SIGCONT)

    def read_log(self):
        return (self._directory / "log").read_text()[-3000:]

    def read_rss_bytes(self):
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return 1024 * int(status.split("VmRSS:")[1].split()[0])


def start_server(directory):
    """Start a server, or skip the test where that is not allowed."""
    namespace = os.environ.get(VARIABLE, "the tests do not run in a network namespace of their own: run `make milvus`")
    if namespace != OWN:
        pytest.skip(namespace)
    return MilvusServer(directory)


def _die_with_parent():
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _is_healthy():
    try:
        with urllib.request.urlopen(_HEALTH_URL, timeout=2) as response:
            return b"OK" in response.read()
    except (OSError, urllib.error.URLError):
        return False
