"""The command line's screen: answers on stdout, everything else on stderr."""

import json
import logging
import warnings
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from vecall.progress import ProgressCallback

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

# Libraries that talk about themselves at length.
_NOISY_LOGGERS = (
    "lightning",
    "lightning.pytorch",
    "lightning.fabric",
    "torch",
    "onnxscript",
    "onnx_ir",
    "faiss",
    "matplotlib",
)


class ProgressBars:
    """Progress bars on stderr, one for each task."""

    def __init__(self) -> None:
        self._running: list[Progress] = []

    def start_task(self, task: str, total: int) -> ProgressCallback:
        """A bar of `total` steps."""
        columns = (
            TextColumn("{task.description:<18}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
        )
        bars = Progress(*columns, console=err)
        bar = bars.add_task(task, total=total, note="")
        bars.start()
        self._running.append(bars)

        def advance(steps: int = 1, note: str = "") -> None:
            bars.update(bar, advance=steps, note=note)

        return advance

    def stop_task(self) -> None:
        """The last bar stands still."""
        self._running.pop().stop()


def configure_logging(*, verbose: bool) -> None:
    """Logs on stderr: vecall's own (with `verbose` what goes well, too), and of other libraries what went wrong."""
    handler = RichHandler(console=err, show_path=False, show_time=False, markup=False)
    logging.basicConfig(level=logging.ERROR, handlers=[handler], format="%(message)s", force=True)
    logging.getLogger("vecall").setLevel(logging.INFO if verbose else logging.WARNING)
    for name in _NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(lightning|torch|onnx\w*)\b.*")


def print_json(payload: Mapping[str, object]) -> None:
    """One object on stdout."""
    print(json.dumps(payload, ensure_ascii=False).encode(errors="backslashreplace").decode())


def print_metrics(title: str, metrics_by_model: Mapping[str, Mapping[str, float | None]]) -> None:
    """Models by metrics, three digits behind the point, on stdout; recall@k is headed by its @k, to fit 80 columns."""
    names = list(dict.fromkeys(name for metrics in metrics_by_model.values() for name in metrics))
    rows = [
        [model, *("–" if (at := metrics[name]) is None else f"{at:.3f}" for name in names)]
        for model, metrics in metrics_by_model.items()
    ]
    print_table(title, ["recall", *(name.removeprefix("recall") for name in names)], rows)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, align_left: bool = False) -> None:
    """A title and a plain table on stdout; columns but the first are right-aligned, unless `align_left`."""
    made = Table(box=None, pad_edge=False)
    for place, column in enumerate(columns):
        made.add_column(column, justify="left" if align_left or place == 0 else "right", no_wrap=not align_left)
    for row in rows:
        made.add_row(*row)
    out.print(title, style="bold")
    out.print(made)
