"""Asks, before hours of training, whether what comes of them could be taken."""

from contextlib import suppress
from datetime import UTC, datetime

from client.submission import outbox, submit
from client.submission.enrolment import enrol, enrolled
from client.submission.upload import Coordinator
from client.workspace import keys
from client.workspace.paths import ClientWorkspace
from client.workspace.settings import ClientSettings
from protocol.compatibility import HOLDING
from protocol.documents import Pool
from protocol.errors import Code, Refused, Unavailable
from protocol.v1.intake_pb2 import EnrolRequest
from protocol.v1.intake_pb2_grpc import IntakeStub
from protocol.wire.grpc_client import DEADLINE_S, connect


def check_welcome(workspace: ClientWorkspace, settings: ClientSettings, pool: Pool, coordinator: Coordinator) -> None:
    """Ask whether the key is in force, what became of earlier bundles, and whether there is room for one more.

    What is heard is kept, so that the next bundle supersedes what really holds its name. Where nobody answers, nothing
    is known: what is trained meanwhile is kept, and sent when somebody does.

    Args:
        workspace: Locked by the caller.
        settings: Its settings.
        pool: The pool.
        coordinator: Whom to ask.

    Raises:
        Refused: `KEY_PENDING`, `QUOTA`, or what the coordinator refuses the key or the name with.
    """
    with suppress(Unavailable):
        _ask(workspace, settings, pool, coordinator)


def _ask(workspace: ClientWorkspace, settings: ClientSettings, pool: Pool, coordinator: Coordinator) -> None:
    identity = keys.load(workspace.root / settings.key)
    envelope = enrolled(workspace, pool, settings.name, identity.public)
    envelope = envelope or enrol(pool, settings.name, identity, datetime.now(UTC))
    with connect(coordinator.address, coordinator.ca) as channel:
        state = IntakeStub(channel).Enrol(EnrolRequest(envelope=envelope), timeout=DEADLINE_S).state
    if state != "active":
        raise Refused(Code.KEY_PENDING, "The key waits for an operator's approval.", "Ask the pool's operator.")
    records = outbox.load(workspace.outbox)
    heard = [_heard(workspace, record, pool, coordinator) for record in records if record.state in HOLDING]
    limit = pool.spec.policy.max_experts_per_contributor
    if len(others := {record.name for record in heard if record.state in HOLDING} - {settings.name}) >= limit:
        raise Refused(
            Code.QUOTA, f"A contributor may hold {limit} experts; this one holds {len(others)} others.",
            "Supersede one of them.",
        )  # fmt: skip


def _heard(workspace: ClientWorkspace, record: outbox.Record, pool: Pool, coordinator: Coordinator) -> outbox.Record:
    try:
        return submit.refresh(workspace, record, pool, coordinator, wait=False)
    except Refused as error:
        if error.code is not Code.BUNDLE_UNKNOWN:
            raise
        return record  # the coordinator has lost it; its receipt stays
