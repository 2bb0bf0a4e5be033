"""Other libraries on vecall's own split: each in a process of a virtual environment, its lists evaluated by vecall."""

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.environment import make_child_environment
from vecall.arrays import Rows, Scores
from vecall.data.dataset import Dataset
from vecall.data.ragged import EvalCases
from vecall.data.split import Split
from vecall.evaluation.evaluator import evaluate_scorer
from vecall.evaluation.scorer import BlockScorer

_TORCH = "torch>=2.6,<2.14"


@dataclass(frozen=True)
class Peer:
    """A library's model.

    Attributes:
        title: as tables name it.
        module: of `harness.accuracy.peers`, which trains it.
        packages: what pip installs for it.
        imports: packages whose import tells whether it is installed.
    """

    title: str
    module: str
    packages: tuple[str, ...]
    imports: tuple[str, ...]


PEERS: Mapping[str, Peer] = {
    "als": Peer("implicit, ALS", "implicit_als", ("implicit",), ("implicit.als",)),
    "bm25": Peer("implicit, BM25", "implicit_bm25", ("implicit",), ("implicit.nearest_neighbours",)),
    "sasrec": Peer("RecTools, SASRec", "rectools_sasrec", ("rectools[torch]", _TORCH), ("rectools.models.nn",)),
    "dssm": Peer("torch-rechub, DSSM", "rechub_dssm", ("torch-rechub", _TORCH), ("torch_rechub.trainers",)),
}


class PeerError(Exception):
    """A peer cannot be installed, or its process failed; the message is for the reader of the benchmark."""


def install_peer(peer: Peer, venv_dir: Path) -> Path:
    """Install a peer into a virtual environment, which is created if it is not there; return its Python.

    Raises:
        PeerError: pip failed.
    """
    python = venv_dir / "bin" / "python"
    if not python.exists():
        _run([sys.executable, "-m", "venv", str(venv_dir)], f"no virtual environment in {venv_dir}")
    command = f"import {', '.join(peer.imports)}"
    if subprocess.run([python, "-c", command], capture_output=True, check=False).returncode:
        packages = [*peer.packages, "pandas"]
        _run([str(python), "-m", "pip", "install", "-q", *packages], f"pip could not install {' '.join(packages)}")
    return python


def read_versions(python: Path, packages: Sequence[str]) -> dict[str, str]:
    """Return the installed versions of packages."""
    names = [package.partition("[")[0].partition(">")[0] for package in packages]
    script = (
        f"import json; from importlib.metadata import version; print(json.dumps({{n: version(n) for n in {names}}}))"
    )
    versions: dict[str, str] = json.loads(_run([str(python), "-c", script], "versions cannot be read"))
    return versions


def write_split(split: Split, n_items: int, path: Path) -> None:
    """Write what peers get, see `harness.accuracy.peers.cases.PeerCases`; targets of the test are not in it."""
    lists = {
        "train": split.train,
        "valid_histories": split.valid.histories,
        "valid_targets": split.valid.targets,
        "test_histories": split.test.histories,
    }
    arrays = {"valid_users": split.valid.users, "test_users": split.test.users, "n_items": np.array(n_items)}
    for name, ragged in lists.items():
        arrays |= {f"{name}_values": ragged.values.astype(np.int64), f"{name}_offsets": ragged.offsets}
    np.savez(path, **arrays)


def run_peer_process(python: Path, peer: Peer, split_path: Path, *, seconds: float, seed: int) -> dict[str, Any]:
    """Train a peer and return `rows`, the best rows of each test user, what was `tried`, and the `seconds` it took.

    Raises:
        PeerError: Its process failed.
    """
    lists_path = split_path.with_name(f"{peer.module}.npz")
    module = f"harness.accuracy.peers.{peer.module}"
    arguments = [str(split_path), str(lists_path), "--seconds", str(seconds), "--seed", str(seed)]
    start = time.perf_counter()
    _run([str(python), "-m", module, *arguments], f"{peer.title} failed", cwd=split_path.parent)
    wall_seconds = time.perf_counter() - start
    with np.load(lists_path) as arrays:
        return {"rows": arrays["rows"], "tried": json.loads(str(arrays["tried"])), "seconds": round(wall_seconds, 1)}


def evaluate_lists(rows: Rows, dataset: Dataset, split: Split, ks: Sequence[int]) -> dict[str, float]:
    """Return the metrics of lists [test users, n], best first, -1 for nothing; seen items are excluded."""
    n_items = len(dataset.catalogue.items)
    return dict(evaluate_scorer(ListScorer(rows, split.test), split.test, n_items, ks).seen_excluded)


class ListScorer:
    """Scores the items of a list by their position, and all others -inf, which is below every rank.

    Args:
        rows: [cases, n] lists, best first; -1 for nothing.
        cases: the cases, each of another user.
    """

    def __init__(self, rows: Rows, cases: EvalCases) -> None:
        self._rows = rows
        self._positions = {int(user): position for position, user in enumerate(cases.users)}

    def __call__(self, cases: EvalCases) -> BlockScorer:
        """Return the scorer of blocks of items for B of the cases."""
        lists = self._rows[[self._positions[int(user)] for user in cases.users]]
        owners, ranks = np.nonzero(lists >= 0)
        listed = lists[owners, ranks]

        def score_block(start: int, stop: int) -> Scores:
            block = np.full((len(cases), stop - start), -np.inf, dtype=np.float32)
            is_within = (listed >= start) & (listed < stop)
            block[owners[is_within], listed[is_within] - start] = -ranks[is_within]
            return block

        return score_block


def _run(command: Sequence[str], failure: str, cwd: Path | None = None) -> str:
    """Run a command and return its standard output.

    Raises:
        PeerError: It failed; the message is `failure` with the last line of its errors.
    """
    environment = make_child_environment() | {"OPENBLAS_NUM_THREADS": "1"}  # as implicit demands
    completed = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=cwd)
    if completed.returncode:
        last_lines = completed.stderr.strip().splitlines()[-1:]
        raise PeerError(f"{failure}: {' '.join(last_lines) or f'exit status {completed.returncode}'}")
    return completed.stdout
