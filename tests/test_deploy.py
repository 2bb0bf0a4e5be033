"""deploy/ and docs/operations.md match the service: metrics, labels, settings and image size."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.server import open_test_client

from vecall.service.settings import Limits, ServeSettings

ROOT = Path(__file__).parents[1]
METRIC_NAME = re.compile(r"\b(?:vecall|process)_[a-z_]+")
OPERATIONS_PAGE = ROOT / "docs" / "operations.md"


@pytest.fixture
def metrics(published):
    """Names and labels of all metrics of a service that has answered requests."""
    with open_test_client(published / "store", writable=False) as client:
        client.post("/v1/recall", json={"user_id": "nobody"})
        client.post("/v1/recall", json={"user_id": "user-1", "k": 5})
        client.post("/v1/recall", content=b"{")
        text = client.get("/metrics").text
    labels_by_metric: dict[str, set[str]] = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, labels = re.fullmatch(r"([a-z_]+)(?:\{(.*)\})? .*", line).groups()
            labels_by_metric.setdefault(name, set()).update(re.findall(r"(\w+)=", labels or ""))
        elif line.startswith("# TYPE"):  # metrics that have no value yet are included
            labels_by_metric.setdefault(line.split()[2], set())
    return labels_by_metric


def test_dashboard_queries_existing_metrics_and_labels(metrics):
    dashboard = json.loads((ROOT / "deploy" / "grafana.json").read_text(encoding="utf-8"))
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(queries) > 15
    for query in queries:
        names = METRIC_NAME.findall(query)
        assert names
        labels = {label.strip() for part in re.findall(r"by \(([^)]*)\)", query) for label in part.split(",")}
        for name in names:
            assert name in metrics, query
            assert labels <= metrics[name] or not metrics[name], (query, metrics[name])


def test_operations_page_documents_every_metric(metrics):
    series = [name for name in metrics if name.startswith("vecall_") and not name.endswith("_created")]
    names = {re.sub(r"_(bucket|sum|count)$", "", name) for name in series}
    page = OPERATIONS_PAGE.read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(vecall_[a-z_]+)", page, re.MULTILINE)) == names


def test_operations_page_documents_every_setting():
    page = OPERATIONS_PAGE.read_text(encoding="utf-8")
    names = [*ServeSettings.model_fields, *(f"limits.{name}" for name in Limits.model_fields)]
    assert [name for name in names if name != "limits" and f"`{name}`" not in page] == []


def test_milvus_compose_publishes_no_port_beyond_this_machine_and_needs_no_default_password():
    yaml = pytest.importorskip("yaml", reason="needs the extra `docs`")
    compose = yaml.safe_load((ROOT / "deploy" / "compose.milvus.yaml").read_text(encoding="utf-8"))
    services = compose["services"]
    assert set(services) == {"vecall", "milvus", "etcd", "minio"}
    assert all(port.startswith("127.0.0.1:") for service in services.values() for port in service.get("ports", ()))
    assert compose["networks"]["milvus-storage"]["internal"] is True
    assert services["etcd"]["networks"] == services["minio"]["networks"] == ["milvus-storage"]
    assert all(":" in services[name]["image"] for name in ("milvus", "etcd", "minio"))
    assert services["milvus"]["environment"]["MINIO_SECRET_ACCESS_KEY"] == "${MINIO_ROOT_PASSWORD:?}"
    assert services["minio"]["environment"]["MINIO_ROOT_PASSWORD"] == "${MINIO_ROOT_PASSWORD:?}"


def test_milvus_compose_runs_the_server_that_is_tested_and_the_client_that_it_needs():
    yaml = pytest.importorskip("yaml", reason="needs the extra `docs`")
    services = yaml.safe_load((ROOT / "deploy" / "compose.milvus.yaml").read_text(encoding="utf-8"))["services"]
    version = services["milvus"]["image"].rpartition(":v")[2]
    assert f"milvus=={version}" in (ROOT / "tests" / "support" / "milvus_server.txt").read_text(encoding="utf-8")
    for page in ("docs/scaling.md", "docs/zh/scaling.md"):
        assert f"Milvus {version}" in (ROOT / page).read_text(encoding="utf-8"), page
    assert services["vecall"]["build"]["args"] == {"EXTRAS": "milvus"}
    assert "ARG EXTRAS" in (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    assert services["vecall"]["environment"] == {"VECALL_MILVUS_URI": "http://milvus:19530"}


@pytest.mark.slow
def test_image_dependencies_have_the_documented_size_and_no_torch(tmp_path):
    """Runs the pip step of the Dockerfile in a clean environment."""
    assert "'/src[serve]'" in (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", f"{ROOT}[serve]"]
    subprocess.run(install, check=True)
    code = "import vecall.service.server, importlib.util; assert not importlib.util.find_spec('torch')"
    subprocess.run([python, "-c", code], check=True, cwd=tmp_path)
    files = [path for path in (tmp_path / "venv").rglob("*") if path.is_file() and not path.is_symlink()]
    megabytes = sum(path.stat().st_size for path in files) / 1e6
    documented = int(re.search(r"about (\d+) MB", OPERATIONS_PAGE.read_text(encoding="utf-8")).group(1))
    assert abs(megabytes - documented) < 0.15 * documented
