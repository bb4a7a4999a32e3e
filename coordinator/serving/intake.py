"""How a bundle gets in: enrol, begin, commit. Called from threads of the gRPC door."""

import secrets
from collections.abc import Callable
from datetime import datetime, timedelta
from hmac import compare_digest

from coordinator.faults import fault_point
from coordinator.fleet.records.fleet import Fleet
from coordinator.policy.eligibility import judge
from coordinator.policy.lifecycle import Standing
from coordinator.registry.registry import Registry
from coordinator.registry.tables import BundleRow
from coordinator.storage.blobs import Store
from coordinator.storage.spool import Spool
from protocol import bundle, documents
from protocol.bundle import Manifest
from protocol.compatibility import check_derived
from protocol.documents import RECEIPT_TYPE, Pool, Receipt, timestamp
from protocol.errors import Code, Refused
from protocol.fleet.node_key import check_clock, read_binding
from protocol.signing import Identity
from protocol.statement import is_sha256
from protocol.v1.intake_pb2 import BeginReply, MissingFile

_TOKEN_BYTES = 32
_EMPTY_LIFE = timedelta(hours=1)
"""How long an upload lives to which not a byte comes."""


class Intake:
    """The order of acceptance: spool, sync, check, store, then one transaction.

    Whatever is interrupted leaves at most bytes without a row, and the same request again completes it.

    Args:
        pool: The pool that bundles are for.
        identity: Signs receipts.
        registry: Rows.
        store: Bytes that are kept.
        spool: Bytes on their way.
        clock: Tells the time.
        session_life: How long an upload may be resumed.
        fleet: Where contributors' daemons connect to, `host:port`; None where they are not taken.
    """

    def __init__(
        self,
        pool: Pool,
        identity: Identity,
        registry: Registry,
        *,
        store: Store,
        spool: Spool,
        clock: Callable[[], datetime],
        session_life: timedelta,
        fleet: str | None = None,
    ) -> None:
        self._pool, self._identity = pool, identity
        self._registry, self._store, self._spool = registry, store, spool
        self._clock, self._session_life, self._fleet = clock, session_life, fleet

    def sweep(self) -> None:
        """Forget expired uploads, and the spooled bytes that belong to none."""
        self._drop_expired()
        self._spool.sweep(self._registry.uploads.digests())

    def enrol(self, envelope: bytes) -> str:
        """Take a key's presentation and return the key's state (`WRONG_POOL`, or as the registry and the envelope)."""
        enrolment = documents.read_enrolment(envelope)
        self._check_pool(enrolment.pool)
        state = "active" if self._pool.spec.policy.enrolment == "open" else "pending"
        return self._registry.contributors.enrol(enrolment, envelope, state=state, now=self._clock())

    def bind(self, envelope: bytes) -> str:
        """Take the key of a contributor's daemon, and return where the daemon connects to.

        Raises:
            Refused: `FLEET_OFF`, `WRONG_POOL`, `CLOCKS_APART`, `NODE_TAKEN`, a code of the contributor's key, or of
                an envelope.
        """
        if self._fleet is None:
            what = "This coordinator takes no daemons."
            raise Refused(Code.FLEET_OFF, what, "Contribute with: greylag-client contribute")
        binding = read_binding(envelope)
        self._check_pool(binding.pool)
        now = self._clock()
        check_clock(binding, now=now)
        Fleet(self._registry).nodes.bind(binding, envelope, now=now)
        return self._fleet

    def begin(self, envelope: bytes) -> BeginReply:
        """Judge an envelope, and open or find its upload session, or the receipt of a bundle that is kept already.

        Raises:
            Refused: As `read_manifest`, `check_derived` and `judge`.
            Unavailable: `STORAGE_FULL`.
        """
        manifest = bundle.read_manifest(envelope)
        if known := self._registry.bundles.find(manifest.digest):
            return BeginReply(digest=manifest.digest, receipt=known.receipt)
        check_derived(manifest, self._pool)
        self._drop_expired()

        def check(standing: Standing) -> None:
            judge(manifest, self._pool, standing)
            self._spool.check_room(manifest.total_bytes - self._spool.held(manifest.digest))

        token, expires = secrets.token_bytes(_TOKEN_BYTES), self._clock() + self._session_life
        upload = self._registry.uploads.begin(manifest, check=check, token=token, expires=expires)
        if isinstance(upload, BundleRow):
            return BeginReply(digest=manifest.digest, receipt=upload.receipt)
        self._spool.make(manifest.digest, manifest.files)
        missing = self._spool.missing(manifest.digest, manifest.files).items()
        files = [MissingFile(name=name, offset=offset) for name, offset in missing]
        return BeginReply(digest=manifest.digest, token=upload.token, missing=files)

    def session(self, digest: str, token: bytes) -> Manifest:
        """Find an upload session of whoever holds its token (`SESSION_UNKNOWN` or `SESSION_DENIED`)."""
        upload = self._registry.uploads.find(digest, now=self._clock()) if is_sha256(digest) else None
        if upload is None:
            raise no_session(digest)
        if not compare_digest(upload.token, token):
            raise Refused(Code.SESSION_DENIED, "The upload belongs to someone else.", "Begin again.")
        return bundle.read_manifest(upload.envelope)

    def commit(self, digest: str, token: bytes) -> bytes:
        """Check every byte, keep the bundle and return its receipt.

        A file whose bytes are wrong is forgotten, so that the next try sends it afresh.

        Raises:
            Refused: `SESSION_UNKNOWN`, `SESSION_DENIED`, `MISSING_RANGES`, `DIGEST_MISMATCH`, or as `judge`.
            Unavailable: `STORAGE_FULL` or `BUSY`.
        """
        if is_sha256(digest) and (known := self._registry.bundles.find(digest)):
            receipt = known.receipt
        else:
            with self._spool.kept(digest):
                receipt = self._keep(self.session(digest, token))
        self._spool.drop(digest)
        self._spool.clear()
        fault_point("spool-dropped")
        return receipt

    def _keep(self, manifest: Manifest) -> bytes:
        digest = manifest.digest
        if missing := self._spool.missing(digest, manifest.files):
            name, offset = next(iter(missing.items()))
            what = f"{name} has {offset} of {manifest.files[name].size} bytes."
            raise Refused(Code.MISSING_RANGES, what, "Begin again to learn what is missing.")
        self._check_bytes(manifest)
        fault_point("bytes-checked")
        for name, file in manifest.files.items():
            self._store.put(self._spool.path(digest, name), file.sha256)
        fault_point("blobs-stored")
        now = self._clock()
        return self._registry.bundles.keep(
            manifest,
            check=lambda standing: judge(manifest, self._pool, standing),
            sign=lambda sequence: self._receipt(manifest, sequence, now),
            now=now,
        )

    def status(self, digest: str) -> BundleRow:
        """Find a bundle that was committed (`BUNDLE_UNKNOWN`)."""
        if is_sha256(digest) and (row := self._registry.bundles.find(digest)):
            return row
        raise Refused(Code.BUNDLE_UNKNOWN, f"No bundle {digest[:16]!r} was submitted.", "Submit it first.")

    def _check_pool(self, named: str) -> None:
        if named != self._pool.digest:
            what = f"The envelope is for pool {named[:16]}; this is pool {self._pool.digest[:16]}."
            raise Refused(Code.WRONG_POOL, what, "Run the command again, in a workspace of this pool.")

    def _drop_expired(self) -> None:
        now = self._clock()
        self._registry.uploads.expire(
            self._spool.drop,
            now=now,
            empty=now + self._session_life - _EMPTY_LIFE,
            is_empty=lambda digest: not self._spool.held(digest),
        )
        self._spool.clear()

    def _check_bytes(self, manifest: Manifest) -> None:
        for name, file in manifest.files.items():
            try:
                bundle.check_file(self._spool.path(manifest.digest, name), file)
            except Refused:
                self._spool.drop_file(manifest.digest, name)
                raise

    def _receipt(self, manifest: Manifest, sequence: int, now: datetime) -> bytes:
        receipt = Receipt(
            pool=self._pool.digest, bundle=manifest.digest, contributor=manifest.spec.contributor, sequence=sequence,
            received=timestamp(now),
        )  # fmt: skip
        return documents.sign(RECEIPT_TYPE, {"bundle": manifest.digest}, receipt, self._identity)


def no_session(digest: str) -> Refused:
    """Say that there is no such upload (`SESSION_UNKNOWN`)."""
    return Refused(Code.SESSION_UNKNOWN, f"There is no upload of {digest[:16]!r}.", "Begin again.")
