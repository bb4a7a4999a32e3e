"""Settings of a workspace: client.toml < environment GREYLAG_CLIENT_... < flags."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import tomli_w
from pydantic import Field, StringConstraints, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from client.data.columns import DataColumns
from protocol.errors import Code, Refused
from protocol.spec import KeyHex, Line, Name
from protocol.statement import first_invalid
from protocol.wire.grpc_client import check_address

PREFIX = "GREYLAG_CLIENT_"


class ClientSettings(BaseSettings):
    """What one contributor chose; the coordinator's side of things stands in the pool document."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    coordinator: str
    """Address of the coordinator, `host:port`."""
    pool_key: KeyHex
    """Public key that signs the pool, its releases and its receipts."""
    base: Annotated[str, StringConstraints(min_length=1)]
    """The base model: a folder or a Hugging Face id."""
    name: Name
    """Name under which the contributor enrols; also an expert's name unless `--name` says otherwise."""
    ca: Path | None = None
    """CA certificate of the coordinator, PEM."""
    key: Path = Path("contributor.key")
    """Private key; a relative path starts at the workspace."""
    license: Annotated[Line, StringConstraints(min_length=1, max_length=100)] = "apache-2.0"
    """License of the experts (an SPDX or Hugging Face identifier)."""
    input_column: str = "input"
    target_column: str = "target"
    messages_column: str = "messages"
    text_column: str = "text"
    embedding: str | None = None
    """What places a shared centroid: folder or Hugging Face id; without one, the base model."""
    share_epsilon: Annotated[float, Field(gt=0, le=100)] | None = None
    """Differential privacy of shared means: noise hides any one row up to this epsilon, at delta 1e-5; none without."""

    @property
    def columns(self) -> DataColumns:
        """Where the examples stand in a data file."""
        return DataColumns(self.input_column, self.target_column, self.messages_column, self.text_column)

    @field_validator("coordinator")
    @classmethod
    def _is_address(cls, value: str) -> str:
        try:
            return check_address(value)
        except Refused as error:
            raise ValueError(error.message) from error


def read(path: Path, **flags: object) -> ClientSettings:
    """Read the settings of a workspace.

    Args:
        path: client.toml.
        flags: Settings given on the command line; None means not given.

    Raises:
        Refused: `SETTINGS_INVALID`, naming the setting, or `WORKSPACE_MISSING`.
    """
    if not path.is_file():
        raise Refused(
            Code.WORKSPACE_MISSING,
            f"{path.parent.resolve()} is no workspace yet: it holds no {path.name}.",
            "Make one with: greylag-client init --coordinator HOST:PORT",
        )

    class Located(ClientSettings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the library's signature
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the library's signature
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, path)

    return _build(Located, flags, where=str(path))


def from_flags(**flags: object) -> ClientSettings:
    """Check the settings of a workspace that is about to be made.

    Raises:
        Refused: `SETTINGS_INVALID`, naming the setting.
    """
    return _build(ClientSettings, flags, where="the command line")


def dump(settings: ClientSettings) -> bytes:
    """Write settings as TOML."""
    return tomli_w.dumps(settings.model_dump(mode="json", exclude_none=True)).encode()


def _check_environment() -> None:
    # pydantic-settings ignores variables that it does not know; a misspelt one should not be ignored.
    for name in os.environ:
        if name.startswith(PREFIX) and name.removeprefix(PREFIX).lower() not in ClientSettings.model_fields:
            known = ", ".join(PREFIX + field.upper() for field in ClientSettings.model_fields)
            raise Refused(Code.SETTINGS_INVALID, f"There is no setting {name}.", f"Known are {known}.")


def _build(cls: type[ClientSettings], flags: Mapping[str, object], *, where: str) -> ClientSettings:
    _check_environment()
    try:
        given: dict[str, Any] = {name: value for name, value in flags.items() if value is not None}
        return cls(**given)
    except ValidationError as error:
        name, reason = first_invalid(error)
        raise Refused(
            Code.SETTINGS_INVALID,
            f"The setting {name} is wrong: {reason}.",
            f"Correct {where}, {PREFIX}{name.upper()} or the flag.",
        ) from error
    except (OSError, ValueError) as error:
        raise Refused(
            Code.SETTINGS_INVALID, f"{where} cannot be read: {error}.", "Correct it, or start a new workspace."
        ) from error
