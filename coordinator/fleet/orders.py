"""Starts campaigns: signs the order and opens the row."""

from datetime import datetime, timedelta

from coordinator.fleet.records import Fleet, no_candidate
from coordinator.opening import Opened
from coordinator.tables import Campaign
from protocol.campaign import Kind, Order, sign_order
from protocol.release import read_candidate, read_timestamp, timestamp

OPEN_FOR, ENDS_AFTER = timedelta(minutes=10), timedelta(days=1)
"""How long a campaign goes on unless its operator says otherwise."""


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


def start_due(opened: Opened, *, now: datetime) -> Campaign | None:
    """Start the evaluation of the open candidate if the operator's settings say that it is due.

    A candidate is evaluated by itself once: if too few nodes answered to decide anything, the operator asks again.

    Args:
        opened: The workspace.
        now: The time.
    """
    after, fleet = opened.settings.evaluate_after_minutes, Fleet(opened.registry)
    candidate = None if after is None else fleet.candidate()
    if after is None or candidate is None:
        return None
    opened_at = read_timestamp(read_candidate(candidate.envelope, opened.pool).spec.created)
    if now < opened_at + timedelta(minutes=after):
        return None  # bundles that come one after the other shall share it
    if any(campaign.candidate == candidate.digest for campaign in fleet.campaigns()):
        return None
    return start(opened, "evaluate", open_for=OPEN_FOR, ends_after=ENDS_AFTER, now=now)
