"""Settings of `vecall serve`: the options of the command line and the keys of `--settings FILE`."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, ValidationError, field_validator

from vecall.errors import ConfigError
from vecall.service.host_names import is_hostname
from vecall.settings_base import SettingsModel, describe_validation_error, read_toml

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")


class Limits(SettingsModel):
    """Limits of one request; beyond them the answer is a 4xx error that names the field."""

    max_k: int = Field(10_000, ge=1, description="items in one answer, and candidates of a recommendation")
    max_history: int = Field(10_000, ge=1, description="ids in `history`, and in `recent`")
    max_exclude: int = Field(10_000, ge=1, description="ids in `exclude`")
    max_conditions: int = Field(32, ge=1, description="conditions in `where`")
    max_filter_values: int = Field(1_000, ge=1, description="values in the list of one condition")
    max_batch_items: int = Field(1_000, ge=1, description="items in one upsert, ids in one delete")
    max_body_bytes: int = Field(2**20, ge=1_024, description="bytes in the body of a recall or a recommendation")
    max_batch_body_bytes: int = Field(2**24, ge=1_024, description="bytes in the body of an upsert or delete")
    body_timeout_seconds: float = Field(5.0, gt=0, description="seconds within which a body must arrive")


class ServeSettings(SettingsModel):
    """Settings of a serving process."""

    host: str = Field("127.0.0.1", description="address to bind; any other than loopback requires API keys")
    port: int = Field(8080, ge=0, le=65535, description="0 picks a free port")
    workers: int = Field(1, ge=1, le=256, description="worker processes, which share the vectors of the release")
    max_queue: int = Field(64, ge=0, description="recalls that may wait; further ones are rejected with 503")
    deadline_ms: float = Field(200.0, gt=0, description="milliseconds from arrival to answer; later ones get 503")
    max_concurrent_scans: int = Field(
        1,
        ge=1,
        description="large exact scans that may run at a time, in threads, which long searches of the index share",
    )
    max_concurrent_remote_searches: int = Field(
        16, ge=1, le=64, description="requests that wait for an index on a server at a time, in threads of their own"
    )
    max_concurrent_rankings: int = Field(
        2,
        ge=1,
        description="recommendations in threads at a time: long ones, or by a ranker of one's own",
    )
    ranker: str | None = Field(
        None, description="MODULE:NAME of a ranker of your own, which goes before the release's; see --ranker"
    )
    max_connections: int = Field(1_000, ge=1, description="open connections; further ones are rejected with 503")
    drain_seconds: int = Field(20, ge=0, description="seconds that running requests have to finish after SIGTERM")
    writable: bool = Field(
        default=True, description="accept upserts, deletes and activations; one service per store may"
    )
    max_delta_items: int = Field(100_000, ge=1, description="live items beyond the release; more are rejected with 429")
    poll_seconds: float = Field(
        1.0, gt=0, le=86_400, description="seconds between polls of the store's current release"
    )
    recall_sample_rate: float = Field(
        0.01, ge=0, le=1, description="share of recalls that are repeated exactly to estimate online ANN recall"
    )
    allowed_hosts: tuple[str, ...] = Field(
        (), description="accepted values of `Host`; empty: loopback names, or any if there are API keys"
    )
    log_requests: bool = Field(default=False, description="log every request, not only failed ones")
    limits: Limits = Limits()

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if not is_hostname(host):
                raise ValueError("expected names of hosts, such as recall.example.com, without a scheme or a path")
        return hosts


def load_settings(path: Path | None, overrides: Mapping[str, object]) -> ServeSettings:
    """Load settings from a file and override some of them.

    Args:
        path: TOML with the keys of `ServeSettings` and a table `limits`; None: defaults.
        overrides: values by key, of the command line.

    Raises:
        ConfigError: a key is unknown or a value invalid; the message names it.
    """
    settings = {**({} if path is None else read_toml(path)), **overrides}
    try:
        return ServeSettings.model_validate(settings)
    except ValidationError as error:
        problems = describe_validation_error(error, ServeSettings, settings)
        raise ConfigError("settings of the service: " + "; ".join(map(str, problems))) from None
