"""What the worker says of a bundle that it leaves for a person to decide about."""

from datetime import datetime

from coordinator.registry import journal
from coordinator.registry.bundles import bundle_row
from coordinator.registry.registry import Registry
from protocol.errors import Refused


def note(registry: Registry, digest: str, reason: Refused, *, now: datetime) -> bool:
    """Write a reason down where operators and the contributor see it; the bundle stays in its state.

    Returns:
        Whether it is news.
    """
    with registry.writing() as session:
        row = bundle_row(session, digest)
        if row is None or row.code == reason.code.name:
            return False
        row.code, row.message, row.hint = reason.code.name, reason.message, reason.hint
        journal.record(session, "bundle", digest, row.state, actor="worker", now=now, reason=reason)
    return True
