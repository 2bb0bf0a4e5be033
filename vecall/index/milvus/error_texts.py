"""Sentences about what failed at a Milvus server: what came, what was expected, what to do."""

from typing import Any

from vecall.index.milvus.endpoint import MilvusEndpoint

_MAX_MESSAGE_LENGTH = 300  # of the server's own words, which may repeat a whole expression
_CONNECTING_FAILED, _COLLECTION_NOT_FOUND, _COLLECTION_NOT_LOADED = 2, 100, 101

_UNREACHABLE_ADVICE = (
    "check that the server runs, and that index.milvus.uri, or VECALL_MILVUS_URI in its place, is its address"
)
_TIMEOUT_ADVICE = "the server hangs or is overloaded: look at its log, and raise index.milvus.timeout_ms if it is slow"
_LOGIN_ADVICE = "check VECALL_MILVUS_TOKEN, and that its user may use this database"
_LOADING_ADVICE = "the server loads it, as after a restart: wait, and look at the server's log if it does not end"
_MISSING_ADVICE = (
    "it was dropped, or the address or index.milvus.db names another server: activate or publish another release"
)
_DEFAULT_ADVICE = "look at the server's log"


def describe_failure(
    error: BaseException, action: str, endpoint: MilvusEndpoint, *, timeout: float, seconds: float | None = None
) -> str:
    """Describe a failed call.

    Args:
        error: exception of pymilvus or gRPC.
        action: what the call did.
        endpoint: the server; its token is left out of the text.
        timeout: seconds that the call might have taken.
        seconds: what it took; None if it was not measured.
    """
    if _get_code(error) == str(_CONNECTING_FAILED) and error.__cause__ is not None:
        error = error.__cause__  # the client says no more than that connecting failed
    code, message = _get_code(error), _get_message(error)
    if endpoint.token:
        for secret in (endpoint.token, endpoint.token.partition(":")[2]):
            message = message.replace(secret, "…") if secret else message
    if len(message) > _MAX_MESSAGE_LENGTH:
        message = message[:_MAX_MESSAGE_LENGTH] + " …"
    duration = "" if seconds is None else f" after {seconds:.2f} s"
    return (
        f"Milvus at {endpoint}: {action} failed{duration} ({code}: {message}); expected an answer within {timeout:g} "
        f"s: {_get_advice(code, message)}"
    )


def _get_code(error: Any) -> str:  # noqa: ANN401 - the package may be missing
    """Name of gRPC's status, or number of Milvus's error."""
    code = error.code() if callable(getattr(error, "code", None)) else getattr(error, "code", None)
    if code is None:
        return type(error).__name__
    return str(getattr(code, "name", code))


def _get_message(error: Any) -> str:  # noqa: ANN401 - as above
    """What the server or the client says, in one line."""
    details = getattr(error, "details", None)
    text = details() if callable(details) else getattr(error, "message", None)
    return " ".join(str(text or error).split())


def _get_advice(code: str, message: str) -> str:
    small = message.lower()
    if code in ("UNAUTHENTICATED", "PERMISSION_DENIED") or "auth check failure" in small or "permission" in small:
        return _LOGIN_ADVICE
    if code == "DEADLINE_EXCEEDED" or "deadline exceeded" in small:
        return _TIMEOUT_ADVICE
    if code in ("UNAVAILABLE", "CANCELLED") or "fail connecting" in small:
        return _UNREACHABLE_ADVICE
    if code == str(_COLLECTION_NOT_LOADED) or "not loaded" in small:
        return _LOADING_ADVICE
    if code == str(_COLLECTION_NOT_FOUND) or "can't find collection" in small or "collection not found" in small:
        return _MISSING_ADVICE
    return _DEFAULT_ADVICE
