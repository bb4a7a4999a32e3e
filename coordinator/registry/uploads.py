"""Upload sessions: bundles on their way."""

from collections.abc import Callable
from datetime import datetime

from sqlalchemy import select

from coordinator.policy.lifecycle import Standing
from coordinator.registry.bundles import bundle_row, other_uploads, read_standing
from coordinator.registry.tables import BundleRow, Upload
from coordinator.registry.transactions import Subject
from protocol.bundle import Manifest, read_manifest
from protocol.documents import timestamp


class Uploads(Subject):
    """Bundles on their way."""

    def begin(
        self,
        manifest: Manifest,
        *,
        check: Callable[[Standing], None],
        drop: Callable[[str], None],
        token: bytes,
        expires: datetime,
    ) -> Upload | BundleRow:
        """Open an upload session, or find the one there is and let it live longer.

        What was uploaded under the same name until now is over.

        Args:
            manifest: The bundle.
            check: Judges the standing, in the same transaction.
            drop: Deletes the bytes of a session that is over.
            token: Secret of a new session.
            expires: When the session ends.

        Returns:
            The session, or the bundle if its commit was quicker.

        Raises:
            GreylagError: Whatever `check` refuses with.
        """
        with self._registry.writing() as session:
            if known := bundle_row(session, manifest.digest):
                return known
            check(read_standing(session, manifest))
            if replaced := other_uploads(session, manifest).get(manifest.spec.name):
                drop(replaced.digest)
                session.delete(replaced)
            upload = session.get(Upload, manifest.digest)
            if upload is None:
                upload = Upload(
                    digest=manifest.digest, contributor=manifest.spec.contributor, token=token,
                    envelope=manifest.envelope, total_bytes=manifest.total_bytes,
                )  # fmt: skip
                session.add(upload)
            upload.expires = timestamp(expires)
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

    def expire(
        self, drop: Callable[[str], None], *, now: datetime, empty: datetime, is_empty: Callable[[str], bool]
    ) -> None:
        """Forget sessions whose time is over.

        Args:
            drop: Deletes a session's bytes. A session is forgotten after its bytes, and nobody begins it anew in
                between: a crash leaves one whose time is over, which is forgotten the next time.
            now: Sessions that were to end until now are over.
            empty: Sessions that were to end until then are over if they got nothing.
            is_empty: Tells whether nothing came, by digest.
        """
        with self._registry.writing() as session:
            for upload in session.scalars(select(Upload).where(Upload.expires <= timestamp(max(now, empty)))):
                if upload.expires > timestamp(now) and not is_empty(upload.digest):
                    continue
                drop(upload.digest)
                session.delete(upload)
