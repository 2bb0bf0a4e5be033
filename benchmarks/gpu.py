"""Measure training steps on a GPU: step time, share of the matrix-product peak, samples a second, by catalogue size.

    python benchmarks/gpu.py [--items 20_000 1_000_000 10_000_000] [--precisions 32 bf16] [--preset pooled]
    python benchmarks/gpu.py --device cpu --items 20_000        # a functional check where there is no GPU

The peak is that of one large matrix product on the same device in the same precision. Data are synthetic, and batches
are built by the CPU as in a fit. Where there is no GPU the command says so and ends. A size that does not fit in the
device's memory is reported as such.
"""

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from harness.environment import RESULTS_DIR, describe_environment, read_json, write_json
from harness.tables import console, print_table
from harness.training.step_timer import StepTimer
from harness.training.synthetic_data import make_training_data
from vecall.config import PRESETS
from vecall.console import configure_logging
from vecall.towers.settings import ModelSettings
from vecall.towers.two_tower import TwoTower
from vecall.training.module import TwoTowerModule
from vecall.training.settings import TrainingSettings

PEAK_SIZES = {"cuda": 8192, "cpu": 2048}  # rows and columns of the matrices of the peak
DTYPES = {"32": torch.float32, "bf16": torch.bfloat16}
N_ROWS = 2_000_000  # interactions; more change no step
WARMUP_STEPS = 10


def main() -> None:
    """Measure every size and precision that the results lack, and print them."""
    options = _parse_options()
    configure_logging(verbose=False)
    device = options.device or ("cuda" if torch.cuda.is_available() else None)
    if device is None:
        console.print("no GPU: torch.cuda is not available, nothing is measured (--device cpu checks the command)")
        return
    results = {} if options.fresh else read_json(options.out)
    for precision in options.precisions:
        for items in options.items:
            for batch in options.batches or [_get_preset_batch(options.preset)]:
                name = f"{_describe_device(device)}, {options.preset}, {items} items, batch {batch}, {precision}"
                if name not in results:
                    console.print(name, style="dim")
                    results[name] = _measure(options, device, precision, items, batch)
                    write_json(options.out, results)
    _print_results(results)


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[20_000, 1_000_000, 10_000_000])
    parser.add_argument("--precisions", choices=DTYPES, nargs="+", default=list(DTYPES))
    parser.add_argument("--preset", choices=["pooled", "sequence"], default="pooled")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--batches", type=int, nargs="+", help="positives of a step (default: the preset's)")
    parser.add_argument("--with-features", action="store_true", help="items have a category, tags, a title, a price")
    parser.add_argument("--steps", type=int, default=50, help="measured steps of each")
    parser.add_argument("--rows", type=int, default=N_ROWS, help="interactions")
    parser.add_argument("--device", help="such as cuda:1, or cpu (default: cuda)")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured before")
    parser.add_argument("--out", type=Path, default=RESULTS_DIR / "gpu.json")
    return parser.parse_args()


def _get_preset_batch(preset: str) -> int:
    return TrainingSettings.model_validate(PRESETS[preset].get("training", {})).batch


def _describe_device(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def _measure(options: argparse.Namespace, device: str, precision: str, items: int, batch: int) -> dict[str, Any]:
    """Measure the steps of one catalogue; `fits` is false where the device's memory does not hold it."""
    facts = describe_environment() | {"device": _describe_device(device)}
    try:
        measured = _time_steps(options, device, precision, items, batch)
    except torch.cuda.OutOfMemoryError:
        measured = {"fits": False}
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    return {"facts": facts, "items": items, "precision": precision, "preset": options.preset} | measured


def _time_steps(options: argparse.Namespace, device: str, precision: str, items: int, batch: int) -> dict[str, Any]:
    module = _build_module(options, items, batch)
    timer = StepTimer(module, device=device, precision=precision)
    timer.run(WARMUP_STEPS)
    flops, targets = timer.count_flops(), timer.count_targets(WARMUP_STEPS)
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    step_seconds = median(timer.run(options.steps))
    peak_flops = _measure_peak_flops(device, DTYPES[precision])
    return {
        "fits": True,
        "batch": module.settings.batch,
        "loss": module.plan.loss,
        "step_ms": round(1e3 * step_seconds, 2),
        "samples_per_second": round(targets / step_seconds, 1),
        "step_gflop": round(flops / 1e9, 2),
        "peak_tflops": round(peak_flops / 1e12, 2),
        "share_of_peak": round(flops / step_seconds / peak_flops, 4),
        "device_gib": round(torch.cuda.max_memory_allocated(device) / 2**30, 2) if device.startswith("cuda") else None,
    }


def _build_module(options: argparse.Namespace, items: int, batch: int) -> TwoTowerModule:
    preset = PRESETS[options.preset]
    model = ModelSettings.model_validate(preset.get("model", {}) | {"dim": options.dim})
    training = TrainingSettings.model_validate(preset.get("training", {}) | {"loss": "sampled_softmax", "batch": batch})
    data = make_training_data(items, options.rows, with_features=options.with_features)
    torch.manual_seed(0)
    return TwoTowerModule(TwoTower(model, data.item_specs, data.user_specs, data.n_items), data, training)


def _measure_peak_flops(device: str, dtype: torch.dtype) -> float:
    """Return the floating-point operations per second of a product of two large matrices."""
    size = PEAK_SIZES[torch.device(device).type]
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out, seconds = torch.matmul(left, right), []
    for _ in range(5):
        start = time.perf_counter()
        torch.matmul(left, right, out=out)
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / median(seconds)


def _print_results(results: dict[str, Any]) -> None:
    columns = ["", "step ms", "samples/s", "share of the peak", "peak TFLOP/s", "GiB on the device"]
    rows = []
    for name, result in results.items():
        if not result["fits"]:
            rows.append([name, "does not fit", "", "", "", ""])
            continue
        memory = "" if result["device_gib"] is None else f"{result['device_gib']:.2f}"
        rows.append(
            [
                name,
                f"{result['step_ms']:.2f}",
                f"{result['samples_per_second']:,.0f}",
                f"{100 * result['share_of_peak']:.1f} %",
                f"{result['peak_tflops']:.2f}",
                memory,
            ]
        )
    print_table("A training step, sampled softmax", columns, rows)


if __name__ == "__main__":
    main()
