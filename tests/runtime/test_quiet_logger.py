import logging

import pytest

from vecall.runtime.quiet_logger import quiet_logger


def test_only_errors_are_logged_within_the_context(caplog):
    logger = logging.getLogger("test_quiet_logger")
    logger.setLevel(logging.INFO)
    with quiet_logger("test_quiet_logger"):
        logger.warning("suppressed")
        logger.error("logged")
    logger.info("logged afterwards")
    assert caplog.messages == ["logged", "logged afterwards"]


def test_level_is_restored_after_an_exception():
    logger = logging.getLogger("test_quiet_logger")
    logger.setLevel(logging.DEBUG)
    with pytest.raises(RuntimeError), quiet_logger("test_quiet_logger"):
        raise RuntimeError
    assert logger.level == logging.DEBUG
