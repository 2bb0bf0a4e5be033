"""The house as data: which part may import which, how large a file and a function may be, what loads torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vecall"
FILES = sorted(PACKAGE.rglob("*.py"))

# A part is a folder, or a file at the top. Each may import itself, the ground, and what is named here.
GROUND = {"arrays", "errors", "progress", "runtime", "schema", "settings_base"}
MAY_IMPORT = {
    "arrays": set(),
    "errors": set(),
    "progress": set(),
    "runtime": set(),
    "schema": set(),
    "settings_base": set(),
    "data": set(),
    "index": {"data"},
    "channels": {"data"},
    "towers": {"data"},
    "training": {"data", "towers"},
    "release": {"channels", "data", "index", "ranking"},
    "live": {"channels", "data", "index", "release"},
    "recall": {"channels", "data", "index", "live", "ranking", "release"},
    "ranking": {"data"},
    "client": set(),
    "service": {"channels", "data", "index", "live", "ranking", "recall", "release"},
    "evaluation": {"channels", "data", "index"},
    # From here on everything may be used; what stands further down may use what stands above.
    "config": {"channels", "data", "evaluation", "index", "ranking", "towers", "training"},
    "config_reference": {"config"},
    "pipeline": {
        "channels",
        "config",
        "data",
        "evaluation",
        "index",
        "live",
        "ranking",
        "recall",
        "release",
        "towers",
        "training",
    },
    "doctor": {"config", "data", "evaluation", "index", "pipeline", "release", "training"},
    "console": set(),
    "quickstart": {"config", "console", "data", "evaluation", "pipeline", "recall"},
    "cli": {
        "config",
        "config_reference",
        "console",
        "doctor",
        "evaluation",
        "live",
        "pipeline",
        "quickstart",
        "recall",
        "release",
        "service",
    },
    "__main__": {"cli"},
}
# Settings, which torch-free code reads: the one kind of file in them that others may import from there.
TORCH_PARTS = {"towers", "training"}


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(path: Path) -> set[str]:
    """Modules of ours that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vecall":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {
                name if (ROOT / name.replace(".", "/")).with_suffix(".py").exists() else node.module for name in names
            }
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "vecall"}
    return found


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_every_part_has_its_place() -> None:
    parts = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES} - {"__init__"}
    assert parts == set(MAY_IMPORT)


@pytest.mark.parametrize("path", [path for path in FILES if path != PACKAGE / "__init__.py"], ids=module_of)
def test_imports_go_one_way(path: Path) -> None:
    part = part_of(module_of(path))
    allowed = MAY_IMPORT[part] | GROUND | {part}
    assert {part_of(module) for module in imports(path)} - {""} <= allowed


def test_no_cycle_of_files_or_parts() -> None:
    files = {module_of(path): imports(path) for path in FILES if path.name != "__init__.py"}
    parts: dict[str, set[str]] = {}
    for module, used in files.items():
        parts.setdefault(part_of(module), set()).update({part_of(one) for one in used} - {part_of(module), ""})
    for graph in (files, parts):
        assert not cycle(graph)


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """Some cycle of a graph; empty if there is none."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for following in sorted(graph.get(node, ())):
            if found := visit(following, [*path, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := visit(node, []))), [])


def test_cycles_are_seen() -> None:
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_files_and_functions_can_be_seen_whole(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 60, node.name


def test_sub_packages_are_empty() -> None:
    for path in PACKAGE.glob("*/__init__.py"):
        assert not path.read_text(encoding="utf-8"), path


def test_there_is_no_drawer_for_odds_and_ends() -> None:
    assert not {path.stem for path in FILES} & {"utils", "util", "common", "core", "helpers", "misc"}


@pytest.mark.parametrize(
    "module",
    [
        "vecall.recall.recaller",
        "vecall.recall.vector_export",
        "vecall.live.compaction",
        "vecall.pipeline.publish_vectors",
        "vecall.cli.app",
        "vecall.release.store",
        "vecall.service.app",
    ],
)
def test_serving_loads_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit(any(m.split('.')[0] in ('torch', 'lightning') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_importing_vecall_has_no_effect() -> None:
    code = "import sys, logging, vecall; sys.exit(len(logging.getLogger().handlers) or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("package", ["channels", "live", "ranking", "recall", "release", "service"])
def test_requests_take_no_matrix_product_of_numpy(package):
    """The threads of its BLAS library wait for one another while other requests hold the cores."""
    for path in sorted((PACKAGE / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_product = isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult)
            is_call = isinstance(node, ast.Attribute) and node.attr in ("dot", "matmul", "tensordot")
            if is_product or is_call:
                pytest.fail(f"{path}:{node.lineno}: take vecall.ranking.cosines or a kernel")
