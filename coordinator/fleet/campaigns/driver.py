"""Drives campaigns: whoever is there is asked, whoever answers is heard, nobody is waited for but the deadline.

All progress is in the registry. A driver that starts anew, after its own end or its server's, asks again whoever
was asked by the run that is over; nodes do what they did already without doing it twice.
"""

import json
from collections.abc import Callable
from datetime import datetime, timedelta

import httpx
import structlog

from coordinator.fleet.calibration.rounds import Calibrations, OpenRound
from coordinator.fleet.campaigns.conclusion import conclude, is_evaluating
from coordinator.fleet.flower import client
from coordinator.fleet.records.campaigns import FINAL
from coordinator.fleet.records.fleet import Fleet
from coordinator.registry.tables import Campaign, CampaignAnswer
from coordinator.workspace.context import Opened
from protocol.documents import read_timestamp, timestamp
from protocol.errors import Code, GreylagError
from protocol.fleet.reply import Reply

ASK_AGAIN_S = 60.0
"""Pause before a node that could not or would not is asked again, in seconds."""
MAX_CRASHES = 10
"""A node that is there and falls over an order this often is not asked again."""
AWAY = timedelta(minutes=3)
"""Whoever was asked and is away for longer is waited for no more once the time to come is over."""
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
        self._unkept: dict[int, dict[str, Reply]] = {}
        self._seen: dict[str, datetime] = {}
        self._looking_since = clock()

    def step(self) -> None:
        """Look once at every running campaign; one that cannot go on holds up no other, and ends in its time.

        Raises:
            httpx.HTTPError: Flower's server does not answer; call `lose_runs`, then go on.
        """
        running = self._fleet.campaigns.all("running")
        for number in self._runs.keys() - {campaign.number for campaign in running}:
            self._let_go(number)  # stopped by the operator
        for campaign in running:
            try:
                self._step(campaign)
            except httpx.TransportError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever is wrong with one is not the others' fault
                self._fail(campaign, error)

    def lose_runs(self) -> None:
        """Let go of runs whose server is gone; the next step opens new ones."""
        for number in list(self._runs):
            self._let_go(number)
        self._seen.clear()
        self._looking_since = self._clock()

    def _let_go(self, number: int) -> None:
        self._unkept.pop(number, None)
        try:
            client.finish(self._runs.pop(number))
        except Exception as error:  # noqa: BLE001 - it is let go in any case
            _log.warning("run not given back", campaign=number, error=type(error).__name__)

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
            sentence = conclude(self._opened, campaign, now=self._clock())
            _log.info("concluded", campaign=campaign.number, sentence=sentence)
            self._let_go(campaign.number)

    def _fail(self, campaign: Campaign, error: Exception) -> None:
        what = error.code.name if isinstance(error, GreylagError) else type(error).__name__
        _log.warning("campaign cannot be carried on", campaign=campaign.number, error=what)
        if isinstance(error, httpx.HTTPError) and campaign.number in self._runs:
            self._let_go(campaign.number)  # Flower has ended its run; the next step opens another
        if timestamp(self._clock()) >= campaign.expires:
            sentence = f"It could not be carried on ({what})."
            try:
                conclude(self._opened, campaign, now=self._clock(), trouble=sentence)
            except Exception:  # noqa: BLE001 - what cannot be weighed ends all the same
                self._fleet.campaigns.conclude(campaign.number, "finished", sentence, actor="rule", now=self._clock())

    def _hear(self, campaign: Campaign, run: client.Run, turn: OpenRound | None) -> None:
        answers = self._fleet.campaigns.answers(campaign.number)
        under_way = {answer.message: (answer, name) for answer, name in answers if answer.message}
        # Flower gives a reply once; one that could not be kept is kept now.
        waiting = self._unkept.setdefault(campaign.number, {})
        waiting |= client.hear(run, campaign.kind, under_way.keys() - waiting.keys())
        for message, told in list(waiting.items()):
            if message in under_way:
                try:
                    self._keep(campaign, *under_way[message], told, turn)
                except Exception as error:  # noqa: BLE001 - one node's reply is not the others' fault
                    _log.warning("reply not kept", campaign=campaign.number, error=type(error).__name__)
                    continue
            del waiting[message]

    def _keep(self, campaign: Campaign, answer: CampaignAnswer, name: str, told: Reply, turn: OpenRound | None) -> None:
        reply = told if turn is None else turn.judged(told, answer.attempts)
        crashes = json.loads(answer.facts).get("crashes", 0) + (reply.code == Code.UNREACHABLE.name)
        facts = {**reply.words, **reply.metrics}
        if reply.error:
            facts["error"] = reply.error
        if crashes and reply.state == "later":
            facts["crashes"] = crashes
        state = "failed" if crashes >= MAX_CRASHES else "waiting" if reply.state == "later" else reply.state
        number, now = campaign.number, self._clock()
        self._fleet.campaigns.heard(number, answer.contributor, reply, state=state, facts=facts, now=now)
        _log.info("heard", campaign=campaign.number, contributor=name, state=reply.state, code=reply.code)

    def _ask(self, campaign: Campaign, run: client.Run, turn: OpenRound | None) -> None:
        now = self._clock()
        envelope, ends = (turn.row.envelope, turn.row.ends) if turn else (campaign.envelope, campaign.expires)
        left = (read_timestamp(ends) - now).total_seconds()
        if left <= 0:
            return
        known = {answer.contributor: answer for answer, _ in self._fleet.campaigns.answers(campaign.number)}
        online = client.online(run)
        self._seen |= dict.fromkeys(online, now)
        is_open = turn is not None or now < read_timestamp(campaign.open_until)  # in a round there is always room
        for node, name in self._fleet.nodes.all():
            answer, there = known.get(node.contributor), online.get(node.public)
            if node.state != "active" or there is None:
                continue
            if not (self._may_ask_again(answer, there, now) if answer else is_open):
                continue
            try:
                message = client.ask(run, there.number, campaign.kind, envelope, ttl_s=max(1.0, left))
            except httpx.HTTPError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever is wrong with one node is not the others' fault
                _log.warning("not asked", campaign=campaign.number, contributor=name, error=type(error).__name__)
                continue
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
        return turn is None and not is_evaluating(self._fleet)

    def _is_over(self, campaign: Campaign) -> bool:
        """Tell whether all have answered, or whether nobody is waited for any more."""
        now, standing = self._clock(), self._fleet.campaigns.standing(campaign.number)
        pending = {public: state for public, state in standing.items() if state not in FINAL}
        least = self._opened.pool.spec.policy.promotion.min_nodes if campaign.kind == "evaluate" else 1
        if now >= read_timestamp(campaign.expires) or (len(standing) >= least and not pending):
            return True
        if now < read_timestamp(campaign.open_until):
            return False
        seen = (self._seen.get(public, self._looking_since) for public, state in pending.items() if state)
        return all(now - last > AWAY for last in seen)
