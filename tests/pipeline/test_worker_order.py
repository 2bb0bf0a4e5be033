"""Errors of training processes, as the launcher raises them."""

from pathlib import Path

import pytest

from vecall.errors import ConfigError, LockedError, StoreError, TrainingError, VecallError
from vecall.pipeline.worker_order import WorkerError


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("one"),
        StoreError("two"),
        TrainingError("three"),
        LockedError("four", path=Path("run/lock"), pid=7),
        LockedError("five", path=Path("run/lock"), pid=None),
    ],
)
def test_error_of_a_process_is_raised_as_its_own_type(error: VecallError) -> None:
    told = WorkerError.model_validate_json(WorkerError.from_exception(error).model_dump_json()).to_exception()
    assert (type(told), str(told), vars(told)) == (type(error), str(error), vars(error))
