"""What a user may set: router.toml < GREYLAG_ROUTER_... < flags."""

from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from protocol.files.atomic import write_whole
from protocol.log.reader import Quorum
from protocol.settings import dump_settings, read_settings
from protocol.signing import PublicKey
from protocol.statement import SHA256
from router.base.device_map import Bits
from router.base.loading import Loading
from router.query.limits import CHEAP, MAX_NEW_TOKENS, Allowance
from router.query.request import MAX_K

FILE = "router.toml"


class ServingSettings(BaseSettings):
    """What is served, where, and to whom."""

    model_config = SettingsConfigDict(env_prefix="GREYLAG_ROUTER_", extra="forbid", frozen=True)

    base: str
    """The pool's base model: folder or Hugging Face id."""
    device: str | None = None
    """A torch device, or `auto`, which spreads the base over all GPUs, then memory, then disk; without one, the first
    GPU, or the CPU."""
    max_memory: dict[str, str] = {}
    """Most that a base that is spread takes of a GPU, by number, or of memory, `cpu`: amounts as in `20GiB`."""
    quantise: Bits | None = None
    """Bits in which the base's weights are held, `4bit` or `8bit`; without it, those of its files."""
    embedding: str | None = None
    """What the method retrieval embeds queries by: folder or Hugging Face id; without one, the base model."""
    public_text: Path | None = None
    """Text that anybody may know, one a line, like what the pool is asked: methods by mixture hold requests against it.
    Without it, random tokens."""
    listen: str | None = "127.0.0.1:50052"
    """Where `serve` answers over gRPC, `host:port`; None, which no file can say, for nowhere."""
    http: str | None = None
    """Where `serve` answers over HTTP, too, `host:port`."""
    http_without_keys: bool = False
    """Whether it answers anybody there, also beyond loopback, while the workspace has no users."""
    http_without_tls: bool = False
    """Whether it answers there in plain text, also beyond loopback, as behind a proxy that speaks TLS."""
    methods: tuple[str, ...] = CHEAP
    """Methods that callers of `serve` may choose beside the release's own, without arguments, such as `expert`."""
    max_k: int = Field(default=8, ge=1, le=MAX_K)
    """Most experts a token that they may ask for."""
    max_new_tokens: int = Field(default=MAX_NEW_TOKENS, ge=1, le=MAX_NEW_TOKENS)
    """Longest answer that they may ask for, in tokens."""
    seats: int = Field(default=16, ge=1, le=1024)
    """Requests that `serve` answers at a time."""
    max_waiting: int = Field(default=1024, ge=1)
    """Requests that may wait beside them; whoever comes then is told that the router is busy."""
    memory_share: float = Field(default=0.2, gt=0, le=0.9)
    """What requests may take, for keys and values, of the memory that is free once the model is loaded."""
    tls_cert: Path | None = None
    """Certificate chain of `serve`, PEM."""
    tls_key: Path | None = None
    """Its private key, PEM."""

    @property
    def allowance(self) -> Allowance:
        """What callers may ask for."""
        return Allowance(self.methods, self.max_k, self.max_new_tokens)

    @property
    def loading(self) -> Loading:
        """How the base is held in memory."""
        return Loading(device=self.device, max_memory=self.max_memory, quantise=self.quantise)


class RouterSettings(ServingSettings):
    """Where releases come from, too."""

    coordinator: str
    """The coordinator, `host:port`."""
    pool_key: str | None = None
    """The key that must sign the pool, 64 hexadecimal digits; without it, the one seen first."""
    root: str | None = Field(default=None, pattern=SHA256)
    """Fingerprint of the pool's first root, 64 hexadecimal digits; without it, that which the pool's key signed."""
    witnesses: tuple[str, ...] = ()
    """Keys of witnesses of the pool's log, as `greylag-router witness` prints them."""
    witnesses_needed: int | None = Field(default=None, ge=0)
    """How many of them must have signed for a release before it is taken; all of them unless set."""
    ca: Path | None = None
    """The coordinator's CA certificate, PEM; without one, the system's."""
    answer_expired: bool = True
    """Whether `serve` still answers once the newest release it could get has expired; where not, its health says so."""
    follow_interval_s: float = Field(default=10.0, gt=0)
    """Seconds between two looks for a new release."""

    @property
    def contact(self) -> dict[str, Any]:
        """How the coordinator is spoken to, as `router.follow.source.Contact` (`KEY_TYPE`, `SETTINGS_INVALID`)."""
        quorum = Quorum.read(self.witnesses, self.witnesses_needed)
        pool_key = PublicKey.from_hex(self.pool_key) if self.pool_key else None
        return {"ca": self.ca, "pool_key": pool_key, "root": self.root, "quorum": quorum}


def load(folder: Path, **flags: Any) -> RouterSettings:
    """Read the settings of a workspace, under flags of the command line; None stands for one that was not given.

    Raises:
        Refused: `SETTINGS_INVALID` with the setting and what is wrong with it.
    """
    flags["witnesses"] = flags.get("witnesses") or None  # of a flag that may be repeated, none is an empty list
    return read_settings(RouterSettings, flags, folder / FILE)


def load_serving(**flags: Any) -> ServingSettings:
    """Read the settings of a router that no coordinator tells anything: of flags and variables alone.

    Raises:
        Refused: As `load`.
    """
    return read_settings(ServingSettings, flags)


def save(folder: Path, settings: RouterSettings) -> None:
    """Write the settings that differ from their defaults, for the next command, which may run elsewhere."""
    absolute: dict[str, object] = {name: value.resolve() for name, value in settings if isinstance(value, Path)}
    models = {"base": settings.base, "embedding": settings.embedding}
    absolute |= {name: str(Path(model).resolve()) for name, model in models.items() if model and Path(model).is_dir()}
    write_whole(folder / FILE, dump_settings(settings.model_copy(update=absolute)))
