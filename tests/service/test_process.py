"""`vecall serve` as a process: started, asked, ended, killed."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.client import HTTPException
from pathlib import Path

import pytest

NEW = {"where": [{"field": "year", "op": "gte", "value": 5000}], "user_id": "user-1", "k": 1000, "exclude_seen": False}


def test_it_loads_no_torch_and_drains_on_sigterm(shop, process_of):
    served = process_of(shop, "--log-requests")
    status, answer = served.request("/v1/recall", {"user_id": "user-1", "k": 3})
    assert (status, answer["release"], len(answer["ids"])) == (200, "tiny", 3)
    maps = Path(f"/proc/{served.process.pid}/maps").read_text()
    assert "onnxruntime" in maps
    assert "libtorch" not in maps
    body = b'{"user_id": "user-1", "k": 3}'
    with socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2])), timeout=20) as begun:
        begun.sendall(b"POST /v1/recall HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body))
        begun.sendall(body[:5])
        time.sleep(0.3)
        served.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        begun.sendall(body[5:])
        assert begun.recv(100).startswith(b"HTTP/1.1 200 OK")
    assert served.process.wait(20) in (0, -signal.SIGTERM)
    assert "Application shutdown complete" in served.read_log()
    assert "user-1" not in served.read_log()
    assert '"endpoint": "/v1/recall"' in served.read_log()


def test_a_second_writer_is_refused_with_the_first_one_s_pid(shop, process_of):
    served = process_of(shop)
    command = [sys.executable, "-m", "vecall", "serve", "--store", str(shop), "--port", "0"]
    second = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert second.returncode == 1
    assert str(served.process.pid) in second.stderr


def test_who_only_reads_sees_what_the_writer_has_acknowledged(shop, process_of):
    writer, reader = process_of(shop), process_of(shop, "--read-only")
    assert writer.request("/v1/items", {"items": [{"id": "new", "fields": {"year": 5000}}]})[0] == 200
    assert reader.request("/v1/recall", NEW)[1]["ids"] == ["new"]
    assert writer.request("/v1/items/delete", {"ids": ["new"]})[0] == 200
    assert reader.request("/v1/recall", NEW)[1]["ids"] == []
    assert reader.request("/v1/items", {"items": []})[0] == 403


@pytest.mark.parametrize("processes", [1, 2])
def test_a_port_that_is_taken_is_told_in_a_line(shop, processes):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "vecall", "serve", "--store", str(shop)]
        command += ["--port", port, "--workers", str(processes)]
        refused = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith("vecall: ")
    assert f"--port {port}: Address already in use; choose another" in refused.stderr
    assert "terminate called" not in refused.stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--host", "0.0.0.0"], "VECALL_READ_KEY"),
        (["--port", "99999"], "port"),
        (["--settings", "none.toml"], "none.toml"),
        (["--keys", "none.toml"], "none.toml"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(shop, options, told):
    command = [sys.executable, "-m", "vecall", "serve", "--store", str(shop), *options]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1
    assert told in refused.stderr
    assert "Traceback" not in refused.stderr


def test_with_keys_it_may_leave_the_machine(shop, process_of):
    keys = {"VECALL_READ_KEY": "read-key-0123456789"}
    served = process_of(shop, "--host", "0.0.0.0", environment=os.environ | keys)
    assert served.request("/v1/recall", {"user_id": "user-1"})[0] == 401
    assert served.request("/v1/recall", {"user_id": "user-1"}, Authorization="Bearer read-key-0123456789")[0] == 200
    assert "read-key" not in served.read_log()


def test_killed_under_load_nothing_acknowledged_is_lost(shop, process_of):
    acknowledged: list[str] = []
    for round_ in range(3):
        served, ends = process_of(shop), threading.Event()

        def write(number, served=served, round_=round_, ends=ends):
            for count in range(10_000):
                one = f"new-{round_}-{number}-{count}"
                try:
                    item = {"id": one, "fields": {"year": 5000, "type": "kind 1"}}
                    status, _ = served.request("/v1/items", {"items": [item]})
                    served.request("/v1/recall", {"user_id": "user-1"})
                except (OSError, HTTPException):
                    return
                if status == 200:
                    acknowledged.append(one)
                if ends.is_set():
                    return

        writers = [threading.Thread(target=write, args=(number,)) for number in range(3)]
        for writer in writers:
            writer.start()
        time.sleep(0.7)
        served.process.kill()
        ends.set()
        for writer in writers:
            writer.join()
        served.process.wait()
    assert len(acknowledged) > 20
    served = process_of(shop)
    status, answer = served.request("/v1/recall", NEW)
    assert status == 200
    assert set(answer["ids"]) >= set(acknowledged)
