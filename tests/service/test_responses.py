"""Exceptions as HTTP statuses that other tests do not see through a request."""

from vecall.errors import EngineUnavailableError
from vecall.service.responses import to_http_error


def test_engine_that_does_not_answer_is_unavailable_for_now():
    error = to_http_error(EngineUnavailableError("the server does not answer"))
    assert (error.status, error.code, error.headers) == (503, "engine_unavailable", {"Retry-After": "1"})
