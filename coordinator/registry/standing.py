"""What bears on a new bundle, read inside a transaction."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from coordinator.policy.lifecycle import Standing, State
from coordinator.registry.tables import BundleFile, BundleRow, Contributor, Upload
from protocol.bundle import ADAPTER_WEIGHTS, Manifest, read_manifest
from protocol.compatibility import Submitted


def read_standing(session: Session, manifest: Manifest) -> Standing:
    """Read a contributor's state, bundles and uploads, and whose weights are the same."""
    key, digest = manifest.spec.contributor, manifest.digest
    contributor = session.get(Contributor, key)
    earlier: dict[str, list[Submitted]] = {}
    for name, other, state in session.execute(
        select(BundleRow.name, BundleRow.digest, BundleRow.state)
        .where(BundleRow.contributor == key, BundleRow.digest != digest)
        .order_by(BundleRow.sequence)
    ):
        earlier.setdefault(name, []).append(Submitted(other, state))
    twin = session.scalar(
        select(func.min(BundleRow.sequence))
        .join(BundleFile, BundleFile.bundle == BundleRow.digest)
        .where(
            BundleFile.name == ADAPTER_WEIGHTS,
            BundleFile.sha256 == manifest.files[ADAPTER_WEIGHTS].sha256,
            BundleRow.contributor != key,
            BundleRow.state != State.REFUSED,
        )
    )
    return Standing(
        contributor=contributor.state if contributor else None,
        earlier=earlier,
        uploads=tuple(other_uploads(session, manifest)),
        twin=twin,
    )


def other_uploads(session: Session, manifest: Manifest) -> dict[str, Upload]:
    """What else a contributor uploads, by the bundle's name."""
    key, digest = manifest.spec.contributor, manifest.digest
    found = session.scalars(select(Upload).where(Upload.contributor == key, Upload.digest != digest))
    return {read_manifest(upload.envelope).spec.name: upload for upload in found}
