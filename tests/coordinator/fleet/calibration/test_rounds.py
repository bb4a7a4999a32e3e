"""Campaigns in rounds: who is heard, who is late, what a restart and a full budget leave, and what is proposed."""

import json
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from client.daemon.app import make_app
from coordinator.fleet.campaigns.start import CalibrationPlan, start
from coordinator.fleet.records.rounds import facts_of, order_of
from coordinator.fleet.simulation.local_grid import VirtualNode
from coordinator.fleet.simulation.simulate import enrol, open_pool, propose
from coordinator.registry.registry import Registry
from coordinator.registry.tables import Update
from protocol.documents import Pool
from protocol.errors import Code, Refused
from protocol.fleet.campaign import APP_DIGEST, Calibrating, Order, Privacy
from protocol.fleet.reply import ANSWER, ARRAYS, METRICS, UPDATE, Reply
from protocol.release import read_candidate, sign_candidate
from protocol.signing import Identity
from protocol.spec import Policy, Promotion, Routing
from router.pool.calibration import MAX_BIAS, Calibration
from tests.coordinator.conftest import Clock as WorkshopClock
from tests.coordinator.conftest import make_pool
from tests.coordinator.fleet.campaigns.test_driver import Town
from tests.coordinator.fleet.campaigns.test_promotion import Bench
from tests.coordinator.review.workshop import Workshop

NUMBERS = 3
"""Two experts at one module, and its temperature."""


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Town]:
    with open_pool(tmp_path, Policy(apps=(APP_DIGEST,), promotion=Promotion(min_nodes=2))) as opened:
        town = Town(opened)
        propose(opened, town.clock(), experts=2)
        yield town
        town.grid.close()


def learning(value: float, seen: list[Calibrating] | None = None) -> Callable[[Order], Reply]:
    """Answer with one value everywhere."""

    def act(order: Order) -> Reply:
        assert order.calibrating is not None
        if seen is not None:
            seen.append(order.calibrating)
        update = np.full(order.calibrating.numbers, value, np.float32).tobytes()
        return Reply(words={"round": str(order.calibrating.number)}, metrics={"seconds": 1.0}, update=update)

    return act


def begin(town: Town, **changes: object) -> int:
    minute, hour = timedelta(minutes=1), timedelta(hours=1)
    plan = CalibrationPlan(**{"rounds": 2, "round_minutes": 2.0, **changes})  # type: ignore[arg-type]
    return start(town.opened, "calibrate", open_for=minute, ends_after=hour, now=town.clock(), plan=plan).number


def finish(town: Town, number: int) -> str:
    """Drive a campaign to its end; the clock goes on whenever everybody has answered."""

    def over() -> bool:
        if all(answer.state != "asked" for answer, _ in town.fleet.campaigns.answers(number)):
            town.clock.forward(timedelta(seconds=20))
        return town.fleet.campaigns.find(number).state == "finished"

    town.drive(over)
    return town.fleet.campaigns.find(number).conclusion


def rounds(town: Town, number: int) -> list[dict[str, object]]:
    return [facts_of(row) for row in town.fleet.rounds.of(number)]


def proposed(town: Town) -> Calibration:
    row = town.fleet.candidates.find()
    assert row is not None
    spec = read_candidate(row.envelope, town.opened.pool).spec
    assert spec.calibration is not None
    content = town.fleet.rounds.content(spec.calibration.sha256)
    assert content is not None
    assert len(content) == spec.calibration.size
    return Calibration.load(content)


def test_rounds_follow_each_other_and_end_in_a_candidate(town: Town) -> None:
    seen: list[Calibrating] = []
    town.join("ada", learning(0.5, seen))
    town.join("bob", learning(1.5))
    before = town.fleet.candidates.find()
    number = begin(town)
    said = finish(town, number)
    assert said.startswith("2 answered. Round 1: 2 answered. Round 2: 2 answered. Candidate ")
    assert [(task.number, task.start is None, task.numbers) for task in seen] == [(1, True, 3), (2, False, 3)]
    assert [row["answered"] for row in rounds(town, number)] == [["ada", "bob"]] * 2
    found = proposed(town)
    assert found.vector.tolist() == [1.0] * NUMBERS
    assert found.experts == tuple(f"{at:064x}" for at in range(2))
    assert before is not None
    assert [row.state for row in town.fleet.candidates.all()] == ["overtaken", "open"]
    # The second round started from what the first came to, which anyone may fetch.
    assert seen[1].start is not None
    assert town.fleet.rounds.content(seen[1].start.sha256) is not None
    with town.opened.registry.reading() as session:
        assert session.query(Update).count() == 0


def test_who_is_late_is_named_and_asked_in_the_next_round(town: Town) -> None:
    go_on = threading.Event()
    slow = learning(0.0)
    town.join("ada", learning(0.5))
    town.join("bob", learning(1.5))
    town.join("slow", lambda order: (go_on.wait(20), slow(order))[1])
    number = begin(town)
    town.drive(lambda: town.states(number) == {"ada": "done", "bob": "done", "slow": "asked"})
    town.clock.forward(timedelta(minutes=3))
    town.drive(lambda: len(rounds(town, number)) == 2)
    assert (rounds(town, number)[0]["answered"], rounds(town, number)[0]["late"]) == (["ada", "bob"], ["slow"])
    go_on.set()  # its answer to the first round comes in the second, where it is asked again
    said = finish(town, number)
    assert "Round 1: 2 answered, late: slow. Round 2: 3 answered." in said
    assert proposed(town).vector.tolist() == pytest.approx([2 / 3] * NUMBERS)


def test_who_comes_late_joins_the_round_that_is_going_on(town: Town) -> None:
    town.join("ada", learning(0.5))
    town.join("bob", learning(1.5))
    town.clock.forward(timedelta(minutes=2))  # the time for late comers is over before anybody was asked
    number = begin(town)
    town.clock.forward(timedelta(seconds=90))
    town.drive(lambda: len(rounds(town, number)) == 2)
    town.join("late", learning(4.0))
    said = finish(town, number)
    assert "Round 1: 2 answered. Round 2: 3 answered." in said
    assert proposed(town).vector.tolist() == [2.0] * NUMBERS


def test_a_node_that_fails_is_left_out(town: Town) -> None:
    def refuse(_: Order) -> Reply:
        raise Refused(Code.DATA_EMPTY, "Nothing here.")

    town.join("ada", learning(0.5))
    town.join("bob", learning(1.5))
    town.join("carl", refuse)
    said = finish(town, begin(town))
    assert said.startswith("2 answered; failed: carl (DATA_EMPTY). Round 1: 2 answered. Round 2: 2 answered.")


def test_one_node_alone_decides_nothing(town: Town) -> None:
    town.join("ada", learning(0.5))
    said = finish(town, begin(town))
    assert said.endswith("Round 1: 1 answered. It ended there: 1 answered; 2 nodes are needed. Nothing is calibrated.")
    assert [row.state for row in town.fleet.candidates.all()] == ["open"]


def test_a_new_driver_goes_on_in_the_middle_of_a_round_and_nothing_is_doubled(town: Town) -> None:
    go_on, calls = threading.Event(), list[int]()
    answer = learning(1.5)

    def slow(order: Order) -> Reply:
        calls.append(order.number)
        go_on.wait(20)
        return answer(order)

    town.join("ada", learning(0.5))
    town.join("bob", slow)
    number = begin(town, rounds=1)
    town.drive(lambda: town.states(number) == {"ada": "done", "bob": "asked"})
    town.driver = town.new_driver()
    go_on.set()
    said = finish(town, number)
    assert "Round 1: 2 answered." in said
    assert proposed(town).vector.tolist() == [1.0] * NUMBERS
    assert len(rounds(town, number)) == 1
    assert calls == [number, number]


def test_answers_that_do_not_fit_are_refused(town: Town) -> None:
    town.join("ada", learning(0.5))
    town.join("bob", learning(1.5))
    town.join("loud", learning(2 * MAX_BIAS))
    town.join("short", lambda _: Reply(words={"round": "1"}, update=b"\0" * 4))
    town.join("ahead", lambda _: Reply(words={"round": "2"}, update=b"\0" * 12))
    town.join("empty", lambda _: Reply(words={"round": "1"}))
    number = begin(town, rounds=1)
    finish(town, number)
    assert town.states(number) == dict.fromkeys(["ahead", "empty", "loud", "short"], "failed") | dict.fromkeys(
        ["ada", "bob"], "done"
    )
    assert {code for code in town.codes(number).values() if code} == {"EGRESS"}
    assert proposed(town).vector.tolist() == [1.0] * NUMBERS


@pytest.mark.parametrize(
    "arrays",
    [
        {"another": b"\0" * 12},
        {UPDATE: b"\0" * 12, "another": b"\0" * 12},
        {UPDATE: b"\0" * 13},
        {UPDATE: np.array([0, np.nan, 0], np.float32).tobytes()},
        {UPDATE: b"\0" * (4 << 20)},
        {UPDATE: b""},
    ],
)
def test_a_node_that_sends_other_arrays_is_not_believed(town: Town, arrays: dict[str, bytes]) -> None:
    app = ClientApp()

    @app.train("calibrate")
    def answer(message: Message, context: Context) -> Message:
        content = RecordDict()
        content[ANSWER], content[METRICS] = ConfigRecord({"state": "done", "round": "1"}), MetricRecord({})
        content[ARRAYS] = ArrayRecord(
            {name: Array(dtype="float32", shape=(3,), stype="x", data=data) for name, data in arrays.items()}
        )
        return Message(content, reply_to=message)

    town.grid.nodes.append(VirtualNode(enrol(town.opened, "mallory"), app))
    number = begin(town)
    town.drive(lambda: town.codes(number) == {"mallory": "EGRESS"})


def test_a_contributor_reads_how_much_was_sent_and_no_value(town: Town) -> None:
    notes: list[str] = []
    app = make_app(town.opened.pool, learning(0.4711), notes.append)
    town.grid.nodes.append(VirtualNode(enrol(town.opened, "ada"), app))
    number = begin(town)
    town.drive(lambda: town.states(number) == {"ada": "done"})
    assert notes == ["an array of 3 numbers is sent, 12 bytes"]


def test_an_operator_who_stops_it_keeps_nothing_of_single_nodes(town: Town) -> None:
    town.join("ada", learning(0.5))
    number = begin(town)
    town.drive(lambda: town.states(number) == {"ada": "done"})
    assert len(town.fleet.rounds.updates(number)) == 1
    town.fleet.campaigns.conclude(number, "stopped", "Enough.", actor="operator", now=town.clock())
    assert town.fleet.rounds.updates(number) == []


def test_without_experts_there_is_nothing_to_calibrate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_pool(tmp_path) as opened:
        town = Town(opened)
        with pytest.raises(Refused) as refused:
            begin(town)
        assert refused.value.code is Code.RELEASE_UNKNOWN
        propose(opened, town.clock(), experts=1)
        with pytest.raises(Refused) as refused:
            begin(town)
        assert refused.value.code is Code.EXPERTS_EXHAUSTED
        propose(opened, town.clock(), experts=200)
        monkeypatch.setattr("coordinator.fleet.campaigns.start.MAX_CALIBRATION_BYTES", 4000)
        with pytest.raises(Refused) as refused:
            begin(town)
        assert refused.value.code is Code.TOO_LARGE
        town.grid.close()


PRIVACY = Privacy(clipping_norm=0.5, noise_multiplier=1.0, max_epsilon=12.0, delta=1e-5)


def test_a_private_campaign_adds_noise_and_tells_what_is_spent(town: Town) -> None:
    for name in ("ada", "bob", "carl"):
        town.join(name, learning(0.5))
    number = begin(town, privacy=PRIVACY)
    said = finish(town, number)
    assert "is spent at delta 1e-05. Candidate" in said
    found = proposed(town).vector
    assert np.abs(found - 0.5).min() > 0  # noise
    told = [json.loads(row.facts)["privacy"] for row in town.fleet.rounds.of(number)]
    assert [each["rounds"] for each in told] == [1, 2]
    assert told[0]["epsilon"] < told[1]["epsilon"] < PRIVACY.max_epsilon
    row = town.fleet.candidates.find()
    assert row is not None
    spec = read_candidate(row.envelope, town.opened.pool).spec
    assert spec.calibration is not None
    assert spec.calibration.privacy is not None
    assert spec.calibration.privacy.model_dump() == told[1]
    assert f"Epsilon {told[1]['epsilon']:.2f} is spent" in said
    # What is spent stays spent: the next campaign of the pool begins there.
    with pytest.raises(Refused, match="2 rounds have spent") as refused:
        begin(town, privacy=PRIVACY.model_copy(update={"max_epsilon": told[1]["epsilon"] + 0.1}))
    assert refused.value.code is Code.BUDGET_EXHAUSTED


def test_a_budget_that_ends_on_the_way_ends_the_campaign_with_what_there_is(town: Town) -> None:
    for name in ("ada", "bob"):
        town.join(name, learning(0.5))
    little = PRIVACY.model_copy(update={"max_epsilon": 7.5})
    first, second = (begin(town, rounds=2, privacy=little) for _ in range(2))  # neither knows of the other
    said = [finish(town, number) for number in (first, second)]
    assert any("would go beyond the budget of 7.5" in each for each in said)
    assert len(town.fleet.rounds.noises()) == 2


@pytest.mark.parametrize(
    ("plan", "sentence"),
    [({"strategy": "krum", "privacy": PRIVACY}, "fedavg"), ({"rounds": 0}, "rounds"), ({"steps": 0}, "steps")],
)
def test_a_plan_that_makes_no_order_is_refused(town: Town, plan: dict[str, object], sentence: str) -> None:
    with pytest.raises(Refused, match=sentence) as refused:
        begin(town, **plan)
    assert refused.value.code is Code.SETTINGS_INVALID
    assert town.fleet.campaigns.all() == []


@pytest.mark.parametrize("method", ["merged", "nnls-request", "nnls-gates", "average-activation"])
def test_only_what_gates_decide_is_calibrated(tmp_path: Path, method: str) -> None:
    with open_pool(tmp_path) as opened:
        town = Town(opened)
        spec = read_candidate(proposal(town), opened.pool).spec
        other = spec.model_copy(update={"routing": Routing(method=method)})
        town.fleet.candidates.propose(sign_candidate(other, opened.identity), now=town.clock())
        with pytest.raises(Refused) as refused:
            begin(town)
        assert refused.value.code is Code.METHOD_UNKNOWN
        town.grid.close()


def proposal(town: Town) -> bytes:
    propose(town.opened, town.clock(), experts=2)
    row = town.fleet.candidates.find()
    assert row is not None
    return row.envelope


def test_a_candidate_that_is_being_evaluated_is_not_overtaken(town: Town) -> None:
    town.join("ada", learning(0.5))
    town.join("bob", learning(1.5))
    town.join("carl", learning(0.0)).up = False
    hour = timedelta(hours=1)
    under = start(town.opened, "evaluate", open_for=hour, ends_after=hour, now=town.clock()).number
    number = begin(town, rounds=1)
    town.drive(lambda: town.states(number) == {"ada": "done", "bob": "done"})
    town.clock.forward(timedelta(minutes=3))
    for _ in range(3):
        town.driver.step()
    assert town.fleet.campaigns.find(number).state == "running"
    town.fleet.campaigns.conclude(under, "stopped", "Enough.", actor="operator", now=town.clock())
    assert "Candidate" in finish(town, number)


@pytest.fixture
def pool(coordinator_identity: Identity) -> Pool:
    return make_pool(coordinator_identity, promotion=Promotion(when="evaluated"), apps=(APP_DIGEST,))


@pytest.fixture
def bench(
    tmp_path: Path, pool: Pool, coordinator_identity: Identity, registry: Registry, clock: WorkshopClock
) -> Bench:
    return Bench(Workshop(tmp_path, pool, coordinator_identity, registry, clock), tmp_path)


def test_a_release_is_calibrated_promoted_and_carried_on(bench: Bench) -> None:
    first, second = bench.submit(), bench.submit()
    bench.decide(promoted=True)
    town = Town(bench.opened)
    town.join("ada", learning(0.5))
    town.join("bob", learning(1.5))
    number = begin(town, rounds=1)
    order = order_of(town.fleet.campaigns.find(number).envelope)
    assert (order.candidate, order.release) == (None, bench.shop.newest().digest)
    finish(town, number)
    found = proposed(town)
    assert found.experts == (first.digest, second.digest)
    # A bundle that comes meanwhile joins the candidate, and so does its calibration.
    third = bench.submit()
    assert bench.listed() == [first.digest, second.digest, third.digest]
    assert proposed(town).digest == found.digest
    bench.decide(promoted=True)
    released = bench.shop.newest().spec
    assert released.number == 2
    assert released.calibration is not None
    assert released.calibration.sha256 == found.digest
    assert released.calibration.campaign == number
    # Whoever comes later finds it there, and a second calibration starts from it.
    fourth = bench.submit()
    bench.decide(promoted=True)
    assert bench.shop.newest().spec.calibration == released.calibration
    again = begin(town, rounds=1)
    task = order_of(town.fleet.campaigns.find(again).envelope).calibrating
    assert task is not None
    assert task.start == released.calibration
    finish(town, again)
    assert proposed(town).experts == tuple(each.digest for each in (first, second, third, fourth))
    # Held back, it is gone; the experts stay as they were.
    bench.decide(promoted=False)
    bench.work()
    assert bench.fleet.candidates.find() is None
    assert bench.shop.newest().spec.calibration == released.calibration
    town.grid.close()
