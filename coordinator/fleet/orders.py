"""Starts campaigns: signs the order and opens the row."""

from datetime import datetime, timedelta

from coordinator.fleet.records import Fleet, no_candidate
from coordinator.opening import Opened
from coordinator.tables import Campaign
from protocol.campaign import Kind, Order, sign_order
from protocol.release import timestamp


def start(opened: Opened, kind: Kind, *, open_for: timedelta, ends_after: timedelta, now: datetime) -> Campaign:
    """Start a campaign.

    Args:
        opened: The workspace.
        kind: What is asked; `evaluate` is about the open candidate.
        open_for: How long nodes that come late are asked, too.
        ends_after: When it ends, whoever is silent.
        now: The time.

    Raises:
        Refused: `CANDIDATE_UNKNOWN` for an `evaluate` with nothing to evaluate.
    """
    fleet = Fleet(opened.registry)
    candidate = fleet.candidate() if kind == "evaluate" else None
    if kind == "evaluate" and candidate is None:
        raise no_candidate("")
    order = Order(
        pool=opened.pool.digest,
        number=fleet.next_number(),
        kind=kind,
        candidate=candidate.digest if candidate else None,
        created=timestamp(now),
        expires=timestamp(now + max(ends_after, open_for)),
    )
    return fleet.start(order, sign_order(order, opened.identity), open_for=open_for, now=now)
