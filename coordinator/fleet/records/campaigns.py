"""Campaigns, and what nodes answered; each change one transaction with its events."""

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import and_, delete, func, select, update

from coordinator.fleet.records.rounds import round_of
from coordinator.registry import journal
from coordinator.registry.tables import Campaign, CampaignAnswer, Contributor, Node, Update
from coordinator.registry.transactions import Subject
from protocol.documents import timestamp
from protocol.errors import Code, Refused
from protocol.fleet.campaign import Order
from protocol.fleet.reply import Reply

FINAL = ("done", "failed")
"""States of an answer that is not asked for again."""


class Campaigns(Subject):
    """Every campaign."""

    def start(self, make: Callable[[int], tuple[Order, bytes]], *, open_until: datetime, now: datetime) -> Campaign:
        """Open a campaign, and its first round if it goes in rounds.

        Args:
            make: Makes the order of a number, and its envelope.
            open_until: Until then nodes that come late are asked, too.
            now: The time.
        """
        with self._registry.writing() as session:
            order, envelope = make((session.scalar(select(func.max(Campaign.number))) or 0) + 1)
            row = Campaign(
                number=order.number, kind=order.kind, state="running", envelope=envelope,
                candidate=order.candidate or "", open_until=timestamp(open_until), expires=order.expires,
                created=order.created,
            )  # fmt: skip
            session.add(row)
            session.flush()
            if order.calibrating is not None:
                session.add(round_of(order, envelope, now))
            journal.record(session, "campaign", str(row.number), "running", actor="operator", now=now)
            session.flush()
            return row

    def find(self, number: int) -> Campaign:
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

    def all(self, state: str | None = None) -> list[Campaign]:
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

    def answers(self, number: int) -> list[tuple[CampaignAnswer, str]]:
        """Where every asked contributor stands, with its name."""
        query = select(CampaignAnswer, Contributor.name).join(
            Contributor, Contributor.key == CampaignAnswer.contributor
        )
        with self._registry.reading() as session:
            rows = session.execute(query.where(CampaignAnswer.campaign == number).order_by(Contributor.name))
            return [(answer, name) for answer, name in rows]

    def standing(self, number: int) -> dict[str, str]:
        """How everybody stands whose node is in use, by the node's public key; empty for who was not asked."""
        answered = and_(CampaignAnswer.contributor == Node.contributor, CampaignAnswer.campaign == number)
        query = select(Node.public, CampaignAnswer.state).outerjoin(CampaignAnswer, answered)
        with self._registry.reading() as session:
            return {public: state or "" for public, state in session.execute(query.where(Node.state == "active"))}

    def asked(self, number: int, contributor: str, message: str, *, now: datetime) -> None:
        """Remember that a message is on its way to a contributor's node, unless it has answered for good."""
        with self._registry.writing() as session:
            row = session.get(CampaignAnswer, (number, contributor))
            if row is not None and row.state in FINAL:
                return
            if row is None:
                row = CampaignAnswer(campaign=number, contributor=contributor, attempts=0, code="", facts="{}")
                session.add(row)
            row.state, row.message, row.at, row.attempts = "asked", message, timestamp(now), row.attempts + 1

    def heard(
        self, number: int, contributor: str, reply: Reply, *, state: str, facts: Mapping[str, Any], now: datetime
    ) -> None:
        """Keep what a node answered; a final answer is never replaced, so a reply that comes twice changes nothing."""
        with self._registry.writing() as session:
            row = session.get(CampaignAnswer, (number, contributor))
            if row is not None and row.state not in FINAL:
                row.state, row.code, row.message, row.at = state, reply.code, "", timestamp(now)
                row.facts = json.dumps(facts, sort_keys=True)
                if reply.update:
                    session.merge(Update(campaign=number, contributor=contributor, content=reply.update))

    def forget_messages(self, number: int) -> None:
        """Ask again whoever was asked by a run that is over."""
        with self._registry.writing() as session:
            lost = update(CampaignAnswer).where(CampaignAnswer.campaign == number, CampaignAnswer.state == "asked")
            session.execute(lost.values(state="waiting", message=""))
