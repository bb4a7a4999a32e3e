"""What the registry knows of rounds: their orders, what nodes learnt in them, and what they came to."""

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.orm import undefer

from coordinator.registry.tables import CampaignAnswer, Round, Update
from coordinator.registry.transactions import Subject
from protocol import statement
from protocol.documents import read_timestamp, timestamp
from protocol.fleet.campaign import ORDER_TYPE, Order
from protocol.release import CalibrationFile, Spent
from protocol.signing import Signed


class Rounds(Subject):
    """Rounds in the registry's database."""

    def of(self, campaign: int) -> list[Round]:
        """Rounds of a campaign, oldest first; the last one may be going on."""
        with self._registry.reading() as session:
            return list(session.scalars(select(Round).where(Round.campaign == campaign).order_by(Round.number)))

    def content(self, sha256: str) -> bytes | None:
        """Find what a round came to by its digest."""
        with self._registry.reading() as session:
            query = select(Round).where(Round.sha256 == sha256).options(undefer(Round.content)).limit(1)
            row = session.scalars(query).one_or_none()
            return row.content if row else None

    def noises(self) -> list[float]:
        """Noise multipliers of all rounds of the pool that noise was added to."""
        with self._registry.reading() as session:
            query = select(Round.noise).where(Round.noise.is_not(None)).order_by(Round.campaign, Round.number)
            return [noise for noise in session.scalars(query) if noise is not None]

    def updates(self, campaign: int) -> list[bytes]:
        """What nodes learnt in the round that is going on, in a fixed order."""
        with self._registry.reading() as session:
            rows = session.scalars(select(Update).where(Update.campaign == campaign).order_by(Update.contributor))
            return [row.content for row in rows]

    def close(
        self,
        row: Round,
        content: bytes,
        facts: Mapping[str, Any],
        *,
        noise: float | None,
        following: tuple[Order, bytes] | None,
        now: datetime,
    ) -> None:
        """End a round and open the one after it: whoever answered is asked again, and single answers are forgotten.

        Args:
            row: The round.
            content: What it came to; empty if nothing.
            facts: Who took part and who was late.
            noise: Noise multiplier of the noise that is in it.
            following: The next round's order and its envelope; None for the last round.
            now: The time, when the next round begins.
        """
        with self._registry.writing() as session:
            here = session.get(Round, (row.campaign, row.number))
            if here is None or here.facts != "{}":
                return
            here.sha256 = hashlib.sha256(content).hexdigest() if content else ""
            here.content, here.noise, here.facts = content or None, noise, json.dumps(facts, sort_keys=True)
            session.execute(delete(Update).where(Update.campaign == row.campaign))
            if following is not None:
                session.add(round_of(*following, now))
                mine = CampaignAnswer.campaign == row.campaign
                again = update(CampaignAnswer).where(mine, CampaignAnswer.state == "done")
                session.execute(again.values(state="waiting", code=""))


def round_of(order: Order, envelope: bytes, now: datetime) -> Round:
    """Make the row of the round that an order of a `calibrate` opens."""
    assert order.calibrating is not None  # noqa: S101 - the caller's
    ends = min(now + timedelta(minutes=order.calibrating.round_minutes), read_timestamp(order.expires))
    return Round(campaign=order.number, number=order.calibrating.number, envelope=envelope, ends=timestamp(ends))


def order_of(envelope: bytes) -> Order:
    """Read an order of our own."""
    parsed = statement.parse(Signed.parse(envelope).payload, ORDER_TYPE)
    return statement.read(Order, parsed.predicate, what="The order")


def file_of(row: Round, content: bytes, privacy: Spent | None) -> CalibrationFile:
    """Name what a round came to."""
    digest = hashlib.sha256(content).hexdigest()
    return CalibrationFile(sha256=digest, size=len(content), campaign=row.campaign, privacy=privacy)


def facts_of(row: Round) -> dict[str, Any]:
    """Say who took part in a round, who was late, and what is spent."""
    return {"number": row.number, "ends": row.ends, "calibration": row.sha256} | json.loads(row.facts)
