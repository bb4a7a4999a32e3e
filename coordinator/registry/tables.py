"""The rows: who contributes, what arrived, what became of it.

Times are text as in signed documents (UTC, whole seconds): equal on every database, and ordered.
"""

from sqlalchemy import BigInteger, ForeignKey, Integer, LargeBinary, MetaData, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

_DIGEST = String(64)
_TIME = String(20)


class RegistryTable(DeclarativeBase):
    """Declares every table; constraints carry names so that migrations can find them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Contributor(RegistryTable):
    """A key under a name; a later key of the same contributor is a rotation."""

    __tablename__ = "contributors"

    key: Mapped[str] = mapped_column(_DIGEST, primary_key=True)
    """Raw Ed25519 public key in hexadecimal."""
    name: Mapped[str] = mapped_column(String(64), unique=True)
    state: Mapped[str] = mapped_column(String(16))
    """active, pending or revoked."""
    envelope: Mapped[bytes] = mapped_column(LargeBinary)
    """The signed enrolment."""
    enrolled: Mapped[str] = mapped_column(_TIME)
    invite: Mapped[str | None] = mapped_column(String(8), default=None)
    """Name of the invite that it came by; null for none."""


class RotationRow(RegistryTable):
    """A key that took another's place. All other rows go on naming a contributor by the first key."""

    __tablename__ = "rotations"

    new: Mapped[str] = mapped_column(_DIGEST, primary_key=True)
    old: Mapped[str] = mapped_column(_DIGEST, unique=True)
    contributor: Mapped[str] = mapped_column(ForeignKey("contributors.key"), index=True)
    envelope: Mapped[bytes] = mapped_column(LargeBinary)
    """The signed rotation or recovery; empty where only the log still tells of it."""
    rotated: Mapped[str] = mapped_column(_TIME)


class Invite(RegistryTable):
    """A way in for new keys."""

    __tablename__ = "invites"

    name: Mapped[str] = mapped_column(String(8), primary_key=True)
    """The first eight digits of its token, which are no secret."""
    sha256: Mapped[str] = mapped_column(_DIGEST, unique=True)
    """Of the token."""
    uses: Mapped[int]
    """How many keys it lets in."""
    state: Mapped[str] = mapped_column(String(16))
    """made or revoked."""
    made: Mapped[str] = mapped_column(_TIME)
    expires: Mapped[str] = mapped_column(_TIME)
    note: Mapped[str] = mapped_column(Text)
    """The operator's own."""


class Upload(RegistryTable):
    """An upload session: bytes may arrive, nothing is kept yet."""

    __tablename__ = "uploads"

    digest: Mapped[str] = mapped_column(_DIGEST, primary_key=True)
    contributor: Mapped[str] = mapped_column(ForeignKey("contributors.key"), index=True)
    token: Mapped[bytes] = mapped_column(LargeBinary)
    envelope: Mapped[bytes] = mapped_column(LargeBinary)
    total_bytes: Mapped[int] = mapped_column(BigInteger)
    expires: Mapped[str] = mapped_column(_TIME)


class BundleRow(RegistryTable):
    """A bundle whose bytes are all in the store."""

    __tablename__ = "bundles"

    sequence: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    """Order of arrival, without holes."""
    digest: Mapped[str] = mapped_column(_DIGEST, unique=True)
    contributor: Mapped[str] = mapped_column(ForeignKey("contributors.key"), index=True)
    name: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16), index=True)
    envelope: Mapped[bytes] = mapped_column(LargeBinary)
    receipt: Mapped[bytes] = mapped_column(LargeBinary)
    received: Mapped[str] = mapped_column(_TIME)
    code: Mapped[str] = mapped_column(String(32), default="")
    """Why it was refused or yanked, or waits for a person; empty otherwise."""
    message: Mapped[str] = mapped_column(Text, default="")
    hint: Mapped[str] = mapped_column(Text, default="")
    release: Mapped[int] = mapped_column(default=0)
    """First release that holds it; 0 for none."""


class BundleFile(RegistryTable):
    """One file of a bundle by content."""

    __tablename__ = "bundle_files"

    bundle: Mapped[str] = mapped_column(ForeignKey("bundles.digest"), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    sha256: Mapped[str] = mapped_column(_DIGEST, index=True)
    size: Mapped[int] = mapped_column(BigInteger)


class Sketch(RegistryTable):
    """What an expert adds in a few numbers, by which copies of it are found; kept whatever becomes of the bundle."""

    __tablename__ = "sketches"

    bundle: Mapped[str] = mapped_column(ForeignKey("bundles.digest"), primary_key=True)
    content: Mapped[bytes] = mapped_column(LargeBinary)
    """float16 numbers; empty for an expert that an operator lets come again."""


class SwitchRow(RegistryTable):
    """Something that an operator has shut; no row where it is open."""

    __tablename__ = "switches"

    name: Mapped[str] = mapped_column(String(16), primary_key=True)
    reason: Mapped[str] = mapped_column(Text)
    """One public sentence."""


class CapRow(RegistryTable):
    """Biases that keep everybody to a share of a list of experts."""

    __tablename__ = "caps"

    fitted_for: Mapped[str] = mapped_column(_DIGEST, primary_key=True)
    """Digest of the list, and of all else that a fit depends on."""
    sha256: Mapped[str] = mapped_column(_DIGEST, index=True)
    """Empty where nobody takes too much."""
    size: Mapped[int] = mapped_column(Integer)
    content: Mapped[bytes] = mapped_column(LargeBinary, deferred=True)


class ReleaseRow(RegistryTable):
    """A signed release."""

    __tablename__ = "releases"

    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    digest: Mapped[str] = mapped_column(_DIGEST, unique=True)
    envelope: Mapped[bytes] = mapped_column(LargeBinary)


class Node(RegistryTable):
    """The key of a contributor's daemon."""

    __tablename__ = "nodes"

    fingerprint: Mapped[str] = mapped_column(_DIGEST, primary_key=True)
    """sha256 of the public key's PEM text."""
    contributor: Mapped[str] = mapped_column(ForeignKey("contributors.key"), index=True)
    public: Mapped[str] = mapped_column(Text)
    """Public key, PEM."""
    state: Mapped[str] = mapped_column(String(16))
    """active, or revoked for ever: Flower never takes a key twice."""
    envelope: Mapped[bytes] = mapped_column(LargeBinary)
    """The signed binding."""
    bound: Mapped[str] = mapped_column(_TIME)


class Candidate(RegistryTable):
    """A list of experts that may become the newest release."""

    __tablename__ = "candidates"

    sequence: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    digest: Mapped[str] = mapped_column(_DIGEST, unique=True)
    envelope: Mapped[bytes] = mapped_column(LargeBinary)
    state: Mapped[str] = mapped_column(String(16), index=True)
    """open, promoted, held_back, or overtaken by another release or a larger candidate."""
    decision: Mapped[bytes | None] = mapped_column(LargeBinary, default=None)
    """The last signed decision about it."""


class Campaign(RegistryTable):
    """One question to all nodes."""

    __tablename__ = "campaigns"

    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    kind: Mapped[str] = mapped_column(String(16))
    state: Mapped[str] = mapped_column(String(16), index=True)
    """running, finished or stopped."""
    envelope: Mapped[bytes] = mapped_column(LargeBinary)
    """The signed order."""
    candidate: Mapped[str] = mapped_column(_DIGEST, default="")
    """Digest of the candidate that an `evaluate` or a `calibrate` is about."""
    open_until: Mapped[str] = mapped_column(_TIME)
    """Until then nodes that come late are asked, too."""
    expires: Mapped[str] = mapped_column(_TIME)
    """Then it ends, whoever is still silent."""
    created: Mapped[str] = mapped_column(_TIME)
    conclusion: Mapped[str] = mapped_column(Text, default="")
    """One sentence."""


class CampaignAnswer(RegistryTable):
    """Where one contributor's node stands in one campaign."""

    __tablename__ = "answers"

    campaign: Mapped[int] = mapped_column(ForeignKey("campaigns.number"), primary_key=True)
    contributor: Mapped[str] = mapped_column(ForeignKey("contributors.key"), primary_key=True)
    state: Mapped[str] = mapped_column(String(16))
    """asked, waiting (to be asked again), done, or failed."""
    attempts: Mapped[int]
    message: Mapped[str] = mapped_column(String(128))
    """Flower's identifier of the message that asks; empty when none is under way."""
    at: Mapped[str] = mapped_column(_TIME)
    code: Mapped[str] = mapped_column(String(32), default="")
    """Why it declined or failed."""
    facts: Mapped[str] = mapped_column(Text, default="{}")
    """What it answered, as JSON: numbers, digests and words of the reply's schema."""


class Round(RegistryTable):
    """One round of a campaign that goes in rounds."""

    __tablename__ = "rounds"

    campaign: Mapped[int] = mapped_column(ForeignKey("campaigns.number"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    envelope: Mapped[bytes] = mapped_column(LargeBinary)
    """The signed order of this round."""
    ends: Mapped[str] = mapped_column(_TIME)
    """Who has not answered then is late."""
    sha256: Mapped[str] = mapped_column(_DIGEST, index=True, default="")
    """Of what it came to; empty before its end, and for one that came to nothing."""
    content: Mapped[bytes | None] = mapped_column(LargeBinary, default=None, deferred=True)
    noise: Mapped[float | None] = mapped_column(default=None)
    """Noise multiplier of the noise that is in it; null for none."""
    facts: Mapped[str] = mapped_column(Text, default="{}")
    """Who took part and who was late, as JSON."""


class Update(RegistryTable):
    """What a node learnt in the round that is going on; gone when the round is over."""

    __tablename__ = "updates"

    campaign: Mapped[int] = mapped_column(ForeignKey("campaigns.number"), primary_key=True)
    contributor: Mapped[str] = mapped_column(ForeignKey("contributors.key"), primary_key=True)
    content: Mapped[bytes] = mapped_column(LargeBinary)
    """float32 numbers."""


class Event(RegistryTable):
    """One step of anything, in the order of commits; written once, never changed."""

    __tablename__ = "events"

    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    at: Mapped[str] = mapped_column(_TIME)
    """Never earlier than the event before, whatever the server's clock does."""
    kind: Mapped[str] = mapped_column(String(16))
    """pool, invite, contributor, node, bundle, check (of a bundle), candidate, release, campaign or act."""
    subject: Mapped[str] = mapped_column(_DIGEST, index=True)
    """Key or digest."""
    step: Mapped[str] = mapped_column(String(16))
    """The state that was reached."""
    actor: Mapped[str] = mapped_column(String(64))
    """contributor, worker, rule or operator."""
    code: Mapped[str] = mapped_column(String(32), default="")
    message: Mapped[str] = mapped_column(Text, default="")


class LogNode(RegistryTable):
    """The hash of one perfect subtree of the transparency log, whose entries are the events; written once."""

    __tablename__ = "log_nodes"

    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    """As `protocol.log.merkle.Subtree.number`."""
    sha256: Mapped[bytes] = mapped_column(LargeBinary)


class Cosigned(RegistryTable):
    """The last checkpoint of the log that a witness has signed."""

    __tablename__ = "cosigned"

    witness: Mapped[str] = mapped_column(String(300), primary_key=True)
    """Its key, as `protocol.log.note.NoteKey` is written."""
    size: Mapped[int]
    """Entries that it signed for."""
    note: Mapped[bytes] = mapped_column(LargeBinary)
