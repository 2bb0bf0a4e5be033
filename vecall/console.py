"""Terminal output of the command line: results on stdout; logs, errors and progress on stderr."""

import json
import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from io import TextIOWrapper

from rich.console import Console, JustifyMethod
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

from vecall.progress import ProgressCallback, ProgressListener, ProgressLog, format_duration, format_pace

# Text is printed as it is: paths, ids and titles may hold [brackets] and :colons:, in which rich would read styles.
out = Console(highlight=False, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, markup=False, emoji=False)

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


_BAR_WIDTH = 20  # leaves room for counts, rate and time left in 80 columns


class ProgressBars:
    """Progress listener that draws a bar on stderr for each task, with its rate and the time left."""

    def __init__(self) -> None:
        self._running: list[Progress] = []

    def start_task(self, task: str, total: int) -> ProgressCallback:
        """Draw a bar of `total` steps."""
        columns = (
            TextColumn("{task.description:<18}"),
            BarColumn(bar_width=_BAR_WIDTH),
            MofNCompleteColumn(),
            _PaceColumn(),
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
        """Stop the most recent bar."""
        self._running.pop().stop()

    def write_line(self, text: str) -> None:
        """Print a line above the bars."""
        _print_progress_line(text)


class _PaceColumn(ProgressColumn):
    """Rate and time left of a running task, rate and duration of a finished one."""

    def render(self, task: Task) -> Text:
        """Return the text; empty before the first step."""
        rate = task.finished_speed or task.speed
        if not rate:
            return Text("")
        if task.finished:
            return Text(f"{format_pace(rate, 0)}, {format_duration(task.elapsed or 0)}")
        return Text(format_pace(rate, int(task.remaining or 0)))


def build_progress_listener() -> ProgressListener:
    """Return progress bars if stderr is a terminal, else a writer of a line every 30 seconds, as for a log file."""
    return ProgressBars() if err.is_terminal else ProgressLog(_print_progress_line)


def _print_progress_line(line: str) -> None:
    err.print(line, markup=False, soft_wrap=True)


def configure_logging(*, verbose: bool) -> None:
    """Log to stderr: warnings of vecall and errors of other libraries.

    Args:
        verbose: Whether to log vecall's informational messages too.
    """
    handler = RichHandler(console=err, show_path=False, show_time=False, markup=False)
    logging.basicConfig(level=logging.ERROR, handlers=[handler], format="%(message)s", force=True)
    logging.getLogger("vecall").setLevel(logging.INFO if verbose else logging.WARNING)
    for name in _NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(lightning|torch|onnx\w*)\b.*")


def print_json(payload: Mapping[str, object]) -> None:
    """Print one JSON object on stdout, in UTF-8 whatever the encoding of the terminal.

    Raises:
        OSError: It cannot be written.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    print(json.dumps(payload, ensure_ascii=False).encode(errors="backslashreplace").decode(), flush=True)


def print_metrics(title: str, metrics_by_model: Mapping[str, Mapping[str, float | None]]) -> None:
    """Print a table of models by metrics with three decimals; recall@k is headed by @k, to fit 80 columns."""
    names = list(dict.fromkeys(name for metrics in metrics_by_model.values() for name in metrics))
    rows = [
        [model, *("–" if (value := metrics[name]) is None else f"{value:.3f}" for name in names)]
        for model, metrics in metrics_by_model.items()
    ]
    print_table(title, ["recall", *(name.removeprefix("recall") for name in names)], rows)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, align_left: bool = False) -> None:
    """Print a title and a borderless table on stdout.

    Args:
        title: Printed above the table.
        columns: Names of the C columns.
        rows: C cells each.
        align_left: Whether to left-align all columns and wrap long cells, within a word where none ends in time, as in
            Chinese. Otherwise only the first column is left-aligned, and nothing wraps.
    """
    table = Table(box=None, pad_edge=False)
    for index, column in enumerate(columns):
        justify: JustifyMethod = "left" if align_left or index == 0 else "right"
        table.add_column(column, justify=justify, no_wrap=not align_left, overflow="fold" if align_left else "ellipsis")
    for row in rows:
        table.add_row(*row)
    out.print(title, style="bold")
    out.print(table)
