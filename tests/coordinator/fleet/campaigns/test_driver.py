"""Campaigns over nodes of this process: real orders, real messages, a real registry."""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.app.typing import ConfigRecordValues
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from client.daemon.app import make_app
from coordinator.fleet.campaigns.conclusion import summary
from coordinator.fleet.campaigns.driver import MAX_CRASHES, Driver
from coordinator.fleet.campaigns.start import start
from coordinator.fleet.flower.client import Run
from coordinator.fleet.records.fleet import Fleet
from coordinator.fleet.simulation.local_grid import LocalGrid, VirtualNode
from coordinator.fleet.simulation.simulate import Clock, enrol, open_pool, propose
from coordinator.workspace.context import Opened
from protocol.errors import Code, Refused, Unavailable
from protocol.fleet.campaign import APP_DIGEST, Order
from protocol.fleet.reply import ANSWER, METRICS, ORDER, Reply
from protocol.spec import Policy, Promotion

PLANTED = "zanzibar-4711"


class Mortal(ClientApp):
    """A node that dies over a message whenever it is told to."""

    def __init__(self, app: ClientApp, dies: Callable[[], bool]) -> None:
        super().__init__()
        self._app, self._dies = app, dies

    def __call__(self, message: Message, context: Context) -> Message:
        if self._dies():
            return Message(Error(ErrorCode.NODE_UNAVAILABLE, "Node Unavailable"), reply_to=message)
        return self._app(message, context)


class Town:
    """A pool, its nodes, and a driver."""

    def __init__(self, opened: Opened) -> None:
        self.opened, self.clock, self.fleet = opened, Clock(), Fleet(opened.registry)
        self.wire: list[bytes] = []
        self.grid = LocalGrid([], on_wire=self.wire.append)
        self.begun = 0
        self.driver = self.new_driver()

    def new_driver(self) -> Driver:
        return Driver(self.opened, self._begin, clock=self.clock, ask_again_s=10)

    def _begin(self) -> Run:
        self.begun += 1
        return self.grid.as_run()

    def join(self, name: str, act: Callable[[Order], Reply], dies: Callable[[], bool] = lambda: False) -> VirtualNode:
        app = Mortal(make_app(self.opened.pool, act, lambda _: None), dies)
        node = VirtualNode(enrol(self.opened, name), app)
        self.grid.nodes.append(node)
        return node

    def start(self) -> int:
        minute, hour = timedelta(minutes=1), timedelta(hours=1)
        return start(self.opened, "info", open_for=minute, ends_after=hour, now=self.clock()).number

    def drive(self, until: Callable[[], bool]) -> None:
        end = time.monotonic() + 20
        while not until():
            self.driver.step()
            assert time.monotonic() < end
            time.sleep(0.01)

    def states(self, number: int) -> dict[str, str]:
        return {name: answer.state for answer, name in self.fleet.campaigns.answers(number)}

    def codes(self, number: int) -> dict[str, str]:
        return {name: answer.code for answer, name in self.fleet.campaigns.answers(number)}


def good(_: Order) -> Reply:
    return Reply(words={"device": "cpu"}, metrics={"memory_gb": 1.0})


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Town]:
    with open_pool(tmp_path) as opened:
        town = Town(opened)
        yield town
        town.grid.close()


def test_everybody_who_is_there_is_asked_once(town: Town) -> None:
    calls: list[int] = []
    town.join("ada", lambda order: calls.append(order.number) or good(order))  # type: ignore[func-returns-value]
    town.join("bob", good)
    number = town.start()
    town.drive(lambda: town.states(number) == {"ada": "done", "bob": "done"})
    town.clock.forward(timedelta(minutes=1))
    town.drive(lambda: town.fleet.campaigns.find(number).state == "finished")
    assert town.fleet.campaigns.find(number).conclusion == "2 answered."
    assert calls == [number]


def test_who_comes_late_is_asked_and_who_is_slow_holds_nobody_up(town: Town) -> None:
    go_on = threading.Event()
    town.join("slow", lambda order: (go_on.wait(20) and good(order)) or good(order))
    number = town.start()
    town.driver.step()
    town.join("late", good)
    town.drive(lambda: town.states(number) == {"slow": "asked", "late": "done"})
    assert summary(town.fleet, number) == "1 answered; silent: slow."
    town.clock.forward(timedelta(minutes=1))
    town.driver.step()
    assert town.fleet.campaigns.find(number).state == "running"
    town.join("too-late", good)
    go_on.set()
    town.drive(lambda: town.fleet.campaigns.find(number).state == "finished")
    assert town.fleet.campaigns.find(number).conclusion == "2 answered; not there in time: too-late."


def test_a_campaign_ends_at_its_deadline_with_nobody_there(town: Town) -> None:
    town.join("away", good).up = False
    number = town.start()
    town.driver.step()
    town.clock.forward(timedelta(hours=2))
    town.driver.step()
    assert town.fleet.campaigns.find(number).conclusion == "0 answered; not there in time: away."
    assert town.states(number) == {}


def test_who_was_asked_again_in_vain_is_told_by_what_it_said_last(town: Town) -> None:
    go_on, said = threading.Event(), [Reply("later", Code.STORAGE_FULL.name)]

    def act(order: Order) -> Reply:
        if said:
            return said.pop()
        go_on.wait(20)
        return good(order)

    town.join("ada", act)
    number = town.start()
    town.drive(lambda: town.codes(number) == {"ada": "STORAGE_FULL"})
    town.clock.forward(timedelta(seconds=11))
    town.drive(lambda: town.states(number) == {"ada": "asked"})
    assert summary(town.fleet, number) == "0 answered; waiting: ada (STORAGE_FULL)."
    town.clock.forward(timedelta(hours=1))
    town.driver.step()
    assert town.fleet.campaigns.find(number).conclusion == "0 answered; waiting: ada (STORAGE_FULL)."
    go_on.set()


def test_nobody_is_asked_once_a_campaign_is_over(town: Town) -> None:
    asked: list[int] = []
    town.join("ada", lambda order: asked.append(order.number) or Reply("later", Code.CONSENT.name))  # type: ignore[func-returns-value]
    number = town.start()
    town.drive(lambda: town.states(number) == {"ada": "waiting"})
    town.clock.forward(timedelta(hours=2))
    town.driver.step()
    assert town.fleet.campaigns.find(number).conclusion == "0 answered; waiting: ada (CONSENT)."
    assert (town.states(number), asked) == ({"ada": "waiting"}, [number])


def test_a_new_driver_takes_up_where_the_last_one_ended(town: Town) -> None:
    go_on, calls = threading.Event(), list[int]()

    def slow(order: Order) -> Reply:
        calls.append(order.number)
        go_on.wait(20)
        return good(order)

    town.join("ada", good)
    town.join("bob", slow)
    number = town.start()
    town.drive(lambda: town.states(number) == {"ada": "done", "bob": "asked"})
    town.driver = town.new_driver()  # the old one is gone with its run, and with bob's reply to it
    go_on.set()
    town.drive(lambda: town.states(number) == {"ada": "done", "bob": "done"})
    assert (town.begun, calls) == (2, [number, number])
    attempts = {name: answer.attempts for answer, name in town.fleet.campaigns.answers(number)}
    assert attempts == {"ada": 1, "bob": 2}


def test_who_cannot_now_is_asked_again_later(town: Town) -> None:
    said: list[Unavailable | Reply] = [Unavailable(Code.UNREACHABLE, "Away.")]
    said += [Reply("later", Code.CONSENT.name), Reply()]

    def act(_: Order) -> Reply:
        answer = said.pop(0)
        if isinstance(answer, Reply):
            return answer
        raise answer

    town.join("ada", act)
    number = town.start()
    for code in ("UNREACHABLE", "CONSENT"):
        town.drive(lambda: town.states(number) == {"ada": "waiting"})
        assert town.codes(number) == {"ada": code}
        assert summary(town.fleet, number) == f"0 answered; waiting: ada ({code})."
        town.driver.step()
        assert town.states(number) == {"ada": "waiting"}
        town.clock.forward(timedelta(seconds=11))
        town.driver.step()
    town.drive(lambda: town.states(number) == {"ada": "done"})


def test_a_node_that_dies_is_asked_again(town: Town) -> None:
    dying = [True]
    town.join("ada", good, lambda: bool(dying) and dying.pop())
    number = town.start()
    town.drive(lambda: town.codes(number) == {"ada": "UNREACHABLE"})
    town.clock.forward(timedelta(seconds=11))
    town.drive(lambda: town.states(number) == {"ada": "done"})


def test_who_asked_for_time_often_and_dies_once_is_asked_again(town: Town) -> None:
    said = [Reply("later", Code.CONSENT.name)] * MAX_CRASHES
    dying: list[bool] = []
    town.join("ada", lambda _: said.pop() if said else Reply(), lambda: bool(dying) and dying.pop())
    number = town.start()
    for _ in range(MAX_CRASHES):
        town.drive(lambda: town.states(number) == {"ada": "waiting"})
        town.clock.forward(timedelta(seconds=11))
        town.driver.step()
    dying.append(True)
    town.drive(lambda: town.codes(number) == {"ada": "UNREACHABLE"} or town.states(number) == {"ada": "done"})
    assert town.states(number) != {"ada": "failed"}
    town.clock.forward(timedelta(seconds=11))
    town.drive(lambda: town.states(number) == {"ada": "done"})


def test_a_node_that_dies_over_every_order_is_given_up(town: Town) -> None:
    town.join("ada", good, lambda: True)
    number = town.start()
    for _ in range(MAX_CRASHES):
        town.driver.step()
        town.drive(lambda: town.states(number) != {"ada": "asked"})
        town.clock.forward(timedelta(seconds=11))
    assert town.states(number) == {"ada": "failed"}
    town.driver.step()
    assert town.fleet.campaigns.find(number).conclusion == "0 answered; failed: ada (UNREACHABLE)."


def test_a_node_that_was_away_in_between_is_asked_again_at_once(town: Town) -> None:
    go_on = threading.Event()
    node = town.join("ada", lambda order: (go_on.wait(20), good(order))[1])
    node.since = town.clock().isoformat()
    number = town.start()
    town.drive(lambda: town.states(number) == {"ada": "asked"})
    town.driver.step()
    assert [answer.attempts for answer, _ in town.fleet.campaigns.answers(number)] == [1]
    node.since = (town.clock() + timedelta(seconds=3)).isoformat()
    town.clock.forward(timedelta(seconds=5))
    town.driver.step()
    town.driver.step()
    assert [answer.attempts for answer, _ in town.fleet.campaigns.answers(number)] == [2]
    go_on.set()
    town.drive(lambda: town.states(number) == {"ada": "done"})


def test_text_of_an_error_stays_and_its_code_comes(town: Town) -> None:
    def refuse(_: Order) -> Reply:
        raise Refused(Code.DATA_EMPTY, f"Row 3 says {PLANTED}.")

    def crash(_: Order) -> Reply:
        raise KeyError(PLANTED)

    def leak(_: Order) -> Reply:
        return Reply(words={"row": PLANTED})

    for name, act in (("refuse", refuse), ("crash", crash), ("leak", leak)):
        town.join(name, act)
    number = town.start()
    town.drive(lambda: set(town.states(number).values()) == {"failed"} and len(town.states(number)) == 3)
    assert town.codes(number) == {"refuse": "DATA_EMPTY", "crash": "INTERNAL", "leak": "EGRESS"}
    assert town.wire
    assert not any(PLANTED.encode() in raw for raw in town.wire)


def test_a_node_that_breaks_the_schema_is_not_believed(town: Town) -> None:
    contents = {
        "array": {ANSWER: ConfigRecord({"state": "done"}), METRICS: MetricRecord({}), "arrays": ArrayRecord([])},
        "word": {ANSWER: ConfigRecord({"state": "done", "row": "x"}), METRICS: MetricRecord({})},
        "list": {ANSWER: ConfigRecord({"state": "done"}), METRICS: MetricRecord({"memory_gb": [1.0, 2.0]})},
        "nothing": {},
    }
    for name, content in contents.items():
        app = ClientApp()

        @app.query("info")
        def answer(message: Message, context: Context, content: object = content) -> Message:
            return Message(RecordDict(content), reply_to=message)  # type: ignore[arg-type]

        town.grid.nodes.append(VirtualNode(enrol(town.opened, name), app))
    number = town.start()
    town.drive(lambda: len(town.states(number)) == 4 and set(town.states(number).values()) == {"failed"})
    assert set(town.codes(number).values()) == {"EGRESS"}


def test_a_node_whose_key_is_revoked_is_not_asked(town: Town) -> None:
    town.join("ada", good)
    town.opened.registry.contributors.set_state("ada", "revoked", now=town.clock())
    number = town.start()
    town.driver.step()
    assert town.states(number) == {}
    assert summary(town.fleet, number) == "no contributor has a daemon to ask."


def test_nobody_waits_for_a_node_whose_key_is_revoked(town: Town) -> None:
    go_on = threading.Event()
    town.join("ada", lambda order: (go_on.wait(20), good(order))[1])
    town.join("bob", good)
    number = town.start()
    town.drive(lambda: town.states(number) == {"ada": "asked", "bob": "done"})
    town.clock.forward(timedelta(minutes=1))
    town.driver.step()
    assert town.fleet.campaigns.find(number).state == "running"
    town.opened.registry.contributors.set_state("ada", "revoked", now=town.clock())
    town.driver.step()
    assert town.fleet.campaigns.find(number).conclusion == "1 answered."
    go_on.set()


def test_a_stopped_campaign_is_let_go(town: Town) -> None:
    town.join("ada", good)
    number = town.start()
    town.driver.step()
    town.fleet.campaigns.conclude(number, "stopped", "Enough.", actor="operator", now=town.clock())
    town.driver.step()
    assert town.driver._runs == {}
    assert town.fleet.campaigns.find(number).conclusion == "Enough."


@pytest.mark.parametrize(
    ("losses", "state", "sentence"),
    [
        ((0.5, 0.6), "promoted", "Promoted: median change of loss -0.4500 nats a token over 2 nodes, 0 hurt."),
        ((1.5, 0.6), "held_back", "Held back: median change of loss +0.0500 nats a token over 2 nodes, 1 hurt;"),
        ((0.5,), "open", "Nothing is decided: 2 nodes are needed."),
    ],
)
def test_an_evaluation_ends_in_a_decision(tmp_path: Path, losses: tuple[float, ...], state: str, sentence: str) -> None:
    policy = Policy(apps=(APP_DIGEST,), promotion=Promotion(when="evaluated", min_nodes=2))
    with open_pool(tmp_path, policy) as opened:
        town = Town(opened)
        propose(opened, town.clock())
        for at, loss in enumerate(losses):
            measured = {"loss_candidate": loss, "loss_base": 1.0}
            town.join(f"node-{at}", lambda _, measured=measured: Reply(metrics=measured))  # type: ignore[misc]
        minute = timedelta(minutes=1)
        number = start(opened, "evaluate", open_for=minute, ends_after=2 * minute, now=town.clock()).number
        town.drive(lambda: list(town.states(number).values()) == ["done"] * len(losses))
        town.clock.forward(minute)
        town.drive(lambda: town.fleet.campaigns.find(number).state == "finished")
        assert sentence in town.fleet.campaigns.find(number).conclusion
        assert [row.state for row in town.fleet.candidates.all()] == [state]
        assert (opened.registry.releases.find() is not None) == (state == "promoted")
        town.grid.close()


def test_nothing_around_the_order_is_believed(town: Town) -> None:
    """Whoever took over the server writes what he likes beside the signed order; a node reads the order alone."""
    seen: list[Order] = []
    app = make_app(town.opened.pool, lambda order: seen.append(order) or good(order), lambda _: None)  # type: ignore[func-returns-value]
    node = VirtualNode(enrol(town.opened, "ada"), app)
    town.grid.nodes.append(node)
    number = town.start()
    envelope = town.fleet.campaigns.find(number).envelope
    more: dict[str, ConfigRecordValues] = {
        "data": "/etc/passwd",
        "url": "http://example.org",
        "app": "os:system",
        "kind": "train",
        "number": 9,
    }
    contents: tuple[dict[str, ConfigRecord | ArrayRecord], ...] = (
        {ORDER: ConfigRecord({"envelope": envelope, **more}), "more": ConfigRecord(more), "fab": ArrayRecord([])},
        {ORDER: ConfigRecord({"envelope": [envelope]})},
        {ORDER: ConfigRecord({"envelope": envelope.decode()})},
        {"orders": ConfigRecord({"envelope": envelope})},
        {},
    )
    run = town.grid.as_run()
    said = []
    for content in contents:
        run.enter()
        (reply,) = town.grid.send_and_receive([Message(RecordDict(content), 1, "query.info")])  # type: ignore[arg-type]
        answer = reply.content.config_records[ANSWER]
        said.append((answer["state"], answer.get("code", "")))
    assert said == [("done", ""), *[("failed", "ORDER_INVALID")] * 4]
    assert [(order.kind, order.number) for order in seen] == [("info", number)]
