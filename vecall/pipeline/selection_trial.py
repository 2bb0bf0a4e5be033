"""Short trainings by which `preset = "auto"` compares presets."""

import dataclasses
import gc
import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from vecall.arrays import Mask
from vecall.config import Config, parse_config
from vecall.data.ragged import EvalCases, RaggedArray, offsets_from_lengths
from vecall.evaluation.evaluator import EvaluationResult, evaluate_scorer
from vecall.evaluation.metrics import limit_depth
from vecall.evaluation.sampling import shuffle_histories
from vecall.pipeline.selection_record import SELECTION_DIR, TrialRecord, write_trial
from vecall.pipeline.validation_score import ValidationScore
from vecall.training.data import TrainingData
from vecall.training.distributed import ProcessGroup, run_on_main
from vecall.training.fit import count_finished_epochs, train
from vecall.training.scoring import Scorer, TowerScorer

# The largest model and the most epochs of a trial; a schedule of so few epochs comes to its end.
_TRIAL_LIMITS: Mapping[str, Mapping[str, Mapping[str, int]]] = {
    "set": {"model": {"dim": 64, "ensemble_size": 1}, "training": {"epochs": 4}},
    "pooled": {"model": {"dim": 64, "ensemble_size": 1}, "training": {"epochs": 2}},
}
TRIED_PRESETS = tuple(_TRIAL_LIMITS)  # the cheapest first
# Of the best score so far: a trial that has less after its first epoch ends there. Pooled trials gained at most 0.15 of
# their score in the second; see docs/decisions/0016-auto-preset.md.
_HOPELESS_SHARE = 0.5
_SEED = 0


@dataclass(frozen=True)
class TrialRunner:
    """Trains towers for a few epochs and evaluates them on validation users, with and without the order of histories.

    Attributes:
        run_dir: Run directory; an interrupted trial is resumed from what it left there.
        wrap_scorer: Wraps the towers' scorer as evaluation does.
        group: Processes that train together; None for a single process.
    """

    run_dir: Path
    wrap_scorer: Callable[[Scorer], Scorer]
    group: ProcessGroup | None

    def run(self, config: Config, data: TrainingData, cases: EvalCases, best_score: float) -> TrialRecord:
        """Run a trial and write its record.

        Args:
            config: Settings of the trial, see `shorten`.
            data: Training data of the users to train on.
            cases: Validation users.
            best_score: Highest score of the trials before; 0 if there is none. After the first epoch, a trial with less
                than half of it ends.

        Raises:
            TrainingError: As `train`.
        """
        start = time.perf_counter()
        preset = config.model.preset
        directory = self.run_dir / SELECTION_DIR / preset
        k = limit_depth(data.n_items)
        max_epochs = _TRIAL_LIMITS[preset]["training"]["epochs"]  # longer ones have few steps in the first
        is_checked = best_score > 0 and 1 < config.training.epochs <= max_epochs and not self._has_passed(directory)
        ordered, shuffled = self._train_and_evaluate(config, data, cases, max_epochs=1 if is_checked else None)
        is_hopeless = is_checked and ValidationScore.compute(ordered, k).score < _HOPELESS_SHARE * best_score
        if is_checked and not is_hopeless:
            ordered, shuffled = self._train_and_evaluate(config, data, cases, max_epochs=None)
        settings = config.as_json()
        trial = TrialRecord(
            preset=preset,
            settings={"model": settings["model"], "training": settings["training"]},
            users=int((data.histories.lengths > 0).sum()),
            interactions=len(data.histories.values),
            metrics=_summarize(ordered, k, "") | _summarize(shuffled, k, "shuffled_"),
            standard_error=ordered.standard_errors[f"recall@{k}"],
            is_hopeless=is_hopeless,
            seconds=round(time.perf_counter() - start, 1),
        )
        return run_on_main(self.group, partial(self._finish, trial, directory))

    def _train_and_evaluate(
        self, config: Config, data: TrainingData, cases: EvalCases, max_epochs: int | None
    ) -> tuple[EvaluationResult, EvaluationResult]:
        """Train, or go on from the checkpoint, and evaluate: with the order of histories, and shuffled."""
        directory, k = self.run_dir / SELECTION_DIR / config.model.preset, limit_depth(data.n_items)
        result = train(data, config.model, config.training, directory, max_epochs=max_epochs, group=self.group)
        scorer = self.wrap_scorer(TowerScorer(result.towers, data))
        ordered, shuffled = (
            evaluate_scorer(scorer, variant, data.n_items, (k,), max_sample_users=0, processes=self.group)
            for variant in (cases, shuffle_histories(cases))
        )
        del result, scorer
        gc.collect()  # of the trainer, which refers to itself: the towers' tables are mapped from the checkpoint
        if self.group is not None:
            self.group.barrier()  # until all processes have read the checkpoint
        return ordered, shuffled

    def _has_passed(self, directory: Path) -> bool:
        """Return whether an interrupted trial was in a later epoch than the first."""
        return run_on_main(self.group, lambda: count_finished_epochs(directory) > 1)

    def _finish(self, trial: TrialRecord, directory: Path) -> TrialRecord:
        write_trial(trial, self.run_dir)
        shutil.rmtree(directory)
        return trial


def delete_trial_dirs(run_dir: Path) -> None:
    """Delete what failed and interrupted trials left behind, such as checkpoints; records stay."""
    for preset in TRIED_PRESETS:
        shutil.rmtree(run_dir / SELECTION_DIR / preset, ignore_errors=True)


def shorten(config: Config, factor: float = 1.0) -> Config:
    """Return the settings of a trial, which logs nothing.

    Args:
        config: Settings of the training.
        factor: By which it was made longer than the preset. The trial may be as many times longer than `_TRIAL_LIMITS`.
    """
    settings = config.as_json()
    for section, limits in _TRIAL_LIMITS[config.model.preset].items():
        settings[section] |= {key: min(settings[section][key], limit) for key, limit in limits.items()}
    settings["training"]["epochs"] = min(config.training.epochs, math.ceil(factor * settings["training"]["epochs"]))
    settings["training"]["logger"] = "none"
    return parse_config(settings, source=f"trial of {config.model.preset}")


def _summarize(result: EvaluationResult, k: int, prefix: str) -> dict[str, float]:
    score = ValidationScore.compute(result, k)
    return {f"{prefix}score": score.score, f"{prefix}recall": score.recall, f"{prefix}ndcg@10": score.ndcg}


def sample_users(data: TrainingData, max_interactions: int) -> TrainingData:
    """Return the data of a random sample of users with about so many interactions, or all if there are no more.

    Of few users with long histories a share may be nobody; then users are drawn until there are enough interactions.
    """
    histories = data.histories
    total = len(histories.values)
    if total <= max_interactions:
        return data
    rng = np.random.default_rng(_SEED)
    is_sampled = rng.random(len(histories)) < max_interactions / total  # [U]
    if 2 * int(histories.lengths[is_sampled].sum()) < max_interactions:
        order = rng.permutation(len(histories))
        n_before = np.cumsum(histories.lengths[order]) - histories.lengths[order]
        is_sampled[order] = n_before < max_interactions
    return _select_users(data, is_sampled)


def _select_users(data: TrainingData, user_mask: Mask) -> TrainingData:
    """Return the data without the interactions of the users outside a mask [U]; rows stay as they are."""
    histories, negatives = data.histories, data.hard_negatives
    is_kept = np.repeat(user_mask, histories.lengths)  # [total]
    negative_mask = user_mask[negatives.users]
    context_mask = np.concatenate([is_kept, negative_mask])
    return dataclasses.replace(
        data,
        histories=RaggedArray(offsets_from_lengths(histories.lengths * user_mask), histories.values[is_kept]),
        hard_negatives=negatives.filter(negative_mask),
        history_weights=None if data.history_weights is None else data.history_weights[is_kept],
        context_features={name: values[context_mask] for name, values in data.context_features.items()},
    )
