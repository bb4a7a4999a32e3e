"""Drives campaigns: whoever is there is asked, whoever answers is heard, nobody is waited for but the deadline.

All progress is in the registry. A driver that starts anew, after its own end or its server's, asks again whoever
was asked by the run that is over; nodes do what they did already without doing it twice.
"""

import json
from collections.abc import Callable
from datetime import datetime, timedelta

import structlog

from coordinator.fleet.calibration.rounds import Calibrations, OpenRound
from coordinator.fleet.campaigns import promotion
from coordinator.fleet.flower import client
from coordinator.fleet.records.campaigns import FINAL
from coordinator.fleet.records.fleet import Fleet
from coordinator.policy.promotion_rule import read_loss, weigh
from coordinator.registry.tables import Campaign, CampaignAnswer
from coordinator.workspace.context import Opened
from protocol.documents import read_timestamp
from protocol.errors import Code, Refused
from protocol.fleet.campaign import Kind

ASK_AGAIN_S = 60.0
"""Pause before a node that could not or would not is asked again, in seconds."""
MAX_CRASHES = 10
"""A node that is there and falls over an order this often is not asked again."""
_SECOND = timedelta(seconds=1)
"""Times in the registry have no smaller part."""
_log = structlog.get_logger(__name__)


class Driver:
    """Takes every running campaign a step further.

    Args:
        opened: The workspace.
        begin: Opens a Flower run.
        clock: Tells the time.
        ask_again_s: Pause before a node is asked again, in seconds.
    """

    def __init__(
        self,
        opened: Opened,
        begin: Callable[[], client.Run],
        *,
        clock: Callable[[], datetime],
        ask_again_s: float = ASK_AGAIN_S,
    ) -> None:
        self._opened, self._begin, self._clock = opened, begin, clock
        self._fleet, self._calibrations = Fleet(opened.registry), Calibrations(opened)
        self._ask_again = timedelta(seconds=ask_again_s)
        self._runs: dict[int, client.Run] = {}

    def step(self) -> None:
        """Look once at every running campaign.

        Raises:
            httpx.HTTPError: Flower's server does not answer; call `lose_runs`, then go on.
        """
        running = self._fleet.campaigns.all("running")
        for number in self._runs.keys() - {campaign.number for campaign in running}:
            client.finish(self._runs.pop(number))  # stopped by the operator
        for campaign in running:
            self._step(campaign)

    def lose_runs(self) -> None:
        """Let go of runs whose server is gone; the next step opens new ones."""
        for run in self._runs.values():
            client.finish(run)
        self._runs.clear()

    def _step(self, campaign: Campaign) -> None:
        run = self._runs.get(campaign.number)
        if run is None:
            run = self._runs[campaign.number] = self._begin()
            self._fleet.campaigns.forget_messages(campaign.number)
        turn = self._calibrations.turn(campaign) if campaign.kind == "calibrate" else None
        self._hear(campaign, run, turn)
        if campaign.kind != "calibrate" or turn is not None:
            self._ask(campaign, run, turn)
        if self._went_over(campaign, run, turn):
            self._conclude(campaign)
            client.finish(self._runs.pop(campaign.number))

    def _hear(self, campaign: Campaign, run: client.Run, turn: OpenRound | None) -> None:
        answers = self._fleet.campaigns.answers(campaign.number)
        under_way = {answer.message: (answer, name) for answer, name in answers if answer.message}
        kind: Kind = campaign.kind  # type: ignore[assignment] # written by `start` from a valid order
        for heard in client.hear(run, kind, under_way):
            answer, name = under_way[heard.message]
            reply = heard.reply if turn is None else turn.judged(heard.reply, answer.attempts)
            crashed = reply.code == Code.UNREACHABLE.name and answer.attempts >= MAX_CRASHES
            self._fleet.campaigns.heard(
                campaign.number,
                answer.contributor,
                "failed" if crashed else "waiting" if reply.state == "later" else reply.state,
                code=reply.code,
                facts={**reply.words, **reply.metrics, **({"error": reply.error} if reply.error else {})},
                now=self._clock(),
                update=reply.update,
            )
            _log.info("heard", campaign=campaign.number, contributor=name, state=reply.state, code=reply.code)

    def _ask(self, campaign: Campaign, run: client.Run, turn: OpenRound | None) -> None:
        now = self._clock()
        envelope, ends = (turn.row.envelope, turn.row.ends) if turn else (campaign.envelope, campaign.expires)
        left = (read_timestamp(ends) - now).total_seconds()
        if left <= 0:
            return
        known = {answer.contributor: answer for answer, _ in self._fleet.campaigns.answers(campaign.number)}
        online = client.online(run)
        kind: Kind = campaign.kind  # type: ignore[assignment] # as above
        for node, name in self._fleet.nodes.all():
            if node.state != "active" or node.public not in online:
                continue
            answer = known.get(node.contributor)
            if answer is None and turn is None and now >= read_timestamp(campaign.open_until):
                continue  # in a round there is always room
            there = online[node.public]
            if answer is not None and not self._may_ask_again(answer, there, now):
                continue
            message = client.ask(run, there.number, kind, envelope, ttl_s=max(1.0, left))
            if message:
                self._fleet.campaigns.asked(campaign.number, node.contributor, message, now=now)
                _log.info("asked", campaign=campaign.number, contributor=name)

    def _may_ask_again(self, answer: CampaignAnswer, there: client.Online, now: datetime) -> bool:
        asked = read_timestamp(answer.at)
        if answer.state == "asked":
            return there.since is not None and there.since > asked + _SECOND
        return answer.state == "waiting" and (answer.code == "" or now >= asked + self._ask_again)

    def _went_over(self, campaign: Campaign, run: client.Run, turn: OpenRound | None) -> bool:
        """Tell whether a campaign is over, after the round that is, if it is."""
        if campaign.kind != "calibrate":
            return self._is_over(campaign)
        if turn is not None and self._calibrations.is_over(campaign, turn, self._clock()):
            self._calibrations.close(campaign, turn, run, self._clock())
            turn = self._calibrations.turn(campaign)
        # A candidate that is being evaluated is not overtaken.
        evaluated = any(other.kind == "evaluate" for other in self._fleet.campaigns.all("running"))
        return turn is None and not evaluated

    def _is_over(self, campaign: Campaign) -> bool:
        now = self._clock()
        if now >= read_timestamp(campaign.expires):
            return True
        if now < read_timestamp(campaign.open_until):
            return False
        return all(state in FINAL for state in self._fleet.campaigns.states(campaign.number))

    def _conclude(self, campaign: Campaign) -> None:
        sentence = summary(self._fleet, campaign.number)
        if campaign.kind == "evaluate":
            sentence = f"{sentence} {self._decide(campaign)}"
        if campaign.kind == "calibrate":
            sentence = f"{sentence} {self._calibrations.propose(campaign, self._clock())}"
        self._fleet.campaigns.conclude(campaign.number, "finished", sentence, actor="rule", now=self._clock())
        _log.info("concluded", campaign=campaign.number, sentence=sentence)

    def _decide(self, campaign: Campaign) -> str:
        candidate = self._fleet.candidates.find(campaign.candidate)
        if candidate is None or candidate.state != "open":
            return f"The candidate is {candidate.state if candidate else 'gone'}."
        losses = [read_loss(numbers(answer)) for answer, _ in self._fleet.campaigns.answers(campaign.number)]
        rule = self._opened.pool.spec.policy.promotion
        verdict = weigh([loss for loss in losses if loss is not None], rule)
        if verdict is None:
            return f"Nothing is decided: {rule.min_nodes} nodes are needed."
        try:
            promotion.settle(
                self._opened, campaign.candidate, promoted=verdict.promoted, by="rule", reason=verdict.reason,
                campaign=campaign.number, now=self._clock(),
            )  # fmt: skip
        except Refused as error:
            return error.message
        return verdict.reason


def numbers(answer: CampaignAnswer) -> dict[str, float]:
    """Read the numbers of an answer."""
    facts = json.loads(answer.facts) if answer.state == "done" else {}
    return {name: value for name, value in facts.items() if isinstance(value, float)}


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
