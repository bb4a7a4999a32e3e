"""Starts campaigns: signs the order and opens the row."""

from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from pydantic import ValidationError

from coordinator.fleet.records.candidates import base_of, no_candidate
from coordinator.fleet.records.fleet import Fleet
from coordinator.registry.tables import Campaign
from coordinator.workspace.context import Opened
from protocol.documents import Duty, read_timestamp, timestamp
from protocol.errors import Code, Refused
from protocol.fleet.campaign import Calibrating, Kind, Order, Privacy, Strategy, sign_order
from protocol.release import MAX_CALIBRATION_BYTES, Release, read_candidate
from protocol.statement import first_invalid
from router.pool.calibration import METHOD, Calibration

OPEN_FOR, ENDS_AFTER = timedelta(minutes=10), timedelta(days=1)
"""How long a campaign goes on unless its operator says otherwise."""
_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class CalibrationPlan:
    """What its operator says of a `calibrate`, as `Calibrating` says it to nodes."""

    strategy: Strategy = "fedavg"
    rounds: int = 3
    round_minutes: float = 10.0
    steps: int = 20
    learning_rate: float = 0.05
    privacy: Privacy | None = None


def start(
    opened: Opened,
    kind: Kind,
    *,
    open_for: timedelta,
    ends_after: timedelta,
    now: datetime,
    plan: CalibrationPlan | None = None,
) -> Campaign:
    """Start a campaign.

    Args:
        opened: The workspace.
        kind: What is asked; `evaluate` is about the open candidate, `calibrate` about it or else the newest release.
        open_for: How long nodes that come late are asked, too; in rounds there is always room.
        ends_after: When it ends, whoever is silent.
        now: The time.
        plan: Of a `calibrate`.

    Raises:
        Refused: `CANDIDATE_UNKNOWN` or `STATE_CHANGE` for an `evaluate` with nothing to evaluate, or that is asked
            already; for a `calibrate`: `RELEASE_UNKNOWN`, `METHOD_UNKNOWN`, `EXPERTS_EXHAUSTED`, `TOO_LARGE`,
            `SETTINGS_INVALID` or `BUDGET_EXHAUSTED`.
    """
    fleet, calibrating, release = Fleet(opened.registry), None, None
    candidate = fleet.candidates.find() if kind in ("evaluate", "calibrate") else None
    if kind == "evaluate" and candidate is None:
        raise no_candidate("")
    if kind == "calibrate":
        base = base_of(opened)
        calibrating = _first_round(opened, base, plan or CalibrationPlan())
        release = None if candidate else base.digest

    def make(number: int) -> tuple[Order, bytes]:
        order = Order(
            pool=opened.pool.digest, number=number, kind=kind, candidate=candidate.digest if candidate else None,
            release=release, calibrating=calibrating, created=timestamp(now),
            expires=timestamp(now + max(ends_after, open_for)),
        )  # fmt: skip
        return order, sign_order(order, opened.signer(Duty.ORDERS))

    return fleet.campaigns.start(make, open_until=now + open_for, now=now)


def start_due(opened: Opened, *, now: datetime) -> Campaign | None:
    """Start the evaluation of the open candidate if the operator's settings say that it is due.

    A candidate is evaluated by itself once: if too few nodes answered to decide anything, the operator asks again.
    """
    after, fleet = opened.settings.evaluate_after_minutes, Fleet(opened.registry)
    candidate = None if after is None else fleet.candidates.find()
    if after is None or candidate is None:
        return None
    opened_at = read_timestamp(read_candidate(candidate.envelope, opened.pool).spec.created)
    if now < opened_at + timedelta(minutes=after):
        return None  # bundles that come one after the other shall share it
    about = [campaign for campaign in fleet.campaigns.all() if campaign.candidate == candidate.digest]
    if any(campaign.kind == "evaluate" or campaign.state == "running" for campaign in about):
        return None
    campaign = start(opened, "evaluate", open_for=OPEN_FOR, ends_after=ENDS_AFTER, now=now)
    _log.info("evaluation begins", campaign=campaign.number, candidate=campaign.candidate)
    return campaign


def _first_round(opened: Opened, base: Release, plan: CalibrationPlan) -> Calibrating:
    spec, modules = base.spec, opened.pool.spec.modules
    if spec.routing.method != METHOD:
        raise Refused(
            Code.METHOD_UNKNOWN,
            f"Only {METHOD} is calibrated; the pool routes by {spec.routing.method}.",
            f"Biases belong to gates: a pool to be calibrated is founded with {METHOD}.",
        )
    if len(spec.experts) < 2:  # noqa: PLR2004 - one alone has all the weight
        raise Refused(Code.EXPERTS_EXHAUSTED, f"The list to calibrate has {len(spec.experts)} experts; two are needed.")
    empty = Calibration.zeros([expert.bundle for expert in spec.experts], sorted(modules))
    if len(empty.content) > MAX_CALIBRATION_BYTES:
        raise Refused(
            Code.TOO_LARGE,
            f"A calibration of {len(spec.experts)} experts at {len(modules)} modules is too large to send.",
        )
    try:
        first = Calibrating(**vars(plan), number=1, start=spec.calibration, numbers=len(empty.vector))
    except ValidationError as error:
        fault = ": ".join(filter(None, first_invalid(error)))
        raise Refused(Code.SETTINGS_INVALID, f"The plan makes no round: {fault}.", "Correct the options.") from error
    if plan.privacy is not None:
        from coordinator.fleet.calibration.aggregation import check_budget  # noqa: PLC0415 - Flower, after it was told to be quiet

        check_budget(plan.privacy, Fleet(opened.registry).rounds.noises(), plan.rounds)
    return first
