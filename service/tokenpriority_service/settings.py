"""The one configuration of a server process, read once at start.

Knows the fields, their types, limits and defaults, and where values come from: command-line options before
environment variables (`TOKENPRIORITY_SERVER__PORT=9000`) before the TOML file. Unknown keys are errors. Knows nothing
of what the values do.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

LOOPBACK = ("127.0.0.1", "::1", "localhost")


class InvalidSettings(Exception):
    """The configuration cannot be used; the message is one line naming the key, its value and the limit."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class ServerSettings(_Section):
    """`[server]`: where it listens and how much it takes at once."""

    host: str = "127.0.0.1"
    """Address to listen on; other than loopback needs teams (or `--insecure`)."""
    port: int = Field(8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one and prints it."""
    max_body_bytes: int = Field(33_554_432, ge=1)
    """Largest body of a request."""
    max_sequences: int = Field(1024, ge=1)
    """Most sequences of a request."""
    max_request_tokens: int = Field(262_144, ge=1)
    """Most tokens of a request, over all its sequences."""
    max_queued_tokens: int = Field(2_097_152, ge=1)
    """Most tokens queued or in the engines, over all requests; above it a request is refused with 429."""
    drain_seconds: float = Field(30.0, ge=0)
    """On SIGTERM, how long accepted requests may take to finish before they are cancelled."""

    @model_validator(mode="after")
    def _any_request_fits(self) -> Self:
        if self.max_queued_tokens < 2 * self.max_request_tokens:
            raise ValueError(
                f"max_queued_tokens must be at least twice max_request_tokens ({2 * self.max_request_tokens}), so that "
                f"a request under two models fits an idle server; got {self.max_queued_tokens}"
            )
        return self


class StoreSettings(_Section):
    """`[store]`: the evidence kept in memory."""

    max_bytes: int = Field(1_073_741_824, ge=0)
    """Most bytes of evidence kept (24 per scored token); the least recently used goes first. 0 keeps nothing."""


class ModelSettings(_Section):
    """`[models.NAME]`: one named model of the server."""

    model: str = Field(min_length=1)
    """Folder of a transformers checkpoint, or its hub name. The fake engine takes it as a name alone."""
    engine: Literal["torch", "fake"] = "torch"
    """What runs it."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the weights and of the forward pass; evidence is float32 whatever this is."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where it runs."""
    max_model_len: int | None = Field(None, ge=1)
    """Longest sequence taken, in tokens; default the checkpoint's."""
    max_batch_tokens: int = Field(8192, ge=1)
    """Most tokens, padding included, of one forward pass."""
    logits_bytes: int = Field(268_435_456, ge=1)
    """Most bytes of logits alive at once."""
    threads: int | None = Field(None, ge=1)
    """CPU threads of the engine; default torch's."""


class TeamSettings(_Section):
    """`[teams.NAME]`: who may call. No teams: no keys, loopback only."""

    key_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """SHA-256 of the team's key, lower-case hex; the key itself is nowhere in the server."""


class Settings(BaseSettings):
    """Everything a server process is told."""

    model_config = SettingsConfigDict(
        env_prefix="TOKENPRIORITY_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    server: ServerSettings = ServerSettings()
    store: StoreSettings = StoreSettings()
    models: dict[str, ModelSettings] = {}
    teams: dict[str, TeamSettings] = {}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # the signature is pydantic's
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Options, then environment, then file (`read` sets which)."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @model_validator(mode="after")
    def _keys_are_one_teams(self) -> Self:
        owner: dict[str, str] = {}
        for name, team in self.teams.items():
            if team.key_sha256 in owner:
                raise ValueError(f"teams.{name}.key_sha256 is also that of teams.{owner[team.key_sha256]}")
            owner[team.key_sha256] = name
        return self


def read(file: Path | None = None, options: Mapping[str, Any] | None = None) -> Settings:
    """Settings from a TOML file, the environment and options. Raises InvalidSettings."""
    if file is not None and not file.is_file():
        raise InvalidSettings(f"--config: no such file: {file}")

    class FromFile(Settings):
        model_config = SettingsConfigDict(toml_file=file)

    try:
        return FromFile(**(options or {}))
    except tomllib.TOMLDecodeError as error:
        raise InvalidSettings(f"{file}: not valid TOML: {error}") from None
    except ValidationError as error:
        raise InvalidSettings(f"{file or 'settings'}: {_explain(error)}") from None


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    kinds = {"extra_forbidden": "unknown key", "missing": "is required"}
    what = kinds.get(first["type"], first["msg"].removeprefix("Value error, "))
    # A key pasted in place of its hash is not printed.
    shown = first["type"] not in ("missing", "value_error") and first["loc"][:1] != ("teams",)
    got = f", got {first['input']!r}" if shown else ""
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{key}: {what}{got}{more}" if key else f"{what}{more}"
