"""Candidates: proposed by the worker, decided by signed decisions, kept apart from releases."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Literal

import pytest

from coordinator.fleet.campaigns.start import start, start_due
from coordinator.fleet.records.candidates import Candidates, base_of, settle
from coordinator.fleet.records.fleet import Fleet
from coordinator.policy.lifecycle import State
from coordinator.registry.registry import Registry
from coordinator.registry.tables import Candidate
from coordinator.workspace.context import Opened
from coordinator.workspace.keyring import Keyring
from coordinator.workspace.paths import CoordinatorWorkspace
from coordinator.workspace.settings import Settings
from protocol.bundle import ADAPTER_WEIGHTS, Bundle
from protocol.documents import Pool
from protocol.errors import Code, Refused
from protocol.fleet.campaign import read_decision
from protocol.release import read_candidate
from protocol.signing import Identity
from protocol.spec import Promotion
from tests import factories
from tests.coordinator.conftest import Clock, make_pool
from tests.coordinator.review.workshop import Workshop


@pytest.fixture
def pool(coordinator_identity: Identity) -> Pool:
    return make_pool(coordinator_identity, promotion=Promotion(when="evaluated"))


@pytest.fixture
def shop(tmp_path: Path, pool: Pool, coordinator_identity: Identity, registry: Registry, clock: Clock) -> Workshop:
    return Workshop(tmp_path, pool, coordinator_identity, registry, clock)


class Bench:
    """A worker, and the decisions of people and rules."""

    def __init__(self, shop: Workshop, folder: Path) -> None:
        self.shop, self.fleet, self.folder = shop, Fleet(shop.registry), folder
        settings = Settings(base="none", database="none", store=str(folder), probe=folder)
        place = CoordinatorWorkspace(folder)
        keyring = Keyring(place, held=(shop.identity,))
        self.opened = Opened(place, settings, shop.pool, keyring, shop.registry)
        self._count = 0

    def submit(self, contributor: str = "ada", name: str | None = None) -> Bundle:
        self._count += 1
        name = name or f"expert-{self._count}"
        folder = self.folder / f"bundle-{self._count}"
        bundle = factories.make_bundle(folder, self.shop.pool, Identity.generate(), name=name, seed=self._count)
        self.shop.receive(bundle, f"{contributor}-{self._count}")
        self.work()
        return bundle

    def work(self) -> None:
        for _ in range(10):
            if not self.shop.worker.step():
                return
        pytest.fail("the worker finds no end")

    def open(self) -> Candidate:
        row = self.fleet.candidates.find()
        assert row is not None
        return row

    def listed(self) -> list[str]:
        return [e.bundle for e in read_candidate(self.open().envelope, self.shop.pool).spec.experts]

    def decide(self, *, promoted: bool, digest: str = "", by: Literal["rule", "operator"] = "rule") -> None:
        settle(
            self.opened, digest or self.open().digest, promoted=promoted, by=by, reason="As it is.", campaign=None,
            now=self.shop.clock(),
        )  # fmt: skip


@pytest.fixture
def bench(shop: Workshop, tmp_path: Path) -> Bench:
    return Bench(shop, tmp_path)


def test_nothing_is_released_before_a_decision(bench: Bench) -> None:
    first, second = bench.submit(), bench.submit()
    assert bench.shop.registry.releases.find() is None
    assert bench.listed() == [first.digest, second.digest]
    assert [row.state for row in bench.fleet.candidates.all()] == ["overtaken", "open"]
    bench.decide(promoted=True)
    assert bench.shop.listed() == [first.digest, second.digest]
    assert bench.shop.state(first) == State.RELEASED
    assert bench.fleet.candidates.find() is None
    bench.work()
    assert bench.shop.newest().spec.number == 1


def test_every_decision_is_signed_and_kept(bench: Bench) -> None:
    bench.submit()
    bench.decide(promoted=True)
    row = bench.fleet.candidates.all()[-1]
    assert row.decision is not None
    decision = read_decision(row.decision, bench.shop.pool)
    assert (decision.promoted, decision.by, decision.candidate) == (True, "rule", row.digest)
    steps = [(event.step, event.actor) for event in bench.shop.registry.events(row.digest)]
    assert steps == [("open", "worker"), ("promoted", "rule")]


def test_one_bundle_that_is_held_back_is_told_why_and_not_proposed_again(bench: Bench) -> None:
    poor = bench.submit()
    bench.decide(promoted=False)
    bench.work()
    row = bench.shop.registry.bundles.find(poor.digest)
    assert row is not None
    assert (row.state, row.code, row.message) == (State.ACCEPTED, "HELD_BACK", "As it is.")
    assert bench.fleet.candidates.find() is None
    good = bench.submit()
    assert bench.listed() == [good.digest]


def test_of_several_each_is_tried_again_alone(bench: Bench) -> None:
    one, two = bench.submit(), bench.submit()
    bench.decide(promoted=False)
    bench.work()
    assert bench.listed() == [one.digest]
    bench.decide(promoted=True)
    bench.work()
    assert bench.listed() == [one.digest, two.digest]
    bench.decide(promoted=False)
    bench.work()
    assert bench.fleet.candidates.find() is None
    assert bench.shop.listed() == [one.digest]


@pytest.mark.parametrize("late", ["old", "new"])
def test_the_newest_of_a_name_is_proposed_whatever_the_order_of_acceptance(
    bench: Bench, tmp_path: Path, identity: Identity, late: str
) -> None:
    bench.shop.pool = pool = make_pool(bench.shop.identity, admission="reviewed", promotion=Promotion(when="evaluated"))
    bench.shop.worker, bench.opened = bench.shop.start(), replace(bench.opened, pool=pool)
    made = {
        name: factories.make_bundle(tmp_path / name, pool, identity, name="poems", seed=seed)
        for seed, name in enumerate(("old", "new"))
    }
    for bundle in made.values():
        bench.shop.receive(bundle)
    bench.work()
    for name in sorted(made, key=lambda name: name == late):
        bench.shop.registry.bundles.move(made[name].digest, State.ACCEPTED, actor="operator", now=bench.shop.clock())
        bench.work()
    assert bench.listed() == [made["new"].digest]
    bench.decide(promoted=True)
    bench.work()
    assert (bench.shop.state(made["old"]), bench.shop.listed()) == (State.SUPERSEDED, [made["new"].digest])


def test_an_older_one_is_proposed_when_its_successor_was_held_back(bench: Bench, identity: Identity) -> None:
    old, new = (
        factories.make_bundle(bench.folder / str(seed), bench.shop.pool, identity, name="poems", seed=seed)
        for seed in range(2)
    )
    bench.shop.receive(old)
    bench.shop.receive(new)
    bench.work()
    assert bench.listed() == [new.digest]
    bench.decide(promoted=False)
    bench.work()
    assert bench.listed() == [old.digest]


def test_an_older_one_is_proposed_while_its_successor_is_put_off(bench: Bench, identity: Identity) -> None:
    """The successor's bytes are lost; when they are found, it is proposed instead."""
    old, new = (
        factories.make_bundle(bench.folder / str(seed), bench.shop.pool, identity, name="poems", seed=seed)
        for seed in range(2)
    )
    for bundle in (old, new):
        bench.shop.receive(bundle)
        steps = State.VERIFIED, State.QUARANTINED, State.ACCEPTED
        bench.shop.registry.bundles.move(bundle.digest, *steps, actor="operator", now=bench.shop.clock())
    lost = new.manifest.files[ADAPTER_WEIGHTS].sha256
    bench.shop.store.remove(lost)
    bench.shop.worker.step()
    bench.work()
    assert bench.listed() == [old.digest]
    bench.shop.store.put(new.folder / ADAPTER_WEIGHTS, lost)
    bench.shop.clock.forward(hours=2)
    bench.work()
    assert bench.listed() == [new.digest]


def test_an_operator_overrules_with_a_decision_of_his_own(bench: Bench) -> None:
    bundle = bench.submit()
    held = bench.open().digest
    bench.decide(promoted=False)
    bench.decide(promoted=True, digest=held, by="operator")
    assert bench.shop.listed() == [bundle.digest]
    row = bench.shop.registry.bundles.find(bundle.digest)
    assert row is not None
    assert (row.state, row.code) == (State.RELEASED, "")
    with pytest.raises(Refused) as refused:
        bench.decide(promoted=False, digest=held, by="operator")
    assert refused.value.code is Code.STATE_CHANGE


def test_a_candidate_that_does_not_continue_the_newest_release_is_over(bench: Bench) -> None:
    bench.submit()
    held = bench.open().digest
    bench.decide(promoted=False)
    bench.submit()
    bench.decide(promoted=True)
    with pytest.raises(Refused) as refused:
        bench.decide(promoted=True, digest=held, by="operator")
    assert refused.value.code is Code.STATE_CHANGE


def test_a_candidate_under_evaluation_grows_no_more(bench: Bench) -> None:
    bench.submit()
    before = bench.open().digest
    hour = timedelta(hours=1)
    start(bench.opened, "evaluate", open_for=hour, ends_after=hour, now=bench.shop.clock())
    bench.submit()
    assert bench.open().digest == before
    bench.fleet.campaigns.conclude(1, "stopped", "Enough.", actor="operator", now=bench.shop.clock())
    bench.work()
    assert len(bench.listed()) == 2


def test_there_is_nothing_to_evaluate(bench: Bench) -> None:
    hour = timedelta(hours=1)
    with pytest.raises(Refused) as refused:
        start(bench.opened, "evaluate", open_for=hour, ends_after=hour, now=bench.shop.clock())
    assert refused.value.code is Code.CANDIDATE_UNKNOWN
    with pytest.raises(Refused) as refused:
        bench.decide(promoted=True, digest="1" * 64)
    assert refused.value.code is Code.CANDIDATE_UNKNOWN


def test_a_candidate_is_evaluated_by_one_campaign_at_a_time(bench: Bench) -> None:
    """The process and an operator start at the same moment; afterwards the operator may ask again."""
    bench.submit()
    hour, now = timedelta(hours=1), bench.shop.clock()
    first = start(bench.opened, "evaluate", open_for=hour, ends_after=hour, now=now)
    with pytest.raises(Refused) as refused:
        start(bench.opened, "evaluate", open_for=hour, ends_after=hour, now=now)
    assert refused.value.code is Code.STATE_CHANGE
    bench.fleet.campaigns.conclude(first.number, "stopped", "Enough.", actor="operator", now=now)
    assert start(bench.opened, "evaluate", open_for=hour, ends_after=hour, now=now).number == 2


def test_a_candidate_that_is_overtaken_meanwhile_is_not_evaluated(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.submit()
    find, hour = Candidates.find, timedelta(hours=1)

    def late(candidates: Candidates, digest: str = "") -> Candidate | None:
        row = find(candidates, digest)
        monkeypatch.undo()
        bench.submit()
        return row

    monkeypatch.setattr(Candidates, "find", late)
    with pytest.raises(Refused) as refused:
        start(bench.opened, "evaluate", open_for=hour, ends_after=hour, now=bench.shop.clock())
    assert refused.value.code is Code.STATE_CHANGE
    assert bench.fleet.campaigns.all() == []


@pytest.mark.parametrize("named", ["candidate", "release"])
def test_a_list_that_is_gone_is_not_taken_for_the_newest(bench: Bench, named: str) -> None:
    bench.submit()
    bench.decide(promoted=True)
    assert base_of(bench.opened).digest == bench.shop.newest().digest
    with pytest.raises(Refused, match="is gone") as refused:
        base_of(bench.opened, **{named: "1" * 64})
    assert refused.value.code is Code.RELEASE_UNKNOWN


def test_a_yank_overtakes_the_open_candidate(bench: Bench) -> None:
    first = bench.submit()
    bench.decide(promoted=True)
    second = bench.submit()
    bench.shop.registry.bundles.move(first.digest, State.YANKED, actor="operator", now=bench.shop.clock())
    bench.work()
    assert bench.shop.listed() == []
    assert bench.listed() == [second.digest]


def test_a_candidate_that_has_waited_is_evaluated_by_itself_and_only_once(bench: Bench) -> None:
    now, minute = bench.shop.clock(), timedelta(minutes=1)
    due = replace(bench.opened, settings=bench.opened.settings.model_copy(update={"evaluate_after_minutes": 5}))
    assert start_due(due, now=now) is None  # there is no candidate
    bench.submit("ada")
    assert start_due(bench.opened, now=now + 60 * minute) is None  # only the operator starts campaigns
    assert start_due(due, now=now + 4 * minute) is None
    bench.submit("bob")
    row = start_due(due, now=now + 5 * minute)
    assert row is not None
    assert (row.kind, row.candidate) == ("evaluate", bench.open().digest)
    assert len(bench.listed()) == 2  # who came in between shares it
    assert start_due(due, now=now + 6 * minute) is None
    bench.fleet.campaigns.conclude(row.number, "finished", "Nothing is decided.", actor="rule", now=now + 7 * minute)
    assert start_due(due, now=now + 60 * minute) is None
