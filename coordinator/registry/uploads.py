"""Upload sessions: bundles on their way."""

from collections.abc import Callable
from datetime import datetime

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from coordinator.policy.lifecycle import Standing
from coordinator.registry.bundles import bundle_row, read_standing
from coordinator.registry.enrolment.keys import holder
from coordinator.registry.tables import BundleRow, Upload
from coordinator.registry.transactions import Subject
from protocol.bundle import Manifest, read_manifest
from protocol.documents import timestamp


class Uploads(Subject):
    """Bundles on their way."""

    def begin(
        self, manifest: Manifest, *, check: Callable[[Standing], None], token: bytes, expires: datetime
    ) -> Upload | BundleRow:
        """Open an upload session, or find the one there is; beginning again does not let it live longer.

        Args:
            manifest: The bundle.
            check: Judges the standing: first where whoever is refused holds nobody up, then in the same transaction.
            token: Secret of a new session.
            expires: When the session ends.

        Returns:
            The session, or the bundle if its commit was quicker.

        Raises:
            GreylagError: Whatever `check` refuses with.
        """
        with self._registry.reading() as session:
            check(read_standing(session, manifest))
        with self._registry.writing() as session:
            if known := bundle_row(session, manifest.digest):
                return known
            check(read_standing(session, manifest))
            upload = session.get(Upload, manifest.digest)
            if upload is None:
                upload = Upload(
                    digest=manifest.digest, contributor=holder(session, manifest.spec.contributor), token=token,
                    envelope=manifest.envelope, total_bytes=manifest.total_bytes, expires=timestamp(expires),
                )  # fmt: skip
                session.add(upload)
            return upload

    def find(self, digest: str, *, now: datetime) -> Upload | None:
        """Find an upload session that has not expired."""
        with self._registry.reading() as session:
            upload = session.get(Upload, digest)
            return upload if upload is not None and upload.expires > timestamp(now) else None

    def digests(self) -> set[str]:
        """Digests of every upload session, expired ones too."""
        with self._registry.reading() as session:
            return set(session.scalars(select(Upload.digest)))

    def files(self) -> set[str]:
        """The sha256 of every file that upload sessions may still bring or have brought."""
        with self._registry.reading() as session:
            envelopes = list(session.scalars(select(Upload.envelope)))
        return {file.sha256 for envelope in envelopes for file in read_manifest(envelope).files.values()}

    def expire(self, drop: Callable[[str], bool], *, now: datetime, is_idle: Callable[[str], bool]) -> None:
        """Forget sessions whose time is over.

        Args:
            drop: Forgets a session's bytes, quickly, unless somebody works on it. A session is forgotten after them,
                and nobody begins it anew in between: a crash leaves one that is forgotten the next time.
            now: Sessions that were to end until now are over.
            is_idle: Tells whether nothing came for too long, by digest.
        """
        query = select(Upload.digest, Upload.expires)

        def over(session: Session) -> list[str]:
            rows = session.execute(query)
            return [digest for digest, expires in rows if expires <= timestamp(now) or is_idle(digest)]

        with self._registry.reading() as session:
            if not over(session):
                return
        with self._registry.writing() as session:
            for digest in filter(drop, over(session)):
                session.execute(delete(Upload).where(Upload.digest == digest))
