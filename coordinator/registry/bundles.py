"""Bundles and the steps of their lives."""

from collections.abc import Callable
from datetime import datetime

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from coordinator.faults import fault_point
from coordinator.policy.lifecycle import WAITING, Standing, State, is_public
from coordinator.policy.switches import Switch, check_open
from coordinator.registry import journal
from coordinator.registry.enrolment.keys import holder, key_state
from coordinator.registry.switches import read_switches
from coordinator.registry.tables import BundleFile, BundleRow, Contributor, Event, Sketch, Upload
from coordinator.registry.transactions import Subject
from protocol.bundle import ADAPTER_WEIGHTS, Manifest, read_manifest
from protocol.compatibility import Submitted
from protocol.documents import timestamp
from protocol.errors import Code, GreylagError, Refused

_UNIQUE_PREFIX = 8

_OUT = State.REFUSED, State.YANKED
"""States that keep a bundle's weights out, and of whose bytes nothing is needed."""


class Bundles(Subject):
    """Every bundle that was ever acknowledged."""

    def keep(
        self, manifest: Manifest, *, check: Callable[[Standing], None], sign: Callable[[int], bytes], now: datetime
    ) -> bytes:
        """Make a bundle whose bytes are in the store a row, and return its receipt.

        Args:
            manifest: The bundle.
            check: Judges the standing once more, in the same transaction: two uploads may have begun side by side.
            sign: Makes the receipt for a sequence number.
            now: The time.

        Raises:
            Refused: Whatever `check` refuses with.
            Unavailable: `CLOSED`.
        """
        with self._registry.writing() as session:
            if known := bundle_row(session, manifest.digest):
                return known.receipt
            check_open(read_switches(session), Switch.POOL, Switch.INTAKE)
            check(read_standing(session, manifest))
            sequence = (session.scalar(select(func.max(BundleRow.sequence))) or 0) + 1
            row = BundleRow(
                sequence=sequence, digest=manifest.digest, contributor=holder(session, manifest.spec.contributor),
                name=manifest.spec.name, state=State.RECEIVED, envelope=manifest.envelope, receipt=sign(sequence),
                received=timestamp(now),
            )  # fmt: skip
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

    def find(self, digest: str) -> BundleRow | None:
        """Find a bundle."""
        with self._registry.reading() as session:
            return bundle_row(session, digest)

    def newest(self) -> BundleRow | None:
        """The bundle that came last."""
        with self._registry.reading() as session:
            return session.scalars(select(BundleRow).order_by(BundleRow.sequence.desc()).limit(1)).first()

    def by_prefix(self, digest: str) -> BundleRow:
        """Find a bundle by the first eight or more digits of its digest.

        Raises:
            Refused: `BUNDLE_UNKNOWN` for none or several.
        """
        found: list[BundleRow] = []
        if len(digest) >= _UNIQUE_PREFIX:
            with self._registry.reading() as session:
                query = select(BundleRow).where(BundleRow.digest.startswith(digest, autoescape=True))
                found = list(session.scalars(query))
        if len(found) != 1:
            raise Refused(
                Code.BUNDLE_UNKNOWN,
                f"{digest!r:.80} does not name one bundle.",
                f"Give {_UNIQUE_PREFIX} or more digits of a digest from: greylag-coordinator experts ls",
            )
        return found[0]

    def all(self, *states: State) -> list[BundleRow]:
        """Bundles in given states, or all, in order of arrival."""
        query = select(BundleRow).order_by(BundleRow.sequence)
        with self._registry.reading() as session:
            return list(session.scalars(query.where(BundleRow.state.in_(states)) if states else query))

    def held(self) -> set[str]:
        """Digests of the bundles that may be in a release: accepted and released ones."""
        states = State.ACCEPTED, State.RELEASED
        with self._registry.reading() as session:
            return set(session.scalars(select(BundleRow.digest).where(BundleRow.state.in_(states))))

    def files(self) -> set[str]:
        """The sha256 of every file that some bundle needs; a refused or yanked one needs none."""
        query = select(BundleFile.sha256).join(BundleRow, BundleRow.digest == BundleFile.bundle)
        with self._registry.reading() as session:
            return set(session.scalars(query.where(BundleRow.state.not_in(_OUT))))

    def files_of_refused(self, until: str) -> dict[str, set[str]]:
        """Files of every bundle that was refused before some time, by the bundle."""
        query = (
            select(BundleFile.bundle, BundleFile.sha256)
            .join(BundleRow, BundleRow.digest == BundleFile.bundle)
            .join(Event, (Event.subject == BundleRow.digest) & (Event.step == State.REFUSED))
            .where(BundleRow.state == State.REFUSED, Event.kind == "bundle", Event.at < until)
        )
        found: dict[str, set[str]] = {}
        with self._registry.reading() as session:
            for digest, sha256 in session.execute(query):
                found.setdefault(digest, set()).add(sha256)
        return found

    def public_size(self, sha256: str) -> int | None:
        """Size in bytes of a file that anyone may fetch; None for every other."""
        query = (
            select(BundleFile.size, BundleRow.state, BundleRow.release)
            .join(BundleRow, BundleRow.digest == BundleFile.bundle)
            .where(BundleFile.sha256 == sha256)
        )
        with self._registry.reading() as session:
            return next((size for size, state, release in session.execute(query) if is_public(state, release)), None)

    def of_active_keys(self, state: State) -> list[BundleRow]:
        """Bundles in a state whose contributors' keys may submit, in order of arrival; the others wait."""
        query = select(BundleRow).join(Contributor).where(Contributor.state == "active", BundleRow.state == state)
        with self._registry.reading() as session:
            return list(session.scalars(query.order_by(BundleRow.sequence)))

    def of_revoked_keys(self) -> list[BundleRow]:
        """Bundles that wait for something and whose contributors' keys were revoked, in order of arrival."""
        query = select(BundleRow).join(Contributor).where(Contributor.state == "revoked", BundleRow.state.in_(WAITING))
        with self._registry.reading() as session:
            return list(session.scalars(query.order_by(BundleRow.sequence)))

    def check_failed(self, digest: str, reason: GreylagError, *, now: datetime) -> int:
        """Remember that the check of a bundle came to no verdict, and return how often that happened."""
        with self._registry.writing() as session:
            journal.record(session, "check", digest, "failed", actor="worker", now=now, reason=reason)
            failed = select(func.count()).where(Event.subject == digest, Event.kind == "check")
            return session.scalars(failed).one()

    def move(
        self,
        digest: str,
        *steps: State,
        actor: str,
        now: datetime,
        reason: GreylagError | None = None,
        pause: bool = False,
    ) -> BundleRow:
        """Take a bundle through one or more steps of its life, in one transaction.

        Args:
            digest: The bundle.
            steps: The states, one after the other.
            actor: Who decides.
            now: The time.
            reason: Why.
            pause: Let the contributor's key wait for an operator's approval from now on, and with it what waits.

        Raises:
            Refused: `BUNDLE_UNKNOWN`, `STATE_CHANGE`, `KEY_REVOKED` or `KEY_PENDING`.
        """
        with self._registry.writing() as session:
            row = bundle_row(session, digest)
            if row is None:
                raise Refused(
                    Code.BUNDLE_UNKNOWN,
                    f"There is no bundle {digest[:16]}.",
                    "List the bundles with: greylag-coordinator experts ls",
                )
            if State.ACCEPTED in steps:
                check_open(read_switches(session), Switch.POOL)
            for step in steps:
                why = reason if step is steps[-1] else None
                journal.take_step(session, row, step, actor=actor, now=now, reason=why)
            if State.REFUSED in steps:
                journal.overtake(session, now=now, listing=digest)
            if pause:
                journal.pause(session, row.contributor, actor=actor, now=now, reason=reason)
            return row


def bundle_row(session: Session, digest: str) -> BundleRow | None:
    """Find a bundle's row inside a transaction."""
    return session.scalars(select(BundleRow).where(BundleRow.digest == digest)).one_or_none()


def read_standing(session: Session, manifest: Manifest) -> Standing:
    """Read a key's state, its contributor's bundles and uploads, and which bundle keeps the same weights out."""
    key, digest = manifest.spec.contributor, manifest.digest
    contributor = holder(session, key)
    earlier: dict[str, list[Submitted]] = {}
    for name, other, state in session.execute(
        select(BundleRow.name, BundleRow.digest, BundleRow.state)
        .where(BundleRow.contributor == contributor, BundleRow.digest != digest)
        .order_by(BundleRow.sequence)
    ):
        earlier.setdefault(name, []).append(Submitted(other, state))
    twin = session.scalar(
        select(func.min(BundleRow.sequence))
        .join(BundleFile, BundleFile.bundle == BundleRow.digest)
        .outerjoin(Sketch, Sketch.bundle == BundleRow.digest)
        .where(
            BundleFile.name == ADAPTER_WEIGHTS,
            BundleFile.sha256 == manifest.files[ADAPTER_WEIGHTS].sha256,
            BundleRow.digest != digest,
            ((BundleRow.contributor != contributor) & (BundleRow.state != State.REFUSED)) | _stays_out(),
        )
    )
    sizes = session.execute(
        select(BundleRow.received, BundleRow.state, func.sum(BundleFile.size))
        .join(BundleFile, BundleFile.bundle == BundleRow.digest)
        .where(BundleRow.contributor == contributor, BundleRow.digest != digest)
        .group_by(BundleRow.digest, BundleRow.received, BundleRow.state)
    ).all()
    out = tuple((received, int(size)) for received, state, size in sizes if state in _OUT)
    coming = select(func.sum(Upload.total_bytes)).where(Upload.contributor == contributor, Upload.digest != digest)
    kept = sum(int(size) for _, state, size in sizes if state not in _OUT) + int(session.scalar(coming) or 0)
    others = session.scalars(select(Upload.envelope).where(Upload.contributor == contributor, Upload.digest != digest))
    # What an earlier key began can never be finished.
    begun = (spec for envelope in others if (spec := read_manifest(envelope).spec).contributor == key)
    return Standing(key_state(session, key), earlier, tuple({spec.name for spec in begun}), twin, kept, out)


def _stays_out() -> ColumnElement[bool]:
    """Whether the weights of a bundle stay out, whoever brings them: those were judged, and not the form or the key."""
    unread = Sketch.content.is_(None) & BundleRow.code.in_((Code.COPY_OF.name, Code.VALIDATOR_FAILED.name))
    return BundleRow.state.in_(_OUT) & (unread | (Sketch.content != b""))
