"""What `preset = "auto"` tried and chose: `RUN/selection/`.

RUN/selection/PRESET.json   A trial, written when it ended.
RUN/selection/choice.json   All trials, the choice and why; written last.
RUN/selection/chosen.toml   The chosen settings, to be pinned in a vecall.toml.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from vecall.config import Config, parse_config
from vecall.errors import TrainingError
from vecall.runtime.durable_files import atomic_write
from vecall.settings_base import to_toml

_Record = TypeVar("_Record", bound=BaseModel)

SELECTION_DIR = "selection"
_CHOICE_FILE, _TOML_FILE = "choice.json", "chosen.toml"


class TrialRecord(BaseModel):
    """Result of a short training.

    Attributes:
        preset: Preset that was tried.
        settings: Sections `model` and `training` of the trial.
        users: Users that it was trained on.
        interactions: Interactions of these users.
        metrics: On the validation users: `score`, `recall` and `ndcg@10`; `shuffled_...`, the same with the items of
            each history in random order. NaN where no target can be ranked.
        standard_error: Of `recall`, over users; NaN for a single one.
        is_hopeless: Whether it was ended after an epoch, since it had less than half of another trial's score.
        seconds: Wall time.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")
    preset: str
    settings: dict[str, Any]
    users: int
    interactions: int
    metrics: dict[str, float]
    standard_error: float
    is_hopeless: bool = False
    seconds: float


class SelectionRecord(BaseModel):
    """Content of `choice.json`.

    Attributes:
        preset: The choice.
        reason: Sentence about why.
        config: The chosen settings, as `Config.as_json` returns them.
        budget_seconds: Limit by which the users of the trials were chosen.
        announced_seconds: Time that choosing was expected to take; less than the limit where the data are small.
        seconds: Wall time that it took, with evaluations and baselines.
        recall_depth: k of the trials' recall.
        validation_users: Users that the trials were judged by.
        trials: Trials in their order.
        left_out: Presets that were not tried, or whose trial failed, with the reason.
        baselines: Recall of popularity and co-occurrence on the same users; they have no vectors, and are never chosen.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")
    preset: str
    reason: str
    config: dict[str, Any]
    budget_seconds: float = 0.0
    announced_seconds: float = 0.0
    seconds: float = 0.0
    recall_depth: int = 0
    validation_users: int = 0
    trials: tuple[TrialRecord, ...] = ()
    left_out: dict[str, str] = {}
    baselines: dict[str, float] = {}

    def parse_config(self) -> Config:
        """Return the chosen settings."""
        return parse_config(self.config, source=_CHOICE_FILE)

    def describe(self) -> Iterator[str]:
        """Yield a line for each trial, each preset that was left out, the baselines, the time and the choice."""
        k = self.recall_depth
        for trial in self.trials:
            metrics = trial.metrics
            end = ", ended after an epoch: less than half of the best score" if trial.is_hopeless else ""
            yield (
                f"  {trial.preset}: validation recall@{k} {metrics['recall']:.3f}, ndcg@10 {metrics['ndcg@10']:.3f}; "
                f"with shuffled histories {metrics['shuffled_recall']:.3f}, {metrics['shuffled_ndcg@10']:.3f} "
                f"({trial.seconds:.0f} s{end})"
            )
        for preset, problem in self.left_out.items():
            yield f"  {preset}: left out: {problem}"
        if self.baselines:
            baselines = ", ".join(f"{name} {recall:.3f}" for name, recall in self.baselines.items())
            yield f"  beside them, recall@{k}: {baselines}"
        if self.announced_seconds:
            yield f"  choosing took {self.seconds:.0f} s; {format_seconds(self.announced_seconds)} were announced"
        yield f"  chosen: {self.preset}: {self.reason}"


def format_seconds(seconds: float) -> str:
    """Return a time as it is announced: in seconds, at least 1, or in minutes."""
    return f"{max(seconds, 1):.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def read_selection(run_dir: Path) -> SelectionRecord | None:
    """Read what was chosen for a run; None if nothing was, or not yet.

    Raises:
        TrainingError: The file cannot be read.
    """
    return _read(run_dir / SELECTION_DIR / _CHOICE_FILE, SelectionRecord)


def read_trial(run_dir: Path, preset: str) -> TrialRecord | None:
    """Read a trial that has ended; None if it has not.

    Raises:
        TrainingError: The file cannot be read.
    """
    return _read(run_dir / SELECTION_DIR / f"{preset}.json", TrialRecord)


def write_trial(trial: TrialRecord, run_dir: Path) -> None:
    """Write a trial that has ended; its directory exists."""
    atomic_write(run_dir / SELECTION_DIR / f"{trial.preset}.json", trial.model_dump_json(indent=1).encode())


def write_selection(selection: SelectionRecord, run_dir: Path) -> None:
    """Write the choice, and its settings as TOML."""
    directory = run_dir / SELECTION_DIR
    directory.mkdir(parents=True, exist_ok=True)
    atomic_write(directory / _TOML_FILE, _render_toml(selection.config).encode())
    atomic_write(directory / _CHOICE_FILE, selection.model_dump_json(indent=1).encode())


def _read(path: Path, record_type: type[_Record]) -> _Record | None:
    try:
        return record_type.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise TrainingError(f"{path}: cannot be read: {error}; delete it to repeat the selection") from error


def _render_toml(config: Mapping[str, Any]) -> str:
    """Render the sections that the selection set."""
    lines = ['# Chosen by preset = "auto". Replace these sections of vecall.toml by them to pin the choice.']
    for section in ("model", "training"):
        lines += ["", f"[{section}]"]
        lines += [f"{key} = {to_toml(value)}" for key, value in config[section].items()]
    return "\n".join(lines) + "\n"
