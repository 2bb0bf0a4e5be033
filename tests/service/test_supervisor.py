"""Several processes on one port: each connection may reach another one, and none must be able to tell."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest
from support.server import wait_until

from vecall.errors import ConfigError, LockedError
from vecall.release.file_lock import file_lock
from vecall.service import supervisor
from vecall.service.metrics.multiprocess import WorkerPeers
from vecall.service.server_config import bind_socket

NEW = {"where": [{"field": "year", "op": "gte", "value": 5000}], "user_id": "user-1", "k": 1000, "exclude_seen": False}


def children(parent):
    """Those that serve; multiprocessing starts one more that keeps order."""
    listed = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(one) for one in listed if b"spawn_main" in Path(f"/proc/{one}/cmdline").read_bytes()]


def answered_by(served):
    """The processes that told metrics of answers, by number."""
    with urllib.request.urlopen(served.url + "/metrics", timeout=20) as answer:
        told = answer.read().decode()
    return set(re.findall(r'vecall_requests_total{endpoint="/v1/recall",process="(\d+)",status="200"}', told))


@pytest.fixture
def two(shop, process_of):
    served = process_of(shop, "--workers", "2")
    wait_until(lambda: served.read_log().count("Application startup complete") == 2, 60)
    return served


def test_all_of_them_answer_and_whichever_is_asked_knows_what_was_acknowledged(two):
    """Each question is a connection of its own."""
    for number in range(20):
        status, written = two.request("/v1/items", {"items": [{"id": f"new-{number}", "fields": {"year": 5000}}]})
        assert (status, written["seq"]) == (200, 2 * number + 1)
        assert f"new-{number}" in two.request("/v1/recall", NEW)[1]["ids"]
        if number % 2:
            assert two.request("/v1/items/delete", {"ids": [f"new-{number}"]})[1]["deleted"] == 1
        else:
            assert two.request("/v1/items/delete", {"ids": ["nothing"]})[1]["deleted"] == 0
        assert (f"new-{number}" in two.request("/v1/recall", NEW)[1]["ids"]) is (number % 2 == 0)
    assert sorted(two.request("/v1/recall", NEW)[1]["ids"]) == sorted(f"new-{number}" for number in range(0, 20, 2))
    wait_until(lambda: answered_by(two) == {"0", "1"})


def test_writes_at_once_are_all_there(two):
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
        assert len(two.request("/v1/recall", NEW)[1]["ids"]) == 40


def test_one_that_is_killed_is_started_again_and_nothing_is_lost(two):
    assert two.request("/v1/items", {"items": [{"id": "new", "fields": {"year": 5000}}]})[0] == 200
    first = children(two.process.pid)
    assert len(first) == 2
    os.kill(first[0], signal.SIGKILL)
    wait_until(lambda: two.read_log().count("Application startup complete") == 3, 60)
    os.kill(first[1], signal.SIGKILL)
    wait_until(lambda: two.read_log().count("started again") == 2)  # until then it may have connections
    for _ in range(10):
        assert two.request("/v1/recall", NEW)[1]["ids"] == ["new"]
    assert not set(first) & set(children(two.process.pid))


def test_all_go_over_to_the_release_that_one_activates(shop, publish_more, two):
    publish_more(shop, "next", activate=False)
    assert two.request("/v1/items", {"items": [{"id": "new", "fields": {"year": 5000}}]})[0] == 200
    assert two.request("/v1/releases/activate", {"name": "next"})[1] == {"release": "next", "previous": "tiny"}

    def serving():
        return {two.request("/v1/recall", NEW)[1]["release"] for _ in range(12)}

    wait_until(lambda: serving() == {"next"})
    assert two.request("/v1/recall", NEW)[1]["ids"] == ["new"]


def test_none_of_them_outlives_their_parent(shop, two):
    begun = children(two.process.pid)
    two.process.kill()
    two.process.wait()
    with pytest.raises(LockedError), file_lock(shop / "writer.lock", timeout=0):
        pass  # until the last of them has ended, no other may write

    def gone(pid):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"

    wait_until(lambda: all(map(gone, begun)))
    with file_lock(shop / "writer.lock", timeout=5):
        pass


def test_they_end_when_they_are_told_to(two):
    two.process.send_signal(signal.SIGTERM)
    assert two.process.wait(30) == 0
    assert two.read_log().count("Application shutdown complete") == 2


def test_no_other_may_write_meanwhile(shop, two):
    command = [sys.executable, "-m", "vecall", "serve", "--store", str(shop), "--port", "0"]
    second = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert second.returncode == 1
    assert str(two.process.pid) in second.stderr


def test_a_port_that_is_reserved_is_shared_by_these_processes_alone():
    """Before the first of them listens, too."""
    with supervisor._reserve_port("127.0.0.1", 0) as reserved:
        port = reserved.getsockname()[1]
        with pytest.raises(ConfigError, match=str(port)):
            supervisor._reserve_port("127.0.0.1", port)
        with (
            bind_socket("127.0.0.1", port, reuse_port=True) as one,
            bind_socket("127.0.0.1", port, reuse_port=True) as other,
        ):
            one.listen()
            other.listen()
            with pytest.raises(ConfigError, match=str(port)):
                supervisor._reserve_port("127.0.0.1", port)


def test_they_share_their_port_with_no_others(shop, two, tmp_path):
    shutil.copytree(shop / "releases", tmp_path / "other" / "releases")
    shutil.copy(shop / "CURRENT", tmp_path / "other")
    command = [sys.executable, "-m", "vecall", "serve", "--store", str(tmp_path / "other"), "--workers", "2"]
    port = two.url.rpartition(":")[2]
    second = subprocess.run([*command, "--port", port], capture_output=True, text=True, timeout=60)
    assert second.returncode == 1
    assert port in second.stderr
    assert "Traceback" not in second.stderr


def test_what_they_cannot_serve_is_told(shop):
    index = next((shop / "releases" / "tiny").glob("*.faiss"))
    index.write_bytes(index.read_bytes()[:-1])
    command = [sys.executable, "-m", "vecall", "serve", "--store", str(shop), "--port", "0", "--workers", "2"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1
    assert index.name in refused.stderr
    assert "Traceback" not in refused.stderr


def test_metrics_of_one_name_stand_together(tmp_path):
    one, other = WorkerPeers(tmp_path, 0), WorkerPeers(tmp_path, 1)
    text = b'# HELP a_total A.\n# TYPE a_total counter\na_total{x="1"} %d.0\n# HELP b B.\n# TYPE b gauge\nb 2.0\n'
    other.publish_metrics(text % 7)
    lines = one.merge_metrics(text % 5).decode().splitlines()
    assert lines == [
        "# HELP a_total A.",
        "# TYPE a_total counter",
        'a_total{process="0",x="1"} 5.0',
        'a_total{process="1",x="1"} 7.0',
        "# HELP b B.",
        "# TYPE b gauge",
        'b{process="0"} 2.0',
        'b{process="1"} 2.0',
    ]


def test_who_has_told_nothing_for_long_is_gone(tmp_path):
    one, other = WorkerPeers(tmp_path, 0), WorkerPeers(tmp_path, 1)
    other.publish_metrics(b"b 2.0\n")
    os.utime(tmp_path / "1.metrics", (0, 0))
    assert 'process="1"' not in one.merge_metrics(b"b 1.0\n").decode()
