"""How a bundle gets in: enrol, begin, commit. Called from threads of the gRPC door."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache, partial
from hmac import compare_digest

from coordinator.faults import fault_point
from coordinator.fleet.records.fleet import Fleet
from coordinator.policy.eligibility import judge
from coordinator.policy.lifecycle import Standing
from coordinator.policy.slow_start import check_slow_start
from coordinator.policy.stored import USUAL, StoredLimits
from coordinator.policy.switches import Switch
from coordinator.registry.registry import Registry
from coordinator.registry.tables import BundleRow
from coordinator.serving.rate import Rate
from coordinator.serving.refused_bytes import RefusedBytes
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
_IDLE_LIFE = timedelta(minutes=30)
"""How long an upload lives to which not a byte comes."""
_ENVELOPE_BYTES, _BYTES_A_MODULE = 1 << 14, 1 << 10
"""Of an enrolment or a binding at most, and of a bundle's envelope with so many more for each module of the pool."""
_NEW_KEYS = {"open": "active", "approved": "pending", "invite": None}
"""State of a new key that comes without an invite, by the pool's policy; None where it needs one."""
_MANIFESTS = 64
"""Uploads whose verified statement is at hand; reading one again costs more than a call of theirs does."""


@dataclass(frozen=True)
class IntakeLimits:
    """What is taken: how much may be under way, and whether daemons are."""

    session_life: timedelta = timedelta(hours=24)
    """How long an upload may be resumed; without a byte it ends much sooner."""
    first_bundles: int = 1
    """How many bundles a key may have under way of which nothing was let in yet."""
    hourly_keys: int = 200
    """New keys an hour, a quarter of them from one network."""
    stored: StoredLimits = USUAL
    """What is kept of one contributor's bytes."""
    fleet: str | None = None
    """Where contributors' daemons connect to, `host:port`; None where they are not taken."""


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
        check_log: Refuses to go on from a registry whose log has lost entries.
        limits: What is taken.
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
        limits: IntakeLimits,
        check_log: Callable[[], object] = lambda: None,
    ) -> None:
        self._pool, self._identity = pool, identity
        self._registry, self._store, self._spool = registry, store, spool
        self._clock, self._limits, self._check_log = clock, limits, check_log
        self._new_keys = Rate(limits.hourly_keys, clock)
        self._read = lru_cache(_MANIFESTS)(bundle.read_manifest)
        self._moved: dict[str, tuple[int, datetime]] = {}
        self._refused = RefusedBytes(registry, store, pool.spec.statistics, limits.stored)

    def sweep(self) -> None:
        """Forget expired uploads, and bytes of none and of what was refused; not while the registry is read-only."""
        if Switch.REGISTRY in self._registry.switches.thrown():
            return
        self._drop_expired()
        self._spool.sweep(self._registry.uploads.digests())
        self._refused.sweep(self._clock())

    def enrol(self, envelope: bytes, network: str, invite: str = "") -> str:
        """Take a key's presentation from a network, with an invite's token if it has one, and return the key's state.

        Raises:
            Refused: `TOO_LARGE`, `WRONG_POOL`, `INVITE`, or as the registry and the envelope.
            Unavailable: `BUSY` for too many new keys.
        """
        self._check_open()
        _check_size(envelope, _ENVELOPE_BYTES)
        enrolment = documents.read_enrolment(envelope)
        self._check_pool(enrolment.pool)
        state = _NEW_KEYS[self._pool.spec.policy.enrolment]
        check = partial(self._new_keys.take, network)
        return self._registry.contributors.enrol(
            enrolment, envelope, state=state, invite=invite, check=check, now=self._clock()
        )

    def rotate(self, envelope: bytes, network: str) -> str:
        """Let a contributor's new key take the old one's place, from a network, and return the key's state.

        Raises:
            Refused: `TOO_LARGE`, `WRONG_POOL`, or as the registry and the envelope.
            Unavailable: `BUSY` for too many new keys.
        """
        self._check_open()
        _check_size(envelope, _ENVELOPE_BYTES)
        rotation = documents.read_rotation(envelope)
        self._check_pool(rotation.pool)
        check = partial(self._new_keys.take, network)
        return self._registry.contributors.rotate(rotation, envelope, check=check, now=self._clock())

    def bind(self, envelope: bytes) -> str:
        """Take the key of a contributor's daemon, and return where the daemon connects to.

        Raises:
            Refused: `FLEET_OFF`, `WRONG_POOL`, `CLOCKS_APART`, `NODE_TAKEN`, a code of the contributor's key, or of
                an envelope.
        """
        if self._limits.fleet is None:
            what = "This coordinator takes no daemons."
            raise Refused(Code.FLEET_OFF, what, "Contribute with: greylag-client contribute")
        self._check_open()
        _check_size(envelope, _ENVELOPE_BYTES)
        binding = read_binding(envelope)
        self._check_pool(binding.pool)
        now = self._clock()
        check_clock(binding, now=now)
        Fleet(self._registry).nodes.bind(binding, envelope, now=now)
        return self._limits.fleet

    def begin(self, envelope: bytes) -> BeginReply:
        """Judge an envelope, and open or find its upload session, or the receipt of a bundle that is kept already.

        Raises:
            Refused: As `read_manifest`, `check_derived` and `judge`.
            Unavailable: `STORAGE_FULL`.
        """
        _check_size(envelope, _ENVELOPE_BYTES + _BYTES_A_MODULE * len(self._pool.spec.modules))
        manifest = bundle.read_manifest(envelope)
        if known := self._registry.bundles.find(manifest.digest):
            return BeginReply(digest=manifest.digest, receipt=known.receipt)
        self._check_open()
        check_derived(manifest, self._pool)
        self._drop_expired()
        self._refused.sweep(self._clock())

        def check(standing: Standing) -> None:
            judge(manifest, self._pool, standing)
            states = [each.state for earlier in standing.earlier.values() for each in earlier]
            check_slow_start(states, len(standing.uploads), self._limits.first_bundles)
            self._limits.stored.check(standing, manifest.total_bytes, now=self._clock())
            self._spool.check_room(manifest.total_bytes - self._spool.held(manifest.digest))

        token, expires = secrets.token_bytes(_TOKEN_BYTES), self._clock() + self._limits.session_life
        upload = self._registry.uploads.begin(manifest, check=check, token=token, expires=expires)
        if isinstance(upload, BundleRow):
            return BeginReply(digest=manifest.digest, receipt=upload.receipt)
        self._moved.setdefault(manifest.digest, (self._spool.held(manifest.digest), self._clock()))
        self._spool.make(manifest.digest, manifest.files)
        missing = self._spool.missing(manifest.digest, manifest.files).items()
        files = [MissingFile(name=name, offset=offset) for name, offset in missing]
        return BeginReply(digest=manifest.digest, token=upload.token, missing=files)

    def session(self, digest: str, token: bytes) -> Manifest:
        """Find an upload session of whoever holds its token (`SESSION_UNKNOWN` or `SESSION_DENIED`)."""
        self._check_open()
        upload = self._registry.uploads.find(digest, now=self._clock()) if is_sha256(digest) else None
        if upload is None:
            raise no_session(digest)
        if not compare_digest(upload.token, token):
            raise Refused(Code.SESSION_DENIED, "The upload belongs to someone else.", "Begin again.")
        return self._read(upload.envelope)

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
        with self._refused.spared(file.sha256 for file in manifest.files.values()):
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

    def _check_open(self) -> None:
        """Take nothing while the operator has closed anything (`CLOSED`), or from an older registry on."""
        self._check_log()
        self._registry.switches.check(*Switch)

    def _check_pool(self, named: str) -> None:
        if named != self._pool.digest:
            what = f"The envelope is for pool {named[:16]}; this is pool {self._pool.digest[:16]}."
            raise Refused(Code.WRONG_POOL, what, "Run the command again, in a workspace of this pool.")

    def _drop_expired(self) -> None:
        now = self._clock()
        self._registry.uploads.expire(self._spool.drop, now=now, is_idle=lambda digest: self._is_idle(digest, now))
        for digest in self._moved.keys() - self._registry.uploads.digests():
            self._moved.pop(digest, None)
        self._spool.clear()

    def _is_idle(self, digest: str, now: datetime) -> bool:
        """Tell whether an upload has had not a byte for a while, as far as this process has seen."""
        held = self._spool.held(digest)
        before, since = self._moved.get(digest, (-1, now))
        self._moved[digest] = held, since if before == held else now
        return now - self._moved[digest][1] >= _IDLE_LIFE

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


def _check_size(envelope: bytes, most: int) -> None:
    """Refuse what is too long for what it is to say, before it is read (`TOO_LARGE`)."""
    if len(envelope) > most:
        what = f"The envelope has {len(envelope)} bytes; at most {most} are read here."
        raise Refused(Code.TOO_LARGE, what, "Pack it again with the coordinator's version of greylag-client.")


def no_session(digest: str) -> Refused:
    """Say that there is no such upload (`SESSION_UNKNOWN`)."""
    return Refused(Code.SESSION_UNKNOWN, f"There is no upload of {digest[:16]!r}.", "Begin again.")
