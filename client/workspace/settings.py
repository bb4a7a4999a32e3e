"""Settings of a workspace: client.toml < environment GREYLAG_CLIENT_... < flags."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from client.data.columns import DataColumns
from protocol.errors import Refused
from protocol.spec import KeyHex, Line, Name
from protocol.wire.grpc_client import check_address


class ClientSettings(BaseSettings):
    """What one contributor chose; the coordinator's side of things stands in the pool document."""

    model_config = SettingsConfigDict(env_prefix="GREYLAG_CLIENT_", extra="forbid", frozen=True)

    coordinator: str
    """Address of the coordinator, `host:port`."""
    pool_key: KeyHex
    """Public key that signs the pool, its releases and its receipts."""
    base: Annotated[str, StringConstraints(min_length=1)]
    """The base model: a folder or a Hugging Face id."""
    name: Name
    """Name under which the contributor enrols; also an expert's name unless `--name` says otherwise."""
    witnesses: tuple[str, ...] = ()
    """Keys of witnesses of the pool's log, who must have signed for what `verify` looks up."""
    witnesses_needed: Annotated[int, Field(ge=0)] | None = None
    """How many of them; all unless set."""
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
            check_address(value)
        except Refused as error:
            raise ValueError(error.message) from error
        return value
