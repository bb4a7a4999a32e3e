"""When a campaign ends, and that one which cannot go on holds up no other."""

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from sqlalchemy import update

from coordinator.fleet.campaigns.conclusion import conclude
from coordinator.fleet.campaigns.driver import AWAY
from coordinator.fleet.campaigns.start import start
from coordinator.fleet.flower import client
from coordinator.fleet.records.rounds import facts_of
from coordinator.fleet.simulation.simulate import open_pool, propose
from coordinator.registry.tables import CampaignAnswer, Candidate, Round
from protocol.errors import Code, Refused
from protocol.fleet.campaign import APP_DIGEST, Calibrating, Kind, Order
from protocol.fleet.reply import Reply
from protocol.spec import Policy, Promotion
from tests.coordinator.fleet.calibration.test_rounds import learning
from tests.coordinator.fleet.campaigns.test_driver import Town, good

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Town]:
    policy = Policy(apps=(APP_DIGEST,), promotion=Promotion(when="evaluated", min_nodes=2))
    with open_pool(tmp_path, policy) as opened:
        town = Town(opened)
        yield town
        town.grid.close()


def ask(town: Town, kind: Kind, *, open_for: timedelta = MINUTE, plan: Calibrating | None = None) -> int:
    if kind in ("evaluate", "calibrate"):
        propose(town.opened, town.clock(), experts=2 if kind == "calibrate" else 0)
    return start(town.opened, kind, open_for=open_for, ends_after=HOUR, now=town.clock(), plan=plan).number


def measured(candidate: float) -> Callable[[Order], Reply]:
    return lambda _: Reply(metrics={"loss_candidate": candidate, "loss_base": 1.0})


def is_over(town: Town, number: int) -> bool:
    return town.fleet.campaigns.find(number).state != "running"


def candidate(town: Town) -> Candidate:
    return town.fleet.candidates.all()[-1]


def test_nobody_waits_for_a_daemon_that_died_over_an_evaluation(town: Town) -> None:
    go_on = threading.Event()
    for name in ("ada", "bob", "carl"):
        town.join(name, measured(0.5))
    dead = town.join("dave", lambda order: (go_on.wait(20), measured(0.5)(order))[1])
    number = ask(town, "evaluate")
    town.drive(lambda: sorted(town.states(number).values()) == ["asked", "done", "done", "done"])
    dead.up = False
    town.clock.forward(AWAY)  # at once it is asked for, and may be back
    town.driver.step()
    town.clock.forward(MINUTE)
    town.driver.step()
    said = town.fleet.campaigns.find(number).conclusion
    assert said.startswith("3 answered; silent: dave. Promoted: ")
    assert candidate(town).state == "promoted"
    go_on.set()


def test_a_daemon_that_is_gone_for_a_moment_is_waited_for(town: Town) -> None:
    go_on = threading.Event()
    town.join("ada", measured(0.5))
    slow = town.join("bob", lambda order: (go_on.wait(20), measured(0.5)(order))[1])
    number = ask(town, "evaluate")
    town.drive(lambda: town.states(number) == {"ada": "done", "bob": "asked"})
    town.clock.forward(2 * MINUTE)
    town.driver.step()
    slow.up = False
    for _ in range(3):
        town.driver.lose_runs()  # with Flower's server gone nobody is seen, which proves nothing
        town.clock.forward(AWAY - MINUTE / 2)
        town.driver.step()
    assert not is_over(town, number)
    slow.up = True
    go_on.set()
    town.drive(lambda: is_over(town, number))
    assert town.fleet.campaigns.find(number).conclusion.startswith("2 answered. Promoted: ")


def test_a_campaign_is_over_when_all_have_answered(town: Town) -> None:
    town.join("ada", measured(0.5))
    away = town.join("bob", measured(0.5))
    away.up = False
    number = ask(town, "evaluate", open_for=HOUR / 2)
    town.drive(lambda: town.states(number) == {"ada": "done"})
    for _ in range(3):
        town.driver.step()
    assert not is_over(town, number)  # bob may still come
    away.up = True
    town.drive(lambda: is_over(town, number))
    assert town.fleet.campaigns.find(number).conclusion.startswith("2 answered. Promoted: ")


def test_a_first_round_is_as_long_as_any_other(town: Town) -> None:
    for name in ("ada", "bob"):
        town.join(name, learning(0.5))
    away = town.join("carl", learning(0.5))
    away.up = False
    number = ask(town, "calibrate", open_for=HOUR / 2, plan=Calibrating(numbers=1, rounds=2, round_minutes=1))
    town.drive(lambda: list(town.states(number).values()) == ["done", "done"])
    town.driver.step()
    assert [row.number for row in town.fleet.rounds.of(number)] == [1]  # carl may still come
    town.clock.forward(MINUTE)
    town.driver.step()
    assert [row.number for row in town.fleet.rounds.of(number)] == [1, 2]
    town.drive(lambda: is_over(town, number))
    assert [facts_of(row)["answered"] for row in town.fleet.rounds.of(number)] == [["ada", "bob"]] * 2


def test_a_round_that_all_have_answered_waits_for_nobody(town: Town) -> None:
    for name in ("ada", "bob"):
        town.join(name, learning(0.5))
    number = ask(town, "calibrate", open_for=HOUR / 2, plan=Calibrating(numbers=1, rounds=2))
    town.drive(lambda: is_over(town, number))
    assert "Round 2: 2 answered. Candidate" in town.fleet.campaigns.find(number).conclusion


@pytest.mark.parametrize(
    ("votes", "sentence", "state"),
    [
        (3, "Stopped by the operator. 3 answered; silent: slow. Promoted: ", "promoted"),
        (1, "Stopped by the operator. 1 answered; silent: slow. Nothing is decided: 2 nodes are needed.", "open"),
    ],
)
def test_an_evaluation_that_is_stopped_counts_its_votes(town: Town, votes: int, sentence: str, state: str) -> None:
    go_on = threading.Event()
    for at in range(votes):
        town.join(f"node-{at}", measured(0.5))
    town.join("slow", lambda order: (go_on.wait(20), measured(0.5)(order))[1])
    number = ask(town, "evaluate")
    town.drive(lambda: sorted(town.states(number).values()) == ["asked", *["done"] * votes])
    conclude(town.opened, town.fleet.campaigns.find(number), now=town.clock(), stopped=True)
    row = town.fleet.campaigns.find(number)
    assert (row.state, row.conclusion.startswith(sentence)) == ("stopped", True)
    assert candidate(town).state == state
    town.driver.step()
    assert town.driver._runs == {}
    assert town.fleet.campaigns.find(number).conclusion == row.conclusion
    go_on.set()


def test_a_vote_of_a_key_that_was_revoked_does_not_count(town: Town) -> None:
    for name, loss in (("ada", 1.5), ("bob", 1.5), ("mallory", 0.1), ("trudy", 0.1), ("wendy", 0.1)):
        town.join(name, measured(loss))
    slow = town.join("slow", measured(1.5))
    slow.up = False
    number = ask(town, "evaluate")
    town.drive(lambda: len(town.states(number)) == 5 and set(town.states(number).values()) == {"done"})
    for name in ("mallory", "trudy", "wendy"):
        town.opened.registry.contributors.set_state(name, "revoked", now=town.clock())
    town.clock.forward(HOUR)
    town.driver.step()
    assert "Held back: median change of loss +0.5000 nats a token over 2 nodes" in (
        town.fleet.campaigns.find(number).conclusion
    )


def test_a_calibration_that_is_stopped_keeps_the_rounds_that_are_over(town: Town) -> None:
    for name in ("ada", "bob"):
        town.join(name, learning(0.5))
    number = ask(town, "calibrate", plan=Calibrating(numbers=1, rounds=50))
    town.drive(lambda: len(town.fleet.rounds.of(number)) >= 2)
    conclude(town.opened, town.fleet.campaigns.find(number), now=town.clock(), stopped=True)
    row = town.fleet.campaigns.find(number)
    assert row.state == "stopped"
    assert "Round 1: 2 answered." in row.conclusion
    assert f"Candidate {candidate(town).digest[:16]} is to be evaluated." in row.conclusion


def test_one_bad_campaign_holds_up_no_other_and_ends_in_its_time(town: Town) -> None:
    town.join("ada", good)
    bad = ask(town, "calibrate")
    with town.opened.registry.writing() as session:
        session.execute(update(Round).values(envelope=b"rotten"))
    number = ask(town, "info")
    town.drive(lambda: is_over(town, number))
    assert town.fleet.campaigns.find(number).conclusion == "1 answered."
    assert not is_over(town, bad)
    town.clock.forward(HOUR)
    town.driver.step()
    row = town.fleet.campaigns.find(bad)
    assert row.state == "finished"
    assert row.conclusion.startswith("It could not be carried on (ENVELOPE_SCHEMA). 0 answered;")
    town.driver.step()
    assert town.driver._runs == {}


def test_one_node_that_cannot_be_asked_holds_up_no_other(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    town.join("ada", good)
    town.join("bob", good)
    asking = client.ask

    def ask_bob_alone(run: client.Run, node: int, *rest: object, **more: object) -> str:
        if node == 1:
            raise ValueError("no such node")
        return asking(run, node, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(client, "ask", ask_bob_alone)
    number = ask(town, "info")
    town.drive(lambda: town.states(number) == {"bob": "done"})


def test_a_server_that_is_gone_is_told_from_a_bad_campaign(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise httpx.ConnectError("gone")

    town.join("ada", good)
    ask(town, "info")
    monkeypatch.setattr(town.grid, "get_nodes", gone)
    with pytest.raises(httpx.ConnectError):
        town.driver.step()


def test_a_run_that_flower_has_ended_is_opened_anew(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    def ended() -> None:
        request = httpx.Request("POST", "http://127.0.0.1")
        raise httpx.HTTPStatusError("ended", request=request, response=httpx.Response(401, request=request))

    town.join("ada", good)
    number = ask(town, "info")
    with monkeypatch.context() as patch:
        patch.setattr(town.grid, "get_nodes", ended)
        town.driver.step()
    town.drive(lambda: is_over(town, number))
    assert (town.begun, town.fleet.campaigns.find(number).conclusion) == (2, "1 answered.")


def test_a_reply_that_cannot_be_kept_at_once_is_kept_later(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = threading.Event()
    town.join("ada", good)
    town.join("bob", lambda order: (tried.wait(20), good(order))[1])
    number = ask(town, "info")
    names = {contributor.key: contributor.name for contributor in town.opened.registry.contributors.all()}
    keep, failing = town.driver._fleet.campaigns.heard, ["ada"]

    def heard(number: int, contributor: str, *rest: object, **more: object) -> None:
        if names[contributor] in failing:
            tried.set()
            raise Refused(Code.STATE_CHANGE, "The database is busy.")
        keep(number, contributor, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(town.driver._fleet.campaigns, "heard", heard)
    town.drive(lambda: town.states(number) == {"ada": "asked", "bob": "done"})
    for _ in range(3):
        town.driver.step()
    failing.clear()
    town.drive(lambda: is_over(town, number))
    assert town.fleet.campaigns.find(number).conclusion == "2 answered."


def test_a_final_answer_is_never_replaced(town: Town) -> None:
    town.join("ada", good)
    number = ask(town, "info")
    town.drive(lambda: town.states(number) == {"ada": "done"})
    ((answer, _),) = town.fleet.campaigns.answers(number)
    for state, code in (("failed", "EGRESS"), ("waiting", "CONSENT"), ("done", "")):
        reply = Reply(state, code)
        town.fleet.campaigns.heard(
            number, answer.contributor, reply, state=state, facts={"late": 1}, now=town.clock()
        )  # fmt: skip
        town.fleet.campaigns.asked(number, answer.contributor, "message-9", now=town.clock())
        ((again, _),) = town.fleet.campaigns.answers(number)
        assert facts(again) == facts(answer)


def facts(answer: CampaignAnswer) -> tuple[object, ...]:
    return answer.state, answer.code, answer.facts, answer.attempts, answer.message, answer.at
