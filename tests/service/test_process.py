"""`vecall serve` as a process: start, requests, shutdown, kill."""

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

QUERY_NEW_ITEMS = {
    "where": [{"field": "year", "op": "gte", "value": 5000}],
    "user_id": "user-1",
    "k": 1000,
    "exclude_seen": False,
}


def test_server_loads_no_torch_and_drains_on_sigterm(shop, start_server):
    server = start_server(shop, "--log-requests")
    status, content = server.request("/v1/recall", {"user_id": "user-1", "k": 3})
    assert (status, content["release"], len(content["ids"])) == (200, "tiny", 3)
    maps = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "onnxruntime" in maps
    assert "libtorch" not in maps
    body = b'{"user_id": "user-1", "k": 3}'
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=20) as connection:
        connection.sendall(b"POST /v1/recall HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body))
        connection.sendall(body[:5])
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        connection.sendall(body[5:])
        assert connection.recv(100).startswith(b"HTTP/1.1 200 OK")
    assert server.process.wait(20) in (0, -signal.SIGTERM)
    assert "Application shutdown complete" in server.read_log()
    assert "user-1" not in server.read_log()
    assert '"endpoint": "/v1/recall"' in server.read_log()


def test_second_writer_fails_with_the_pid_of_the_first(shop, start_server):
    server = start_server(shop)
    command = [sys.executable, "-m", "vecall", "serve", "--store", str(shop), "--port", "0"]
    second = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert second.returncode == 1
    assert str(server.process.pid) in second.stderr


def test_read_only_server_serves_acknowledged_writes(shop, start_server):
    writer, reader = start_server(shop), start_server(shop, "--read-only")
    assert writer.request("/v1/items", {"items": [{"id": "new", "fields": {"year": 5000}}]})[0] == 200
    assert reader.request("/v1/recall", QUERY_NEW_ITEMS)[1]["ids"] == ["new"]
    assert writer.request("/v1/items/delete", {"ids": ["new"]})[0] == 200
    assert reader.request("/v1/recall", QUERY_NEW_ITEMS)[1]["ids"] == []
    assert reader.request("/v1/items", {"items": []})[0] == 403


@pytest.mark.parametrize("workers", [1, 2])
def test_taken_port_is_a_one_line_error(shop, workers):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = str(listener.getsockname()[1])
        command = [sys.executable, "-m", "vecall", "serve", "--store", str(shop)]
        command += ["--port", port, "--workers", str(workers)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("vecall: ")
    assert f"--port {port}: Address already in use; choose another" in result.stderr
    assert "terminate called" not in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "VECALL_READ_KEY"),
        (["--port", "99999"], "port"),
        (["--settings", "none.toml"], "none.toml"),
        (["--keys", "none.toml"], "none.toml"),
    ],
)
def test_invalid_option_is_a_one_line_error(shop, options, message):
    command = [sys.executable, "-m", "vecall", "serve", "--store", str(shop), *options]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_hangup_ends_the_service_as_sigterm_does(shop, start_server):
    server = start_server(shop)
    server.process.send_signal(signal.SIGHUP)
    server.process.wait(30)
    assert "Application shutdown complete" in server.read_log()


def test_keys_allow_a_non_loopback_host(shop, start_server):
    keys = {"VECALL_READ_KEY": "read-key-0123456789"}
    server = start_server(shop, "--host", "0.0.0.0", environment=os.environ | keys)
    assert server.request("/v1/recall", {"user_id": "user-1"})[0] == 401
    assert server.request("/v1/recall", {"user_id": "user-1"}, Authorization="Bearer read-key-0123456789")[0] == 200
    assert "read-key" not in server.read_log()


def test_kill_under_load_loses_no_acknowledged_write(shop, start_server):
    acknowledged: list[str] = []
    for round_ in range(3):
        server, stop_event = start_server(shop), threading.Event()

        def write(number, server=server, round_=round_, stop_event=stop_event):
            for count in range(10_000):
                item_id = f"new-{round_}-{number}-{count}"
                try:
                    item = {"id": item_id, "fields": {"year": 5000, "type": "kind 1"}}
                    status, _ = server.request("/v1/items", {"items": [item]})
                    server.request("/v1/recall", {"user_id": "user-1"})
                except (OSError, HTTPException):
                    return
                if status == 200:
                    acknowledged.append(item_id)
                if stop_event.is_set():
                    return

        writers = [threading.Thread(target=write, args=(number,)) for number in range(3)]
        for writer in writers:
            writer.start()
        time.sleep(0.7)
        server.process.kill()
        stop_event.set()
        for writer in writers:
            writer.join()
        server.process.wait()
    assert len(acknowledged) > 20
    server = start_server(shop)
    status, content = server.request("/v1/recall", QUERY_NEW_ITEMS)
    assert status == 200
    assert set(content["ids"]) >= set(acknowledged)
