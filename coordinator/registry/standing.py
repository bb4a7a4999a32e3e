"""What bears on a new bundle, read inside a transaction."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from coordinator.policy.lifecycle import LIVE, Standing, State
from coordinator.registry.tables import BundleFile, BundleRow, Contributor, Upload
from protocol.bundle import ADAPTER_WEIGHTS, Manifest


def read_standing(session: Session, manifest: Manifest) -> Standing:
    """Read a contributor's state, live bundles and uploads, and whose weights are the same."""
    key, digest = manifest.spec.contributor, manifest.digest
    contributor = session.get(Contributor, key)
    live = session.execute(
        select(BundleRow.name, BundleRow.digest)
        .where(BundleRow.contributor == key, BundleRow.state.in_(LIVE), BundleRow.digest != digest)
        .order_by(BundleRow.sequence)
    )
    uploads = session.scalar(
        select(func.count()).select_from(Upload).where(Upload.contributor == key, Upload.digest != digest)
    )
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
        live=tuple((name, other) for name, other in live),
        uploads=uploads or 0,
        twin=twin,
    )
