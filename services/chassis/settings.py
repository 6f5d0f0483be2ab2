"""Configuration from outside: environment variables, and secrets from files."""

import os
import re
import sys
from typing import Annotated, Self
from urllib.parse import quote, urlsplit

from pydantic import Field, Json, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from .addresses import EVERYWHERE

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+]|[^][:\s]+)(:[0-9]{1,5})?")  # with a port or without
Days = Annotated[int, Field(ge=0, le=36500)]  # 0: for ever
# How far ahead things usually are decided, in days. Events about what is further ahead are kept for longer.
HORIZON = 366
Address = Annotated[str, Field(pattern=r"^.+:[0-9]{1,5}$")]


class Process(BaseSettings):
    """What every process needs. A field's variable is its name in capitals; secrets are files in SECRETS_DIR."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True)

    listen: Address = f"{EVERYWHERE}:8080"
    """Address of the server, host:port."""
    metrics_listen: Address = f"{EVERYWHERE}:9090"
    """Address of the Prometheus endpoint, host:port."""
    log_level: Annotated[str, Field(pattern="(?i)^(debug|info|warning|error|critical)$")] = "INFO"
    drain_seconds: float = 0.0
    """From readiness off to the server's stop: time for load balancers to notice."""
    shutdown_seconds: float = 25.0
    """Bound of the whole drain; less than the pod's terminationGracePeriodSeconds."""

    @classmethod
    def load(cls) -> Self:
        """Reads the settings, or ends the process with a line per wrong one, naming it and never its value."""
        try:
            return cls(_secrets_dir=os.environ.get("SECRETS_DIR") or None)  # type: ignore[call-arg]
        except ValidationError as error:
            for problem in error.errors(include_input=False, include_url=False):
                name = str(problem["loc"][0]) if problem["loc"] else ""  # none: it is about several settings
                where = f"setting {name.upper()} (or the file {name} in SECRETS_DIR)" if name else "settings"
                print(f"{where}: {problem['msg']}", file=sys.stderr)  # noqa: T201
            raise SystemExit(2) from None


class Settings(Process):
    """What every service of the domain needs beside that."""

    # Before database_url, whose validator reads it.
    database_password: SecretStr = SecretStr("")
    """The password, where it is not in the URL: operators of stores make Secrets that have it alone."""
    database_url: SecretStr
    """The service's own store; a file in SECRETS_DIR. Of several hosts the one that takes writes is used."""
    nats_url: str
    """NATS servers, comma separated."""
    nats_user: str
    nats_password: SecretStr
    """A file in SECRETS_DIR."""
    claim_names: Json[dict[str, str]] = Field("{}")  # type: ignore[arg-type]  # JSON, as the variable is
    """What the identity provider calls a claim, where that is not our name for it: {"roles": "groups"}."""
    stream_replicas: int = 1
    """Copies of each stream: 1 on one machine, 3 in a cluster."""
    otel_exporter_otlp_endpoint: Annotated[str, Field(pattern="^(https?://.+)?$")] = ""
    """Where traces go: an OpenTelemetry collector's base URL, for OTLP over HTTP; empty: nowhere."""
    max_calls: Annotated[int, Field(gt=0)] = 128
    """Calls in hand at once; what comes above is refused and never queues. A booking keeps a core busy for 7 ms, its
    stores included, so that on one core the last of 128 waits for less than a second, half of what reservation gives
    approval. It bounds what was begun and is the last resort: under three times what the process can do, calls wait in
    gRPC before any code of ours sees them, so that a flood has to end in the proxy before it, whose limit is lower."""
    max_streams: Annotated[int, Field(gt=0)] = 1000
    """Streams in hand at once: they stay, almost idle, and cost memory rather than time."""
    max_connection_age: Annotated[float, Field(gt=0)] = 1800.0
    """Seconds that a client may stay on one connection: who stays for ever would never see new replicas."""

    retention_refused_days: Days = 30
    """Days from the decision for which what was refused is kept. 0: for ever."""
    retention_passed_days: Days = 366
    """Days from the day that it is for, for which anything is kept. 0: for ever."""
    retention_stream_days: Days = 800
    """Days for which events are kept in the stream. 0: for ever. Longer than anything is kept whose events they are,
    from the decision HORIZON days before its day on: a view that is rebuilt is made of them."""

    @model_validator(mode="after")
    def _events_outlive_what_they_tell_of(self) -> Self:
        kept = HORIZON + self.retention_passed_days
        if self.retention_stream_days and (not self.retention_passed_days or self.retention_stream_days <= kept):
            least = f"more than {HORIZON} + RETENTION_PASSED_DAYS = {kept}" if self.retention_passed_days else "0"
            raise ValueError(f"RETENTION_STREAM_DAYS should be {least}, since a view is rebuilt from the stream")
        return self

    @field_validator("database_url")
    @classmethod
    def _is_a_url(cls, value: SecretStr, others: ValidationInfo) -> SecretStr:
        try:
            parts = urlsplit(value.get_secret_value())
            hosts = parts.netloc.rpartition("@")[2].split(",")
            whole = parts.scheme and parts.path.strip("/") and all(map(_HOST.fullmatch, hosts))
        except ValueError:  # whose text quotes the value
            whole = None
        if not whole:
            raise ValueError("should be scheme://user:password@host:port,host:port/database")
        password = others.data["database_password"].get_secret_value().strip()
        if not password:
            return value
        user = parts.netloc.rpartition("@")[0]
        if not user or ":" in user:
            raise ValueError("beside DATABASE_PASSWORD it should be scheme://user@host:port,host:port/database")
        login = f"{user}:{quote(password, safe='')}"
        return SecretStr(parts._replace(netloc=login + parts.netloc[len(user) :]).geturl())
