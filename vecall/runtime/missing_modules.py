"""Error texts for modules that cannot be imported."""

# Modules of the extras `serve`, `train`, `ranking` and `milvus`.
_EXTRA_MODULES = frozenset(
    (
        *("httptools", "jinja2", "orjson", "prometheus_client", "starlette", "uvicorn", "uvloop"),
        "lightgbm",
        *("grpc", "pymilvus"),
        *("jinja2", "lightning", "matplotlib", "onnx", "onnxscript", "safetensors", "scipy", "torch"),
    )
)


def explain_missing_module(error: ModuleNotFoundError, *, needed_by: str, extra: str) -> str:
    """Return what is missing and how to install it.

    Args:
        error: The failed import.
        needed_by: What requires the module.
        extra: The extra of vecall that `needed_by` requires.
    """
    missing = f"{needed_by} requires {error.name}, which is not installed"
    if (error.name or "").partition(".")[0] in _EXTRA_MODULES:
        return f"{missing}: run pip install 'vecall[{extra}]'"
    return f"{missing} and belongs to no extra of vecall: run pip check, and install what it reports as missing"
