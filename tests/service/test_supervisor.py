"""Several workers on one port: whichever a connection reaches, it answers like a single process."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from functools import partial
from pathlib import Path

import pytest
from support.server import wait_until

from vecall.errors import ConfigError, LockedError
from vecall.release.file_lock import file_lock
from vecall.service import supervisor
from vecall.service.metrics.multiprocess import WorkerPeers
from vecall.service.server_config import bind_socket
from vecall.service.settings import ServeSettings

QUERY_NEW_ITEMS = {
    "where": [{"field": "year", "op": "gte", "value": 5000}],
    "user_id": "user-1",
    "k": 1000,
    "exclude_seen": False,
}


def get_worker_pids(parent):
    """Process ids of the workers; multiprocessing starts a resource tracker, too."""
    pids = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(pid) for pid in pids if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def get_answering_workers(server):
    """Ids of the workers that have answered recalls, according to the metrics."""
    with urllib.request.urlopen(server.url + "/metrics", timeout=20) as response:
        metrics = response.read().decode()
    return set(re.findall(r'vecall_http_requests_total{endpoint="/v1/recall",status="200",worker="(\d+)"}', metrics))


@pytest.fixture
def two(shop, start_server):
    """A service of two workers."""
    server = start_server(shop, "--workers", "2")
    wait_until(lambda: server.read_log().count("Application startup complete") == 2, 60)
    return server


def test_every_worker_serves_writes_acknowledged_by_another(two):
    """Each request opens a new connection."""
    for number in range(20):
        status, response = two.request("/v1/items", {"items": [{"id": f"new-{number}", "fields": {"year": 5000}}]})
        assert (status, response["seq"]) == (200, 2 * number + 1)
        assert f"new-{number}" in two.request("/v1/recall", QUERY_NEW_ITEMS)[1]["ids"]
        if number % 2:
            assert two.request("/v1/items/delete", {"ids": [f"new-{number}"]})[1]["deleted"] == 1
        else:
            assert two.request("/v1/items/delete", {"ids": ["nothing"]})[1]["deleted"] == 0
        assert (f"new-{number}" in two.request("/v1/recall", QUERY_NEW_ITEMS)[1]["ids"]) is (number % 2 == 0)
    assert sorted(two.request("/v1/recall", QUERY_NEW_ITEMS)[1]["ids"]) == sorted(
        f"new-{number}" for number in range(0, 20, 2)
    )
    wait_until(lambda: get_answering_workers(two) == {"0", "1"})


def test_concurrent_writes_are_all_served(two):
    def write(number):
        for count in range(10):
            item = {"id": f"new-{number}-{count}", "fields": {"year": 5000}}
            assert two.request("/v1/items", {"items": [item]})[0] == 200

    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    for _ in range(6):
        assert len(two.request("/v1/recall", QUERY_NEW_ITEMS)[1]["ids"]) == 40


def test_killed_worker_is_restarted_without_loss(two):
    assert two.request("/v1/items", {"items": [{"id": "new", "fields": {"year": 5000}}]})[0] == 200
    first_pids = get_worker_pids(two.process.pid)
    assert len(first_pids) == 2
    os.kill(first_pids[0], signal.SIGKILL)
    wait_until(lambda: two.read_log().count("Application startup complete") == 3, 60)
    os.kill(first_pids[1], signal.SIGKILL)
    wait_until(lambda: two.read_log().count("restarting it") == 2)  # until then connections may still reach it
    for _ in range(10):
        assert two.request("/v1/recall", QUERY_NEW_ITEMS)[1]["ids"] == ["new"]
    assert not set(first_pids) & set(get_worker_pids(two.process.pid))


def make_supervisor(directory):
    return supervisor._Supervisor(ServeSettings(), directory, partial(int), "http://localhost:1")


def test_start_is_remembered_without_its_marker(tmp_path):
    """Cleaners of temporary directories remove files that are ten days old."""
    supervised = make_supervisor(tmp_path)
    assert not supervised._check_started()
    (tmp_path / "started").touch()
    assert supervised._check_started()
    (tmp_path / "started").unlink()
    assert supervised._check_started()


def test_all_workers_switch_to_the_release_activated_by_one(shop, publish_release, two):
    publish_release(shop, "next", activate=False)
    assert two.request("/v1/items", {"items": [{"id": "new", "fields": {"year": 5000}}]})[0] == 200
    assert two.request("/v1/releases/activate", {"name": "next"})[1] == {"release": "next", "previous": "tiny"}

    def get_served_releases():
        return {two.request("/v1/recall", QUERY_NEW_ITEMS)[1]["release"] for _ in range(12)}

    wait_until(lambda: get_served_releases() == {"next"})
    assert two.request("/v1/recall", QUERY_NEW_ITEMS)[1]["ids"] == ["new"]


def test_workers_exit_when_the_supervisor_is_killed(shop, two):
    pids = get_worker_pids(two.process.pid)
    two.process.kill()
    two.process.wait()
    with pytest.raises(LockedError), file_lock(shop / "writer.lock", timeout=0):
        pass  # held until the last worker has exited

    def has_exited(pid):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"

    wait_until(lambda: all(map(has_exited, pids)))
    with file_lock(shop / "writer.lock", timeout=5):
        pass


def test_hangup_of_all_processes_stops_them_as_sigterm_does(two):
    for pid in [two.process.pid, *get_worker_pids(two.process.pid)]:  # as a terminal does that is closed
        os.kill(pid, signal.SIGHUP)
    assert two.process.wait(30) == 0
    assert two.read_log().count("Application shutdown complete") == 2


def test_interrupt_of_all_processes_stops_them_without_tracebacks(two):
    for pid in [two.process.pid, *get_worker_pids(two.process.pid)]:  # as a terminal does
        os.kill(pid, signal.SIGINT)
    assert two.process.wait(30) == 0
    assert "Traceback" not in two.read_log()
    assert two.read_log().count("Application shutdown complete") == 2


def test_interrupt_of_all_processes_while_they_start_leaves_no_traceback(shop):
    command = [sys.executable, "-m", "vecall", "serve", "--store", str(shop), "--port", "0", "--workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_until(lambda: len(get_worker_pids(process.pid)) == 2, 60)
    os.killpg(process.pid, signal.SIGINT)
    assert "Traceback" not in process.communicate(timeout=60)[1]
    assert process.returncode == 0


def test_reason_of_a_worker_that_cannot_serve_is_told(tmp_path):
    supervised = make_supervisor(tmp_path)
    assert "was killed by SIGKILL while it started" in supervised._describe_failure(0, -signal.SIGKILL)
    assert supervised._describe_failure(0, 1) == "cannot serve; see the log"
    (tmp_path / "0.error").write_text("no such file")
    assert supervised._describe_failure(0, 1) == "cannot serve: no such file"


def test_second_service_fails_with_the_pid_of_the_supervisor(shop, two):
    command = [sys.executable, "-m", "vecall", "serve", "--store", str(shop), "--port", "0"]
    second = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert second.returncode == 1
    assert str(two.process.pid) in second.stderr


def test_reserved_port_is_shared_only_by_own_workers():
    """Even before the first worker listens."""
    with supervisor._reserve_port("127.0.0.1", 0) as reserved:
        port = reserved.getsockname()[1]
        with pytest.raises(ConfigError, match=str(port)):
            supervisor._reserve_port("127.0.0.1", port)
        with (
            bind_socket("127.0.0.1", port, reuse_port=True) as first,
            bind_socket("127.0.0.1", port, reuse_port=True) as second,
        ):
            first.listen()
            second.listen()
            with pytest.raises(ConfigError, match=str(port)):
                supervisor._reserve_port("127.0.0.1", port)


def test_another_service_cannot_take_the_port(shop, two, tmp_path):
    shutil.copytree(shop / "releases", tmp_path / "other" / "releases")
    shutil.copy(shop / "CURRENT", tmp_path / "other")
    command = [sys.executable, "-m", "vecall", "serve", "--store", str(tmp_path / "other"), "--workers", "2"]
    port = two.url.rpartition(":")[2]
    second = subprocess.run([*command, "--port", port], capture_output=True, text=True, timeout=60)
    assert second.returncode == 1
    assert port in second.stderr
    assert "Traceback" not in second.stderr


def test_damaged_release_is_a_one_line_error(shop):
    index = next((shop / "releases" / "tiny").glob("*.faiss"))
    index.write_bytes(index.read_bytes()[:-1])
    command = [sys.executable, "-m", "vecall", "serve", "--store", str(shop), "--port", "0", "--workers", "2"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert re.match(f"vecall: worker . cannot serve: .*{re.escape(index.name)}", result.stderr.splitlines()[-1])
    assert "Traceback" not in result.stderr


def test_merged_metrics_are_grouped_by_name(tmp_path):
    first, second = WorkerPeers(tmp_path, 0), WorkerPeers(tmp_path, 1)
    text = b'# HELP a_total A.\n# TYPE a_total counter\na_total{x="1"} %d.0\n# HELP b B.\n# TYPE b gauge\nb 2.0\n'
    second.publish_metrics(text % 7)
    lines = first.merge_metrics(text % 5).decode().splitlines()
    assert lines == [
        "# HELP a_total A.",
        "# TYPE a_total counter",
        'a_total{worker="0",x="1"} 5.0',
        'a_total{worker="1",x="1"} 7.0',
        "# HELP b B.",
        "# TYPE b gauge",
        'b{worker="0"} 2.0',
        'b{worker="1"} 2.0',
    ]


def test_stale_metrics_of_a_worker_are_dropped(tmp_path):
    first, second = WorkerPeers(tmp_path, 0), WorkerPeers(tmp_path, 1)
    second.publish_metrics(b"b 2.0\n")
    os.utime(tmp_path / "1.metrics", (0, 0))
    assert 'worker="1"' not in first.merge_metrics(b"b 1.0\n").decode()
