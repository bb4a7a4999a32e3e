"""What follows from a campaign that is over, by itself or by its operator's word: a sentence, and what it decides."""

import json
from datetime import datetime

from coordinator.fleet.calibration.rounds import Calibrations
from coordinator.fleet.records.campaigns import FINAL
from coordinator.fleet.records.candidates import settle
from coordinator.fleet.records.fleet import Fleet
from coordinator.policy.promotion_rule import read_loss, weigh
from coordinator.registry.tables import Campaign, CampaignAnswer
from coordinator.workspace.context import Opened
from protocol.errors import Refused


def conclude(opened: Opened, campaign: Campaign, *, now: datetime, stopped: bool = False, trouble: str = "") -> str:
    """End a campaign, and do what follows from the answers that have come, however many.

    Args:
        opened: The workspace.
        campaign: A running one; another stays as it is.
        now: The time.
        stopped: Whether its operator ends it.
        trouble: Why it is not carried on, in a sentence.

    Returns:
        The conclusion in a few sentences.
    """
    fleet = Fleet(opened.registry)
    if (now_ := fleet.campaigns.find(campaign.number)).state != "running":  # somebody else has ended it meanwhile
        return now_.conclusion
    parts = ["Stopped by the operator."] if stopped else [trouble] if trouble else []
    parts.append(summary(fleet, campaign.number))
    if campaign.kind == "evaluate":
        parts.append(_decide(opened, campaign, now))
    if campaign.kind == "calibrate" and is_evaluating(fleet):
        parts.append("Nothing is proposed, since a candidate is being evaluated.")
    elif campaign.kind == "calibrate":
        parts.append(Calibrations(opened).propose(campaign, now))
    state, actor = ("stopped", "operator") if stopped else ("finished", "rule")
    fleet.campaigns.conclude(campaign.number, state, " ".join(parts), actor=actor, now=now)
    return " ".join(parts)


def is_evaluating(fleet: Fleet) -> bool:
    """Tell whether a candidate is being evaluated, which no other may overtake."""
    return any(campaign.kind == "evaluate" for campaign in fleet.campaigns.all("running"))


def summary(fleet: Fleet, number: int) -> str:
    """Say in one sentence who answered a campaign, who failed, who waits, who kept silent, and who was not there."""
    answers = fleet.campaigns.answers(number)
    asked = {answer.contributor: answer for answer, _ in answers}
    told: dict[str, list[str]] = {"failed": [], "waiting": [], "silent": [], "not there in time": []}
    for answer, name in answers:
        if answer.state == "failed" or _waits(answer):
            told["failed" if answer.state == "failed" else "waiting"].append(f"{name} ({answer.code or 'failed'})")
    for node, name in fleet.nodes.all():
        mine = asked.get(node.contributor)
        if node.state == "active" and (mine is None or not (mine.state in FINAL or _waits(mine))):
            told["silent" if mine else "not there in time"].append(name)
    done = sum(answer.state == "done" for answer, _ in answers)
    parts = [f"{done} answered"] if answers or any(told.values()) else ["no contributor has a daemon to ask"]
    return "; ".join([*parts, *(f"{what}: {', '.join(sorted(names))}" for what, names in told.items() if names)]) + "."


def _waits(answer: CampaignAnswer) -> bool:
    """Whether the last that a node said is that it cannot now, though it was asked again since."""
    return answer.state in ("waiting", "asked") and answer.code != ""


def _decide(opened: Opened, campaign: Campaign, now: datetime) -> str:
    fleet = Fleet(opened.registry)
    candidate = fleet.candidates.find(campaign.candidate)
    if candidate is None or candidate.state != "open":
        return f"The candidate is {candidate.state if candidate else 'gone'}."
    in_force = {node.contributor for node, _ in fleet.nodes.all() if node.state == "active"}
    losses = [
        read_loss(json.loads(answer.facts))
        for answer, _ in fleet.campaigns.answers(campaign.number)
        if answer.state == "done"
        if answer.contributor in in_force
    ]
    rule = opened.pool.spec.policy.promotion
    verdict = weigh([loss for loss in losses if loss is not None], rule)
    if verdict is None:
        return f"Nothing is decided: {rule.min_nodes} nodes are needed."
    promoted, reason = verdict
    try:
        settle(
            opened, candidate.digest, promoted=promoted, by="rule", reason=reason, campaign=campaign.number, now=now
        )  # fmt: skip
    except Refused as error:
        return error.message
    return reason
