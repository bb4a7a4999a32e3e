"""From a candidate to the newest release, or not; always by a signed decision."""

from datetime import datetime, timedelta

from coordinator.fleet.records.candidates import no_candidate
from coordinator.fleet.records.fleet import Fleet
from coordinator.policy.lifecycle import State
from coordinator.policy.next_release import steps_to
from coordinator.registry.registry import Registry
from coordinator.workspace.context import Opened
from protocol.documents import timestamp
from protocol.errors import Code, Refused
from protocol.fleet.campaign import Decision, sign_decision
from protocol.release import Release, read_candidate, sign_release


def newcomers(candidate: Release, registry: Registry) -> set[str]:
    """Digests of the candidate's bundles that no release has held yet."""
    waiting = registry.bundles.digests(State.ACCEPTED)
    return {expert.bundle for expert in candidate.spec.experts if expert.bundle in waiting}


def settle(
    opened: Opened, digest: str, *, promoted: bool, by: str, reason: str, campaign: int | None, now: datetime
) -> Decision:
    """Sign a decision about a candidate and carry it out.

    The one new expert of a candidate that is held back is not proposed again; of several, none is condemned:
    the worker proposes each of them once more, alone.

    Args:
        opened: The workspace.
        digest: The candidate.
        promoted: Whether it becomes the newest release.
        by: `rule` or `operator`.
        reason: One public sentence.
        campaign: The campaign whose answers were weighed, if there was one.
        now: The time.

    Raises:
        Refused: `CANDIDATE_UNKNOWN`, `STATE_CHANGE` if something newer came meanwhile, or `REGISTRY_OLDER`.
    """
    fleet = Fleet(opened.registry)
    row = fleet.candidates.find(digest)
    if row is None:
        raise no_candidate(digest)
    candidate = read_candidate(row.envelope, opened.pool)
    decision = Decision.model_validate(
        {
            "pool": opened.pool.digest, "candidate": row.digest, "promoted": promoted, "by": by, "reason": reason,
            "campaign": campaign, "created": timestamp(now),
        }
    )  # fmt: skip
    envelope = sign_decision(decision, opened.identity)
    if promoted:
        _publish(opened, fleet, candidate, decision, envelope, now)
    else:
        new = newcomers(candidate, opened.registry)
        fleet.candidates.hold_back(decision, envelope, condemned=new if len(new) == 1 else (), now=now)
    return decision


def _publish(
    opened: Opened, fleet: Fleet, candidate: Release, decision: Decision, envelope: bytes, now: datetime
) -> None:
    opened.high_water.check()
    newest = opened.registry.releases.find()
    if candidate.spec.previous != (newest.digest if newest else None):
        raise Refused(
            Code.STATE_CHANGE,
            f"Candidate {candidate.digest[:16]} does not continue the newest release.",
            "Wait for the worker's next candidate.",
        )
    expires = now + timedelta(days=opened.pool.spec.policy.release_days)
    spec = candidate.spec.model_copy(update={"created": timestamp(now), "expires": timestamp(expires)})
    release = sign_release(spec, opened.identity)
    fleet.candidates.promote(decision, envelope, release, steps_to(spec, opened.registry.bundles.all()), now=now)
