"""The registry: the only module that asks and tells the database.

Every change is one transaction that also writes its events; what is to happen because of an event
(a log line, a counter) happens after the commit. Writers stand in line (SQLite: BEGIN IMMEDIATE,
PostgreSQL: one advisory lock), so that numbers have no holes and events lie in commit order.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime

from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session

from coordinator.faults import fault_point
from coordinator.policy.lifecycle import PUBLIC, Standing, State
from coordinator.registry import database, journal
from coordinator.registry.cascades import overtake, revoke_nodes
from coordinator.registry.standing import read_standing
from coordinator.registry.tables import BundleFile, BundleRow, Contributor, Event, ReleaseRow, Upload
from protocol.bundle import Manifest
from protocol.errors import Code, GreylagError, Refused
from protocol.release import Enrolment, Release, timestamp

_WRITERS_LOCK = 0x677265796C6167  # any constant; all coordinators of one database share it
_UNIQUE_PREFIX = 8


class Registry:
    """Contributors, uploads, bundles, releases and events in one database.

    Rows that are returned are detached: reading them costs nothing, changing them changes nothing.

    Args:
        engine: As `database.connect` makes it.
        on_event: Called after the commit for every event of a transaction.
    """

    def __init__(self, engine: Engine, on_event: Callable[[Event], None] = lambda _: None) -> None:
        self._engine = engine
        self._reading = engine.execution_options(**database.READ_ONLY)
        self._on_event = on_event

    @classmethod
    def open(cls, url: str, on_event: Callable[[Event], None] = lambda _: None, *, migrate: bool = False) -> "Registry":
        """Connect to a registry.

        Args:
            url: SQLAlchemy URL.
            on_event: As for the class.
            migrate: Make or upgrade the schema first.

        Raises:
            Refused: `SETTINGS_INVALID`, or `SCHEMA_MISMATCH` for an older or newer schema.
            Unavailable: `BUSY` if the database does not answer.
        """
        engine = database.connect(url)
        try:
            with database.translated():
                if migrate:
                    database.migrate(engine)
                database.check_schema(engine)
        except GreylagError:
            engine.dispose()
            raise
        return cls(engine, on_event)

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    @property
    def is_empty(self) -> bool:
        """No key has ever enrolled, so nothing else can be here either."""
        return not self.contributors()

    # Contributors.

    def enrol(self, enrolment: Enrolment, envelope: bytes, *, state: str, now: datetime) -> str:
        """Remember a key under its name, and return its state; a known pair stays as it is.

        Raises:
            Refused: `NAME_TAKEN` or `KEY_REVOKED`.
        """
        with self.writing() as session:
            if (known := session.get(Contributor, enrolment.key)) is not None:
                if known.state == "revoked":
                    raise Refused(Code.KEY_REVOKED, "This key was revoked.", "Make a new key and enrol it.")
                if known.name != enrolment.name:
                    raise Refused(Code.NAME_TAKEN, f"This key is enrolled as {known.name!r} already.", "Use that name.")
                return known.state
            if session.scalar(select(Contributor.key).where(Contributor.name == enrolment.name)):
                raise Refused(Code.NAME_TAKEN, f"The name {enrolment.name!r} is taken.", "Choose another name.")
            session.add(
                Contributor(
                    key=enrolment.key, name=enrolment.name, state=state, envelope=envelope, enrolled=timestamp(now)
                )
            )
            journal.record(session, "contributor", enrolment.key, state, actor="contributor", now=now)
            return state

    def contributor(self, key: str) -> Contributor | None:
        """Look up one key."""
        with self.reading() as session:
            return session.get(Contributor, key)

    def contributors(self) -> list[Contributor]:
        """Everyone, in order of enrolment."""
        with self.reading() as session:
            return list(session.scalars(select(Contributor).order_by(Contributor.enrolled, Contributor.key)))

    def set_contributor(self, name_or_key: str, state: str, *, now: datetime) -> Contributor:
        """Approve (active) or revoke a key, and with it its nodes.

        Raises:
            Refused: `KEY_UNKNOWN`.
        """
        with self.writing() as session:
            found = session.scalar(
                select(Contributor).where((Contributor.name == name_or_key) | (Contributor.key == name_or_key))
            )
            if found is None:
                raise Refused(
                    Code.KEY_UNKNOWN, f"No contributor {name_or_key!r}.", "Try: greylag-coordinator contributors ls"
                )
            if found.state != state:
                found.state = state
                journal.record(session, "contributor", found.key, state, actor="operator", now=now)
                if state == "revoked":
                    revoke_nodes(session, found.key, actor="operator", now=now)
            return found

    # Uploads.

    def standing(self, manifest: Manifest) -> Standing:
        """Read what bears on a new bundle."""
        with self.reading() as session:
            return read_standing(session, manifest)

    def begin(
        self, manifest: Manifest, *, check: Callable[[Standing, int], None], token: bytes, expires: datetime
    ) -> Upload:
        """Open an upload session, or find the one there is and let it live longer.

        Args:
            manifest: The bundle.
            check: Judges, in the same transaction, the standing and the signed size in bytes of all other uploads.
            token: Secret of a new session.
            expires: When the session ends.

        Raises:
            GreylagError: Whatever `check` refuses with.
        """
        with self.writing() as session:
            others = session.scalar(select(func.sum(Upload.total_bytes)).where(Upload.digest != manifest.digest))
            check(read_standing(session, manifest), int(others or 0))
            upload = session.get(Upload, manifest.digest)
            if upload is None:
                upload = Upload(
                    digest=manifest.digest,
                    contributor=manifest.spec.contributor,
                    token=token,
                    envelope=manifest.envelope,
                    total_bytes=manifest.total_bytes,
                    expires=timestamp(expires),
                )
                session.add(upload)
            upload.expires = timestamp(expires)
            return upload

    def upload(self, digest: str, *, now: datetime) -> Upload | None:
        """Find an upload session that has not expired."""
        with self.reading() as session:
            upload = session.get(Upload, digest)
            return upload if upload is not None and upload.expires > timestamp(now) else None

    def uploads(self) -> set[str]:
        """Digests of every upload session, expired ones too."""
        with self.reading() as session:
            return set(session.scalars(select(Upload.digest)))

    def expire_uploads(self, *, now: datetime) -> list[str]:
        """Forget sessions whose time is over, and return their digests."""
        with self.writing() as session:
            expired = list(session.scalars(select(Upload).where(Upload.expires <= timestamp(now))))
            for upload in expired:
                session.delete(upload)
            return [upload.digest for upload in expired]

    # Bundles.

    def keep(
        self,
        manifest: Manifest,
        *,
        check: Callable[[Standing], None],
        sign: Callable[[int], bytes],
        now: datetime,
    ) -> bytes:
        """Make a bundle whose bytes are in the store a row, and return its receipt.

        Args:
            manifest: The bundle.
            check: Judges the standing once more, in the same transaction: two uploads may have begun side by side.
            sign: Makes the receipt for a sequence number.
            now: The time.

        Raises:
            Refused: Whatever `check` refuses with.
        """
        with self.writing() as session:
            if known := _bundle(session, manifest.digest):
                return known.receipt
            check(read_standing(session, manifest))
            sequence = (session.scalar(select(func.max(BundleRow.sequence))) or 0) + 1
            row = BundleRow(
                sequence=sequence,
                digest=manifest.digest,
                contributor=manifest.spec.contributor,
                name=manifest.spec.name,
                state=State.RECEIVED,
                envelope=manifest.envelope,
                receipt=sign(sequence),
                received=timestamp(now),
            )
            session.add(row)
            session.flush()
            session.add_all(
                BundleFile(bundle=manifest.digest, name=name, sha256=file.sha256, size=file.size)
                for name, file in manifest.files.items()
            )
            if upload := session.get(Upload, manifest.digest):
                session.delete(upload)
            journal.record(session, "bundle", manifest.digest, State.RECEIVED, actor="contributor", now=now)
            session.flush()
            fault_point("before-commit")
            receipt = row.receipt
        fault_point("after-commit")
        return receipt

    def bundle(self, digest: str) -> BundleRow | None:
        """Find a bundle."""
        with self.reading() as session:
            return _bundle(session, digest)

    def find_bundle(self, digest: str) -> BundleRow:
        """Find a bundle by the first eight or more digits of its digest.

        Raises:
            Refused: `BUNDLE_UNKNOWN` for none or several.
        """
        found: list[BundleRow] = []
        if len(digest) >= _UNIQUE_PREFIX:
            with self.reading() as session:
                query = select(BundleRow).where(BundleRow.digest.startswith(digest, autoescape=True))
                found = list(session.scalars(query))
        if len(found) != 1:
            raise Refused(
                Code.BUNDLE_UNKNOWN,
                f"{digest!r:.80} does not name one bundle.",
                f"Give {_UNIQUE_PREFIX} or more digits of a digest from: greylag-coordinator experts ls",
            )
        return found[0]

    def bundles(self, *states: State) -> list[BundleRow]:
        """Bundles in given states, or all, in order of arrival."""
        query = select(BundleRow).order_by(BundleRow.sequence)
        with self.reading() as session:
            return list(session.scalars(query.where(BundleRow.state.in_(states)) if states else query))

    def digests(self, *states: State) -> set[str]:
        """Digests of the bundles in given states."""
        with self.reading() as session:
            return set(session.scalars(select(BundleRow.digest).where(BundleRow.state.in_(states))))

    def files(self) -> dict[str, int]:
        """Sizes in bytes by sha256 of every file that some bundle needs."""
        with self.reading() as session:
            rows = session.execute(select(BundleFile.sha256, BundleFile.size))
            return {row.sha256: row.size for row in rows}

    def public_size(self, sha256: str) -> int | None:
        """Size in bytes of a file that anyone may fetch; None for every other."""
        query = (
            select(BundleFile.size)
            .join(BundleRow, BundleRow.digest == BundleFile.bundle)
            .where(BundleFile.sha256 == sha256, BundleRow.state.in_(PUBLIC))
        )
        with self.reading() as session:
            return session.scalars(query).first()

    def move(
        self, digest: str, *steps: State, actor: str, now: datetime, reason: GreylagError | None = None
    ) -> BundleRow:
        """Take a bundle through one or more steps of its life, in one transaction.

        Raises:
            Refused: `BUNDLE_UNKNOWN` or `STATE_CHANGE`.
        """
        with self.writing() as session:
            row = _bundle(session, digest)
            if row is None:
                raise Refused(
                    Code.BUNDLE_UNKNOWN,
                    f"There is no bundle {digest[:16]}.",
                    "List the bundles with: greylag-coordinator experts ls",
                )
            for step in steps:
                journal.take_step(session, row, step, actor=actor, now=now, reason=reason)
            return row

    # Releases.

    def publish(
        self,
        release: Release,
        steps: Mapping[str, State],
        *,
        now: datetime,
        decide: Callable[[Session], None] = lambda _: None,
    ) -> None:
        """Store a release together with the steps that its bundles take by it.

        Args:
            release: The release.
            steps: The step of each bundle, by digest.
            now: The time.
            decide: Keeps, in the same transaction, the decision that led here.

        Raises:
            Refused: `STATE_CHANGE` if a bundle or the newest release changed meanwhile, so that the list is
                not exactly what is released.
        """
        number = release.spec.number
        with self.writing() as session:
            newest = session.scalar(select(func.max(ReleaseRow.number))) or 0
            if newest + 1 != number:
                raise Refused(Code.STATE_CHANGE, f"Release {number} cannot follow release {newest}.")
            session.add(ReleaseRow(number=number, digest=release.digest, envelope=release.envelope))
            decide(session)
            overtake(session, now=now)
            journal.record(session, "release", release.digest, str(number), actor="worker", now=now)
            for digest, step in steps.items():
                if row := _bundle(session, digest):
                    journal.take_step(session, row, step, actor="worker", now=now)
                    if step is State.RELEASED:
                        row.release, row.code, row.message, row.hint = number, "", "", ""
            released = set(session.scalars(select(BundleRow.digest).where(BundleRow.state == State.RELEASED)))
            if released != {expert.bundle for expert in release.spec.experts}:
                raise Refused(Code.STATE_CHANGE, f"Release {number} does not list what is released.")

    def release(self, number: int = 0) -> ReleaseRow | None:
        """Find a release by number, or the newest (0)."""
        with self.reading() as session:
            if number:
                return session.get(ReleaseRow, number)
            return session.scalars(select(ReleaseRow).order_by(ReleaseRow.number.desc()).limit(1)).first()

    def release_by(self, digest: str) -> ReleaseRow | None:
        """Find a release by digest."""
        with self.reading() as session:
            return session.scalars(select(ReleaseRow).where(ReleaseRow.digest == digest)).one_or_none()

    def releases(self) -> list[ReleaseRow]:
        """All releases, oldest first."""
        with self.reading() as session:
            return list(session.scalars(select(ReleaseRow).order_by(ReleaseRow.number)))

    def events(self, subject: str | None = None) -> list[Event]:
        """The journal, or what it says of one key or digest."""
        query = select(Event).order_by(Event.number)
        with self.reading() as session:
            return list(session.scalars(query if subject is None else query.where(Event.subject == subject)))

    # Transactions.

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Open a transaction that only reads."""
        with database.translated(), Session(self._reading, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """Open a transaction that writes; its events are announced after the commit."""
        with database.translated(), Session(self._engine, expire_on_commit=False) as session:
            with session.begin():
                if self._engine.dialect.name == "postgresql":
                    session.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _WRITERS_LOCK})
                yield session
            events: Iterable[Event] = session.info.get("events", ())
        for event in events:
            self._on_event(event)


def _bundle(session: Session, digest: str) -> BundleRow | None:
    return session.scalars(select(BundleRow).where(BundleRow.digest == digest)).one_or_none()
