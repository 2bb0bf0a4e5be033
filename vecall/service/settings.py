"""How the service runs and what it lets through."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, ValidationError

from vecall.errors import ConfigError
from vecall.settings_base import SettingsModel, describe_validation_error, read_toml


class Limits(SettingsModel):
    """What one request may ask for. Beyond it the answer is a 4xx that names the field."""

    max_k: int = Field(10_000, ge=1, description="items of one answer")
    max_history: int = Field(10_000, ge=1, description="ids in `history`")
    max_exclude: int = Field(10_000, ge=1, description="ids in `exclude`")
    max_conditions: int = Field(32, ge=1, description="conditions in `where`")
    max_filter_values: int = Field(1_000, ge=1, description="values in one condition's list")
    max_batch_items: int = Field(1_000, ge=1, description="items of one upsert, ids of one delete")
    max_body_bytes: int = Field(2**20, ge=1_024, description="bytes of a recall's body")
    max_batch_body_bytes: int = Field(2**24, ge=1_024, description="bytes of an upsert's or a delete's body")
    body_timeout_seconds: float = Field(5.0, gt=0, description="a body must have come in by then")


class ServeSettings(SettingsModel):
    """All settings of a serving process."""

    host: str = "127.0.0.1"
    port: int = Field(8080, ge=0, le=65535, description="0: one that is free")
    workers: int = Field(1, ge=1, le=256, description="that answer side by side, each with the store in memory")
    max_queue: int = Field(64, ge=0, description="recalls that wait; one more is turned away")
    deadline_ms: float = Field(200.0, gt=0, description="a request that has waited longer is turned away")
    max_concurrent_scans: int = Field(1, ge=1, description="large exact scans at a time, in threads of their own")
    max_connections: int = Field(1_000, ge=1, description="open at a time; one more is turned away")
    drain_seconds: int = Field(20, ge=0, description="requests have this long to end after SIGTERM")
    writable: bool = Field(default=True, description="take upserts and deletes: of all processes one may")
    max_delta_items: int = Field(100_000, ge=1, description="items beside the release, beyond which new ones wait")
    poll_seconds: float = Field(1.0, gt=0, description="between looks at which release is current")
    recall_sample_rate: float = Field(
        0.01, ge=0, le=1, description="share of recalls that are repeated exactly, to know ANN recall"
    )
    allowed_hosts: tuple[str, ...] = Field((), description="names in `Host`; none: loopback's, or any with keys")
    log_requests: bool = Field(default=False, description="a line for each request, not only for failed ones")
    limits: Limits = Limits()


def load_settings(path: Path | None, overrides: Mapping[str, object]) -> ServeSettings:
    """Settings of a file, and given ones over them.

    Args:
        path: TOML with the names of `ServeSettings`, and a table `limits`.
        overrides: by name.

    Raises:
        ConfigError: the file is not as it has to be, or a value is out of range; the message names it.
    """
    settings = {**({} if path is None else read_toml(path)), **overrides}
    try:
        return ServeSettings.model_validate(settings)
    except ValidationError as error:
        problems = describe_validation_error(error, ServeSettings, settings)
        raise ConfigError("settings of the service: " + "; ".join(map(str, problems))) from None
