"""Takes a `calibrate` campaign from round to round, and makes a candidate of what it came to."""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coordinator.fleet.calibration.aggregation import pool, pool_privately
from coordinator.fleet.flower.client import Run
from coordinator.fleet.records.campaigns import FINAL
from coordinator.fleet.records.candidates import base_of
from coordinator.fleet.records.fleet import Fleet
from coordinator.fleet.records.rounds import file_of, order_of
from coordinator.policy.next_release import next_release
from coordinator.registry.tables import Campaign, Round
from coordinator.workspace.context import Opened
from protocol.documents import Duty, read_timestamp, timestamp
from protocol.errors import Code, Refused
from protocol.fleet.campaign import Calibrating, Order, sign_order
from protocol.fleet.reply import Reply
from protocol.release import CalibrationFile, Release, Spent, read_candidate, read_release, sign_candidate
from router.pool.calibration import MAX_BIAS, MAX_LOG_TEMPERATURE, Calibration

MAX_ATTEMPTS = 10
"""A node that answers rounds long over so often, beside one in each round, is not asked again."""


@dataclass(frozen=True)
class OpenRound:
    """The round that is going on."""

    row: Round
    order: Order
    task: Calibrating

    def judged(self, reply: Reply, attempts: int) -> Reply:
        """Take an answer to this round, ask again who answered to one that is over, and refuse everything else.

        Args:
            reply: Fits the schema.
            attempts: How often the node was asked.
        """
        if reply.state != "done":
            return reply
        told = int(reply.words.get("round", "0"))
        if 1 <= told < self.task.number and attempts < MAX_ATTEMPTS + self.task.number:
            return Reply("later")
        vector = np.frombuffer(reply.update, np.float32)
        fits = len(vector) == self.task.numbers and bool((np.abs(vector) <= MAX_BIAS).all())
        return reply if fits and told == self.task.number else Reply("failed", Code.EGRESS.name)


class Calibrations:
    """Rounds of calibration.

    Args:
        opened: The workspace.
    """

    def __init__(self, opened: Opened) -> None:
        self._opened, self._fleet = opened, Fleet(opened.registry)
        self._least = opened.pool.spec.policy.promotion.min_nodes

    def turn(self, campaign: Campaign) -> OpenRound | None:
        """Find the round that is going on; None after the last."""
        row = self._fleet.rounds.of(campaign.number)[-1]
        order = order_of(row.envelope)
        assert order.calibrating is not None  # noqa: S101 - our own row
        return OpenRound(row, order, order.calibrating) if row.facts == "{}" else None

    def is_over(self, campaign: Campaign, turn: OpenRound, now: datetime) -> bool:
        """Tell whether nobody is waited for any more: the round's time is up, or everybody has answered.

        That is, in a later round, everybody who took part in one before.
        """
        if now >= read_timestamp(turn.row.ends):
            return True
        standing = self._fleet.campaigns.standing(campaign.number).values()
        states = [state for state in standing if state or turn.task.number == 1]
        return len(states) >= self._least and all(state in FINAL for state in states)

    def close(self, campaign: Campaign, turn: OpenRound, run: Run, now: datetime) -> None:
        """Put together what was learnt, and open the next round; without enough answers or budget that was the last."""
        answers = self._fleet.campaigns.answers(campaign.number)
        facts: dict[str, Any] = {
            "answered": [name for answer, name in answers if answer.state == "done"],
            "late": [name for answer, name in answers if answer.state in ("asked", "waiting")],
        }
        updates, task = self._fleet.rounds.updates(campaign.number), turn.task
        content, noise, following = b"", None, None
        try:
            if len(updates) < self._least:
                facts["ended"] = f"{len(updates)} answered; {self._least} nodes are needed."
            else:
                content, spent = self._pooled(turn, run, updates)
                noise = task.privacy.noise_multiplier if task.privacy else None
                facts |= {"privacy": spent.model_dump()} if spent else {}
                if task.number < task.rounds and now < read_timestamp(campaign.expires):
                    changes = {"number": task.number + 1, "start": file_of(turn.row, content, spent)}
                    order = turn.order.model_copy(update={"calibrating": task.model_copy(update=changes)})
                    following = order, sign_order(order, self._opened.signer(Duty.ORDERS))
        except Refused as error:
            facts["ended"] = error.message
        self._fleet.rounds.close(turn.row, content, facts, noise=noise, following=following, now=now)

    def _pooled(self, turn: OpenRound, run: Run, updates: list[bytes]) -> tuple[bytes, Spent | None]:
        task, order = turn.task, turn.order
        # The list that is calibrated, whatever became of it since.
        base = base_of(self._opened, candidate=order.candidate or "", release=order.release or "")
        before = self._fleet.rounds.content(task.start.sha256) if task.start else None
        start = Calibration.load(before) if before else Calibration.zeros([], [])
        start = start.over([expert.bundle for expert in base.spec.experts], sorted(self._opened.pool.spec.modules))
        if task.privacy is None:
            vector, spent = pool(run, task.strategy, updates), None
        else:
            vector, spent = pool_privately(run, task.privacy, start.vector, updates, self._fleet.rounds.noises())
        return start.at(_bounded(vector, start)).content, spent

    def propose(self, campaign: Campaign, now: datetime) -> str:
        """Make a candidate of what the rounds came to.

        Returns:
            One sentence about rounds, budget and candidate.
        """
        rows = self._fleet.rounds.of(campaign.number)
        told = " ".join(_told(row) for row in rows)
        reached = [row for row in rows if row.sha256]
        if not reached:
            return f"{told} Nothing is calibrated."
        privacy = json.loads(reached[-1].facts).get("privacy")
        spent = Spent.model_validate(privacy) if privacy else None
        content = self._fleet.rounds.content(reached[-1].sha256) or b""
        candidate = self._candidate(file_of(reached[-1], content, spent), now)
        if candidate is None:
            return f"{told} What was calibrated is no longer proposed."
        self._fleet.candidates.propose(candidate, now=now)
        budget = f" Epsilon {spent.epsilon:.2f} is spent at delta {spent.delta:g}." if spent else ""
        return f"{told}{budget} Candidate {candidate.digest[:16]} is to be evaluated."

    def _candidate(self, file: CalibrationFile, now: datetime) -> Release | None:
        """The open candidate with a calibration, or the newest release with it."""
        pool, registry = self._opened.pool, self._opened.registry
        identity = self._opened.signer(Duty.RELEASES)
        if row := self._fleet.candidates.find():
            changes = {"calibration": file, "created": timestamp(now)}
            return sign_candidate(read_candidate(row.envelope, pool).spec.model_copy(update=changes), identity)
        newest, held = registry.releases.find(), registry.bundles.held()
        if newest is None:
            return None
        before = read_release(newest.envelope, pool)
        spec = next_release(pool, before, accepted=[], held=held, now=now, calibration=file)
        return sign_candidate(spec, identity) if spec else None


def _told(row: Round) -> str:
    facts = json.loads(row.facts)
    late = f", late: {', '.join(facts['late'])}" if facts.get("late") else ""
    ended = f" It ended there: {facts['ended']}" if "ended" in facts else ""
    return f"Round {row.number}: {len(facts.get('answered', ()))} answered{late}.{ended}"


def _bounded(vector: NDArray[np.float32], like: Calibration) -> NDArray[np.float32]:
    """Keep numbers [n] where a calibration holds them; noise and liars may have led beyond."""
    limits = np.full(len(vector), MAX_BIAS, np.float32)
    limits[len(vector) - len(like.modules) :] = MAX_LOG_TEMPERATURE
    return np.clip(vector, -limits, limits)
