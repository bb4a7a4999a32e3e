"""What the registry knows of the federation: nodes and whose they are, candidates, campaigns and rounds."""

import hashlib
from datetime import datetime

from sqlalchemy import select

from coordinator.fleet.records.campaigns import Campaigns
from coordinator.fleet.records.candidates import Candidates
from coordinator.fleet.records.rounds import Rounds
from coordinator.policy.eligibility import judge_contributor
from coordinator.registry import journal
from coordinator.registry.enrolment.keys import holder, key_state
from coordinator.registry.registry import Registry
from coordinator.registry.tables import Contributor, Node
from coordinator.registry.transactions import Subject
from protocol.documents import timestamp
from protocol.errors import Code, Refused
from protocol.fleet.node_key import Binding, read_binding


class Fleet:
    """Nodes, candidates, campaigns and rounds in the registry's database.

    Args:
        registry: Opens the transactions.
    """

    def __init__(self, registry: Registry) -> None:
        self.nodes = Nodes(registry)
        self.candidates = Candidates(registry)
        self.campaigns = Campaigns(registry)
        self.rounds = Rounds(registry)


class Nodes(Subject):
    """The nodes of contributors."""

    def bind(self, binding: Binding, envelope: bytes, *, now: datetime) -> None:
        """Remember a node's key as its contributor's; an earlier node of the same contributor goes out of use.

        Of a node that is known, newer evidence takes the older's place.

        Raises:
            Refused: `KEY_UNKNOWN`, `KEY_PENDING`, `KEY_REVOKED`, `KEY_ROTATED` or `NODE_TAKEN`.
        """
        fingerprint = hashlib.sha256(binding.node.encode()).hexdigest()
        with self._registry.writing() as session:
            judge_contributor(key_state(session, binding.contributor))
            contributor = holder(session, binding.contributor)
            if (known := session.get(Node, fingerprint)) is not None:
                if known.contributor != contributor:
                    raise Refused(Code.NODE_TAKEN, "This node's key belongs to somebody else.", "Make a new node key.")
                if known.state != "active":
                    raise Refused(Code.KEY_REVOKED, "This node's key was revoked.", "Remove it, then bind a new one.")
                if binding.attestation and binding.created > read_binding(known.envelope).created:
                    known.envelope = envelope  # evidence is of its day
                return
            journal.revoke_nodes(session, contributor, actor="contributor", now=now)
            session.add(
                Node(
                    fingerprint=fingerprint, contributor=contributor, public=binding.node, state="active",
                    envelope=envelope, bound=timestamp(now),
                )
            )  # fmt: skip
            journal.record(session, "node", fingerprint, "active", actor="contributor", now=now)

    def all(self) -> list[tuple[Node, str]]:
        """Every node's key with its contributor's name, oldest first."""
        query = select(Node, Contributor.name).join(Contributor, Contributor.key == Node.contributor)
        with self._registry.reading() as session:
            return [(node, name) for node, name in session.execute(query.order_by(Node.bound, Node.fingerprint))]
