"""Experiment loggers: epoch metrics to TensorBoard or MLflow, by Lightning's loggers."""

import importlib.util
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger

from vecall.errors import ConfigError, TrainingError
from vecall.runtime.quiet_logger import quiet_logger
from vecall.training.settings import LoggerType

logger = logging.getLogger(__name__)

TENSORBOARD_DIR, MLFLOW_DIR = "tensorboard", "mlflow"
_MODULES = {"none": (), "tensorboard": ("tensorboard",), "mlflow": ("mlflow", "sqlalchemy", "alembic")}
_NOISY_LOGGERS = ("lightning.pytorch", "mlflow", "mlflow.store.db.utils", "alembic")
_RUN_ID_FILE = "run_id.txt"


def check_logger_installed(logger_type: LoggerType) -> None:
    """Check that the packages of a logger are installed.

    Raises:
        ConfigError: A package is missing; the message names the command that installs it.
    """
    missing = [name for name in _MODULES[logger_type] if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"training.logger: {logger_type!r} requires {', '.join(missing)}: run pip install 'vecall[{logger_type}]', "
            "or set training.logger to 'none'; metrics.jsonl is written in any case"
        )


def build_logger(
    logger_type: LoggerType, directory: Path, hyperparameters: Mapping[str, object]
) -> "EpochLogger | None":
    """Build the logger that the settings name; None for "none".

    Args:
        logger_type: Value of `training.logger`.
        directory: Directory of the run; the logger's files are in a subdirectory. MLflow logs to the server of the
            environment variable MLFLOW_TRACKING_URI instead, if it is set.
        hyperparameters: Settings by name, logged once.

    Raises:
        ConfigError: A package is missing.
        TrainingError: The logger cannot be started, as its server does not answer.
    """
    check_logger_installed(logger_type)
    if logger_type == "none":
        return None
    try:
        return EpochLogger(_build_lightning_logger(logger_type, directory), hyperparameters)
    except Exception as error:
        raise TrainingError(
            f"training.logger: {logger_type!r} cannot be started: {error}; check its server and directory, or set "
            "training.logger to 'none'"
        ) from error


def _build_lightning_logger(logger_type: LoggerType, directory: Path) -> Logger:
    if logger_type == "mlflow":
        return _build_mlflow_logger(directory / MLFLOW_DIR)
    return TensorBoardLogger(directory / TENSORBOARD_DIR, name="", version="", default_hp_metric=False)


class EpochLogger:
    """Logger of the metrics of epochs; a context, which closes the logger.

    Once training has started, a logger that fails, such as one of a server that does not answer, is a warning: the
    training is worth more than its log, and `metrics.jsonl` has the metrics.

    Args:
        logger: Lightning's logger.
        hyperparameters: Settings by name, logged at once.
    """

    def __init__(self, logger: Logger, hyperparameters: Mapping[str, object]) -> None:
        self._logger = logger
        self._logger.log_hyperparams(dict(hyperparameters))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exception_type: type[BaseException] | None, *_: object) -> None:
        with _warn_of_failure("closed"):
            self._logger.finalize("success" if exception_type is None else "failed")

    def log(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Log the metrics of an epoch, which is the step of the logger's axis."""
        if isinstance(self._logger, MLFlowLogger):  # which does not allow "@" in names
            metrics = {name.replace("@", "_at_"): value for name, value in metrics.items()}
        with _warn_of_failure(f"given the metrics of epoch {epoch + 1}"):
            self._logger.log_metrics(dict(metrics), step=epoch)


@contextmanager
def _warn_of_failure(action: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 - of any client or server
        logger.warning("training.logger could not be %s: %s; metrics.jsonl has all metrics", action, error)


def _build_mlflow_logger(directory: Path) -> MLFlowLogger:
    """Build an MLflow logger that continues the run of an interrupted training in the same directory."""
    directory.mkdir(parents=True, exist_ok=True)
    run_id_path = directory / _RUN_ID_FILE
    with ExitStack() as stack:
        for name in _NOISY_LOGGERS:
            stack.enter_context(quiet_logger(name))
        mlflow_logger = MLFlowLogger(
            experiment_name="vecall",
            run_name=directory.parent.name,
            tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{directory.absolute() / 'mlflow.db'}",
            artifact_location=str(directory.absolute() / "artifacts"),
            run_id=run_id_path.read_text(encoding="utf-8") if run_id_path.exists() else None,
        )
        run_id_path.write_text(str(mlflow_logger.run_id), encoding="utf-8")
    return mlflow_logger
