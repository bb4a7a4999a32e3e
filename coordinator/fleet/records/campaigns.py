"""What the registry knows of nodes, candidates and campaigns; each change one transaction with its events."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from coordinator.fleet.records.rounds import round_of
from coordinator.policy.eligibility import judge_contributor
from coordinator.policy.lifecycle import State
from coordinator.registry import journal
from coordinator.registry.cascades import overtake, revoke_nodes
from coordinator.registry.registry import Registry
from coordinator.registry.tables import Answer, BundleRow, Campaign, Candidate, Contributor, Node, Update
from protocol.errors import Code, GreylagError, Refused
from protocol.fleet.campaign import Decision, Order
from protocol.fleet.node_key import Binding
from protocol.release import Release, timestamp
from protocol.signing import Signed

FINAL = ("done", "failed")
"""States of an answer that is not asked for again."""


class Fleet:
    """Nodes, candidates and campaigns in the registry's database.

    Args:
        registry: Opens the transactions.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    # Nodes.

    def bind(self, binding: Binding, envelope: bytes, *, now: datetime) -> None:
        """Remember a node's key as its contributor's; an earlier node of the same contributor goes out of use.

        Raises:
            Refused: `KEY_UNKNOWN`, `KEY_PENDING`, `KEY_REVOKED` or `NODE_TAKEN`.
        """
        fingerprint = hashlib.sha256(binding.node.encode()).hexdigest()
        with self._registry.writing() as session:
            contributor = session.get(Contributor, binding.contributor)
            judge_contributor(contributor.state if contributor else None)
            if (known := session.get(Node, fingerprint)) is not None:
                if known.contributor != binding.contributor:
                    raise Refused(Code.NODE_TAKEN, "This node's key belongs to somebody else.", "Make a new node key.")
                if known.state != "active":
                    raise Refused(Code.KEY_REVOKED, "This node's key was revoked.", "Remove it, then bind a new one.")
                return
            revoke_nodes(session, binding.contributor, actor="contributor", now=now)
            session.add(
                Node(
                    fingerprint=fingerprint, contributor=binding.contributor, public=binding.node, state="active",
                    envelope=envelope, bound=timestamp(now),
                )
            )  # fmt: skip
            journal.record(session, "node", fingerprint, "active", actor="contributor", now=now)

    def nodes(self) -> list[tuple[Node, str]]:
        """Every node's key with its contributor's name, oldest first."""
        query = select(Node, Contributor.name).join(Contributor, Contributor.key == Node.contributor)
        with self._registry.reading() as session:
            return [(node, name) for node, name in session.execute(query.order_by(Node.bound, Node.fingerprint))]

    # Candidates.

    def propose(self, candidate: Release, *, now: datetime) -> None:
        """Keep a candidate; whichever was open before is overtaken by it."""
        with self._registry.writing() as session:
            overtake(session, now=now)
            if known := session.scalars(select(Candidate).where(Candidate.digest == candidate.digest)).one_or_none():
                known.state = "open"  # the very same list was overtaken by a longer one, which is over now
            else:
                sequence = (session.scalar(select(func.max(Candidate.sequence))) or 0) + 1
                session.add(
                    Candidate(sequence=sequence, digest=candidate.digest, envelope=candidate.envelope, state="open")
                )
            journal.record(session, "candidate", candidate.digest, "open", actor="worker", now=now)

    def candidates(self) -> list[Candidate]:
        """Every candidate, oldest first."""
        with self._registry.reading() as session:
            return list(session.scalars(select(Candidate).order_by(Candidate.sequence)))

    def candidate(self, digest: str = "") -> Candidate | None:
        """Find a candidate by digest, or the open one."""
        with self._registry.reading() as session:
            wanted = Candidate.digest == digest if digest else Candidate.state == "open"
            return session.scalars(select(Candidate).where(wanted)).one_or_none()

    def promote(
        self, decision: Decision, envelope: bytes, release: Release, steps: Mapping[str, State], *, now: datetime
    ) -> None:
        """Publish what a decision promotes, together with the decision.

        Raises:
            Refused: `CANDIDATE_UNKNOWN`, or `STATE_CHANGE` for a candidate whose time is over.
        """
        self._registry.publish(
            release, steps, now=now, decide=lambda session: _decide(session, decision, envelope, now=now)
        )

    def hold_back(self, decision: Decision, envelope: bytes, *, condemned: Iterable[str], now: datetime) -> None:
        """Keep the decision against a candidate; condemned bundles are told why, and not proposed again.

        Raises:
            Refused: As `promote`.
        """
        with self._registry.writing() as session:
            _decide(session, decision, envelope, now=now)
            for row in session.scalars(select(BundleRow).where(BundleRow.digest.in_(list(condemned)))):
                row.code, row.message = Code.HELD_BACK.name, decision.reason
                row.hint = "Train it longer or on other data, and let the new bundle supersede it."

    def place(self, row: BundleRow) -> list[BundleRow] | None:
        """Say beside which other new bundles an accepted one is proposed; None for not now.

        Bundles that come one after the other share a candidate until it is being evaluated. Those of a candidate
        that was held back are proposed once more, each alone.
        """
        waiting = {other.digest: other for other in self._registry.bundles(State.ACCEPTED)}
        with self._registry.reading() as session:
            rows = list(session.scalars(select(Candidate).where(Candidate.state.in_(("open", "held_back")))))
            asked = set(session.scalars(select(Campaign.candidate).where(Campaign.state == "running")))
        listed = {each.digest: _bundles(each) & waiting.keys() for each in rows}
        suspects = {bundle for each in rows if each.state == "held_back" for bundle in listed[each.digest]}
        open_one = next((each for each in rows if each.state == "open"), None)
        if row.code == Code.HELD_BACK.name:
            return None
        if open_one is None:
            return []
        beside = listed[open_one.digest]
        if open_one.digest in asked or row.digest in suspects or beside & suspects or row.digest in beside:
            return None
        return [waiting[bundle] for bundle in sorted(beside, key=lambda bundle: waiting[bundle].sequence)]

    # Campaigns.

    def next_number(self) -> int:
        """Number of the campaign that would come next."""
        with self._registry.reading() as session:
            return (session.scalar(select(func.max(Campaign.number))) or 0) + 1

    def start(
        self, order: Order, envelope: bytes, *, open_for: timedelta, round_ends: datetime, now: datetime
    ) -> Campaign:
        """Open a campaign, and its first round if it goes in rounds.

        Raises:
            Refused: `STATE_CHANGE` if another one took its number, or if the candidate is not open.
        """
        with self._registry.writing() as session:
            newest = session.scalar(select(func.max(Campaign.number))) or 0
            if order.number != newest + 1:
                raise Refused(Code.STATE_CHANGE, f"Campaign {order.number} cannot follow campaign {newest}.")
            row = Campaign(
                number=order.number, kind=order.kind, state="running", envelope=envelope,
                candidate=order.candidate or "", open_until=timestamp(now + open_for), expires=order.expires,
                created=order.created,
            )  # fmt: skip
            session.add(row)
            session.flush()
            if order.calibrating is not None:
                session.add(round_of(order, envelope, round_ends))
            journal.record(session, "campaign", str(row.number), "running", actor="operator", now=now)
            session.flush()
            return row

    def campaign(self, number: int) -> Campaign:
        """Find a campaign by number, or the newest (0).

        Raises:
            Refused: `CAMPAIGN_UNKNOWN`.
        """
        with self._registry.reading() as session:
            query = select(Campaign).order_by(Campaign.number.desc()).limit(1)
            row = session.scalars(query.where(Campaign.number == number) if number else query).one_or_none()
        if row is None:
            raise Refused(
                Code.CAMPAIGN_UNKNOWN,
                f"There is no campaign {number}." if number else "There is no campaign yet.",
                "See: greylag-coordinator campaign ls",
            )
        return row

    def campaigns(self, state: str | None = None) -> list[Campaign]:
        """Campaigns in a state, or all, oldest first."""
        query = select(Campaign).order_by(Campaign.number)
        with self._registry.reading() as session:
            return list(session.scalars(query.where(Campaign.state == state) if state else query))

    def conclude(self, number: int, state: str, sentence: str, *, actor: str, now: datetime) -> None:
        """End a campaign; one that has ended stays as it is."""
        with self._registry.writing() as session:
            row = session.get(Campaign, number)
            if row is not None and row.state == "running":
                row.state, row.conclusion = state, sentence
                session.execute(delete(Update).where(Update.campaign == number))
                journal.record(session, "campaign", str(row.number), state, actor=actor, now=now)

    def answers(self, number: int) -> list[tuple[Answer, str]]:
        """Where every asked contributor stands, with its name."""
        query = select(Answer, Contributor.name).join(Contributor, Contributor.key == Answer.contributor)
        with self._registry.reading() as session:
            rows = session.execute(query.where(Answer.campaign == number).order_by(Contributor.name))
            return [(answer, name) for answer, name in rows]

    def states(self, number: int) -> list[str]:
        """How contributors stand who were asked and whose nodes are in use: nobody waits for the others."""
        query = select(Answer.state).join(Node, Node.contributor == Answer.contributor).where(Node.state == "active")
        with self._registry.reading() as session:
            return list(session.scalars(query.where(Answer.campaign == number)))

    def asked(self, number: int, contributor: str, message: str, *, now: datetime) -> None:
        """Remember that a message is on its way to a contributor's node."""
        with self._registry.writing() as session:
            row = session.get(Answer, (number, contributor))
            if row is None:
                row = Answer(campaign=number, contributor=contributor, attempts=0, code="", facts="{}")
                session.add(row)
            row.state, row.message, row.at, row.attempts = "asked", message, timestamp(now), row.attempts + 1

    def heard(
        self,
        number: int,
        contributor: str,
        state: str,
        *,
        code: str,
        facts: Mapping[str, Any],
        now: datetime,
        update: bytes = b"",
    ) -> None:
        """Keep what a node answered; a final answer is never replaced, so a reply that comes twice changes nothing."""
        with self._registry.writing() as session:
            row = session.get(Answer, (number, contributor))
            if row is not None and row.state not in FINAL:
                row.state, row.code, row.message, row.at = state, code, "", timestamp(now)
                row.facts = json.dumps(facts, sort_keys=True)
                if update:
                    session.merge(Update(campaign=number, contributor=contributor, content=update))

    def forget_messages(self, number: int) -> None:
        """Ask again whoever was asked by a run that is over."""
        with self._registry.writing() as session:
            lost = update(Answer).where(Answer.campaign == number, Answer.state == "asked")
            session.execute(lost.values(state="waiting", message=""))


def _bundles(row: Candidate) -> set[str]:
    payload = Signed.parse(row.envelope).payload  # our own row; whoever acts on it verifies the signature
    return {expert["bundle"] for expert in json.loads(payload)["predicate"]["experts"]}


def _decide(session: Session, decision: Decision, envelope: bytes, *, now: datetime) -> None:
    row = session.scalars(select(Candidate).where(Candidate.digest == decision.candidate)).one_or_none()
    if row is None:
        raise no_candidate(decision.candidate)
    if row.state not in ("open", "held_back"):
        raise Refused(Code.STATE_CHANGE, f"Candidate {row.digest[:16]} is {row.state}; nothing is left to decide.")
    row.decision, row.state = envelope, "promoted" if decision.promoted else "held_back"
    why = None if decision.promoted else Refused(Code.HELD_BACK, decision.reason)
    journal.record(session, "candidate", row.digest, row.state, actor=decision.by, now=now, reason=why)


def no_candidate(digest: str) -> GreylagError:
    """Say that there is no such candidate."""
    return Refused(
        Code.CANDIDATE_UNKNOWN,
        f"There is no candidate {digest[:16]}." if digest else "There is no open candidate.",
        "See: greylag-coordinator candidates ls",
    )
