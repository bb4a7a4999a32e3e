"""Asks, before hours of training, whether what comes of them could be taken."""

from contextlib import suppress
from datetime import UTC, datetime

from client.submission import outbox, submit
from client.submission.join import enrol, enrolled
from client.submission.upload import Coordinator
from client.workspace.paths import ClientWorkspace
from protocol.compatibility import HOLDING
from protocol.errors import Code, Refused, Unavailable
from protocol.v1.intake_pb2 import EnrolRequest
from protocol.v1.intake_pb2_grpc import IntakeStub
from protocol.wire.grpc_client import DEADLINE_S, connect


def check_welcome(workspace: ClientWorkspace, coordinator: Coordinator) -> None:
    """Ask whether the key is in force, what became of earlier bundles, and whether there is room for one more.

    What is heard is kept, so that the next bundle supersedes what really holds its name. Where nobody answers, nothing
    is known: what is trained meanwhile is kept, and sent when somebody does. The caller holds the workspace's lock.

    Raises:
        Refused: `KEY_PENDING`, `QUOTA`, or what the coordinator refuses the key or the name with.
    """
    with suppress(Unavailable):
        _ask(workspace, coordinator)


def _ask(workspace: ClientWorkspace, coordinator: Coordinator) -> None:
    identity, name = workspace.identity(), workspace.settings.name
    envelope = enrolled(workspace, identity.public) or enrol(workspace.pool, name, identity, datetime.now(UTC))
    with connect(coordinator.address, coordinator.ca) as channel:
        state = IntakeStub(channel).Enrol(EnrolRequest(envelope=envelope), timeout=DEADLINE_S).state
    if state != "active":
        raise Refused(Code.KEY_PENDING, "The key waits for an operator's approval.", "Ask the pool's operator.")
    others = {
        record.name
        for record in outbox.load(workspace.outbox)
        if record.state in HOLDING and _heard(workspace, record, coordinator).state in HOLDING
    } - {name}
    if len(others) >= (limit := workspace.pool.spec.policy.max_experts_per_contributor):
        raise Refused(
            Code.QUOTA, f"A contributor may hold {limit} experts; this one holds {len(others)} others.",
            "Supersede one of them.",
        )  # fmt: skip


def _heard(workspace: ClientWorkspace, record: outbox.Record, coordinator: Coordinator) -> outbox.Record:
    try:
        return submit.refresh(workspace, record, coordinator, wait=False)
    except Refused as error:
        if error.code is not Code.BUNDLE_UNKNOWN:
            raise
        return record  # the coordinator has lost it; its receipt stays
