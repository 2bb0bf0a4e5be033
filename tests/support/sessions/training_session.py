"""One of several processes that train together, for `training/test_distributed.py`: `python training_session.py OUT`.

RANK, WORLD_SIZE and the address are in the environment. Each process writes its results to `OUT/RANK.pt`.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from support import synthetic
from vecall.data.split import HardNegatives
from vecall.training import plan
from vecall.training.distributed import ProcessGroup, join_process_group
from vecall.training.fit import TrainResult, train
from vecall.training.settings import NegativeSettings, TrainingSettings

# Two of each user.
HARD_NEGATIVES = HardNegatives(np.arange(40) // 2, (np.arange(40) + 1) % synthetic.ITEMS, np.full(40, 2))
SAMPLED = {"loss": "sampled_softmax", "negatives": NegativeSettings(uniform=8, in_batch=8, hard=1)}
BCE = {"loss": "bce", "negatives": NegativeSettings(uniform=3)}
MAX_EPOCHS = 2
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "pooled, sampled": ("mean", SAMPLED),
    "sequence, sampled, averaged": ("causal", SAMPLED | {"ema_decay": 0.9}),
    "pooled, softmax": ("mean", {}),
    "set, sampled, few users a step": ("set", SAMPLED | {"batch": 2}),
    "set, softmax": ("set", {"batch": 15}),
    "bce": ("mean", BCE),
}

WEIGHTED = ("sequence, sampled, averaged", "set, softmax", "bce")  # variants whose positives weigh 0, 0.5 or 1


def train_variant(name: str, directory: Path, group: ProcessGroup | None, epochs: int = MAX_EPOCHS) -> TrainResult:
    """Train small towers without dropout; with several processes, validation is that of rank 0."""
    encoder, settings = VARIANTS[name]
    data = synthetic.make_training_data(item_features=True, negatives=HARD_NEGATIVES)
    if name in WEIGHTED:
        weights = (data.histories.values % 3 / 2).astype(np.float32)
        data = dataclasses.replace(data, history_weights=weights)
    training = TrainingSettings(**{"epochs": MAX_EPOCHS, "batch": 50, "lr": 0.03} | settings)
    return train(data, synthetic.make_model_settings(encoder), training, directory, max_epochs=epochs, group=group)


def read_losses(directory: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (directory / "metrics.jsonl").read_text().splitlines()]


def run_collectives(group: ProcessGroup) -> dict[str, Any]:
    """Results of each collective for inputs that differ between the processes."""
    rank = group.rank
    rows = [torch.tensor([2, 5, 7]), torch.tensor([7])][rank]
    empty = [torch.tensor([4]), torch.empty(0, dtype=torch.int64)][rank]
    both, first, neither = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
    both.grad = torch.tensor([1.0, 2.0]) * (rank + 1)
    first.grad = torch.tensor([4.0, 8.0]) if rank == 0 else None
    group.average_gradients([both, first, neither])
    random = torch.Generator().manual_seed(rank)
    shared = group.allocate_shared((3,), torch.int64)
    shared[rank] = rank + 1
    group.barrier()
    drawn_rows = torch.randperm(200, generator=random)[: 90 + 60 * rank]
    return {
        "merged": group.merge_rows(rows, torch.ones(len(rows), 2) * (rank + 1)),
        "merged with empty": group.merge_rows(empty, torch.ones(len(empty), 2)),
        "merged random": group.merge_rows(drawn_rows, torch.randn(len(drawn_rows), 3, generator=random)),
        "gradients": [both.grad, first.grad, neither.grad],
        "shared": shared,
        "mean": group.mean(torch.tensor([1.0, 3.0]) * (rank + 1)),
        "broadcast": group.broadcast_object(f"from {rank}"),
        "gathered": group.gather_objects(f"from {rank}"),
    }


def main() -> None:
    plan.MIN_ROWS_OF_ROW_TABLE = 1  # so that the small tables are trained by rows
    out = Path(sys.argv[1])
    with join_process_group() as group:
        assert group is not None
        results: dict[str, Any] = {"collectives": run_collectives(group)}
        for name in VARIANTS:
            results[name] = train_variant(name, out / name, group).towers.state_dict()
        group.barrier()
        name = next(iter(VARIANTS))
        train_variant(name, out / "resumed", group, epochs=1)
        apart = ProcessGroup(group.rank, group.size)  # as on two machines
        results["apart"] = train_variant(name, out / "apart", apart).towers.state_dict()
        results["shares memory"] = [group.shares_memory, apart.shares_memory]
        results["resumed"] = train_variant(name, out / "resumed", group).towers.state_dict()
        torch.save(results, out / f"{group.rank}.pt")


if __name__ == "__main__":
    main()
