"""Who is refused, who waits for a person, and who is blamed when a pool fails; with a model that does as it is told."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from coordinator.policy.lifecycle import State
from coordinator.registry.registry import Registry
from coordinator.review.worker import TRIES
from protocol.bundle import Bundle
from protocol.documents import Pool
from protocol.errors import Code
from protocol.signing import Identity
from tests.coordinator.conftest import Clock, make_pool, resign
from tests.coordinator.review.workshop import ObedientModel, Workshop, make


@pytest.fixture
def shop(tmp_path: Path, pool: Pool, coordinator_identity: Identity, registry: Registry, clock: Clock) -> Workshop:
    return Workshop(tmp_path, pool, coordinator_identity, registry, clock)


@pytest.fixture
def reviewed(tmp_path: Path, coordinator_identity: Identity, registry: Registry, clock: Clock) -> Workshop:
    pool = make_pool(coordinator_identity, admission="reviewed")
    return Workshop(tmp_path, pool, coordinator_identity, registry, clock)


@pytest.fixture
def submit(tmp_path: Path) -> Callable[..., Bundle]:
    """Hand in bundles of contributors, one name each."""
    identities: dict[str, Identity] = {}
    number = iter(range(1000))

    def one(shop: Workshop, contributor: str = "ada", **facts: object) -> Bundle:
        identity = identities.setdefault(contributor, Identity.generate())
        made = make(shop, tmp_path / "made", next(number), identity)
        return shop.receive(resign(made, identity, **facts) if facts else made, contributor)

    return one


def verdict(shop: Workshop, bundle: Bundle) -> tuple[str, str]:
    row = shop.registry.bundles.find(bundle.digest)
    assert row is not None
    return row.state, row.code


def accept(shop: Workshop, *bundles: Bundle) -> None:
    for bundle in bundles:
        shop.registry.bundles.move(bundle.digest, State.ACCEPTED, actor="operator", now=shop.clock())


def test_over_the_cap_is_refused_and_never_answers(shop: Workshop, submit: Callable[..., Bundle]) -> None:
    huge, good = submit(shop), submit(shop)
    shop.model.norm[huge.digest] = 1e41
    shop.worker.step()
    assert verdict(shop, huge) == (State.REFUSED, Code.NORM_LIMIT.name)
    assert shop.listed() == shop.model.held == [good.digest]
    assert shop.model.probes == 2 + 2 + 2 + 2, "base, the good one alone, the pool before it and with it"


def test_far_larger_than_the_others_waits_for_an_operator(shop: Workshop, submit: Callable[..., Bundle]) -> None:
    others = [submit(shop, name) for name in ("bob", "eve", "sam")]
    large = submit(shop)
    shop.model.norm[large.digest] = 3.0
    shop.worker.step()
    assert verdict(shop, large) == (State.QUARANTINED, Code.NORM_UNUSUAL.name)
    assert not shop.worker.step(), "nothing is left to do"
    shop.worker = shop.start()
    assert not shop.worker.step(), "nor after a restart"
    assert [event.code for event in shop.registry.events(large.digest)].count(Code.NORM_UNUSUAL.name) == 1
    accept(shop, large)
    shop.worker.step()
    assert shop.listed() == [*(bundle.digest for bundle in others), large.digest]
    assert verdict(shop, large) == (State.RELEASED, "")


def test_what_an_operator_accepts_unseen_is_examined_all_the_same(
    reviewed: Workshop, submit: Callable[..., Bundle]
) -> None:
    huge = submit(reviewed)
    reviewed.registry.bundles.move(
        huge.digest, State.VERIFIED, State.QUARANTINED, State.ACCEPTED, actor="operator", now=reviewed.clock()
    )
    reviewed.model.norm[huge.digest] = 65.0
    reviewed.worker.step()
    assert verdict(reviewed, huge) == (State.REFUSED, Code.NORM_LIMIT.name)


@pytest.mark.parametrize(("rise", "state"), [(0.9, State.RELEASED), (1.1, State.REFUSED), (4.5, State.REFUSED)])
def test_a_loss_that_rises_on_the_operators_rows(
    shop: Workshop, submit: Callable[..., Bundle], rise: float, state: State
) -> None:
    good, new = submit(shop, "bob"), submit(shop)
    shop.model.harm[new.digest] = rise
    shop.worker.step()
    assert verdict(shop, new) == (state, "" if state == State.RELEASED else Code.HARMFUL.name)
    assert good.digest in shop.listed()


def test_what_breaks_in_company_is_to_blame_if_the_pool_holds_without_it(
    shop: Workshop, submit: Callable[..., Bundle]
) -> None:
    good, bad, later = submit(shop, "bob"), submit(shop), submit(shop, "eve")
    shop.model.breaks_beside = {bad.digest}
    shop.worker.step()
    assert verdict(shop, bad) == (State.REFUSED, Code.PROBE_FAILED.name)
    assert shop.listed() == [good.digest, later.digest]


def old_pool(shop: Workshop, submit: Callable[..., Bundle], *contributors: str) -> list[Bundle]:
    """Release experts that nobody examined, as an earlier version did."""
    bundles = [submit(shop, name) for name in contributors]
    if shop.pool.spec.policy.admission == "reviewed":
        shop.worker.step()
        accept(shop, *bundles)
    shop.worker.step()
    assert shop.listed() == [bundle.digest for bundle in bundles]
    for path in (shop.folder / "figures").glob("*/*"):
        path.unlink()
    shop.model = ObedientModel()
    shop.worker = shop.start()
    return bundles


@pytest.mark.parametrize("fault", ["norm", "alone", "rows"])
def test_a_destroyer_of_old_is_yanked_and_the_newcomer_is_not_blamed(
    shop: Workshop, submit: Callable[..., Bundle], fault: str
) -> None:
    good, destroyer = old_pool(shop, submit, "bob", "mallory")
    if fault == "norm":
        shop.model.norm[destroyer.digest] = 1e41
    elif fault == "alone":
        shop.model.breaks_on = {destroyer.digest}
    else:
        shop.model.harm[destroyer.digest] = 5.0
    newcomer = submit(shop)
    while shop.worker.step():
        pass
    assert shop.state(destroyer) == State.YANKED
    assert shop.listed() == [good.digest, newcomer.digest]
    step = shop.registry.events(destroyer.digest)[-1]
    assert (step.actor, step.step) == ("worker", State.YANKED)


@pytest.mark.parametrize("fault", ["breaks_beside", "harm"])
def test_one_that_fails_only_in_company_is_found_by_leaving_it_out(
    shop: Workshop, submit: Callable[..., Bundle], fault: str
) -> None:
    first, destroyer, third = old_pool(shop, submit, "bob", "mallory", "eve")
    if fault == "harm":
        shop.model.harm[destroyer.digest] = 3.0  # within what an expert alone may cost
    else:
        shop.model.breaks_beside = {destroyer.digest}
    newcomer = submit(shop)
    while shop.worker.step():
        pass
    assert shop.state(destroyer) == State.YANKED
    assert shop.listed() == [first.digest, third.digest, newcomer.digest]


def test_in_a_reviewed_pool_an_operator_takes_out_and_newcomers_pass_meanwhile(
    reviewed: Workshop, submit: Callable[..., Bundle]
) -> None:
    shop = reviewed
    good, destroyer = old_pool(shop, submit, "bob", "mallory")
    shop.model.breaks_on = {destroyer.digest}
    newcomer = submit(shop)
    while shop.worker.step():
        pass
    accept(shop, newcomer)
    while shop.worker.step():
        pass
    assert verdict(shop, destroyer) == (State.RELEASED, Code.PROBE_FAILED.name)
    assert shop.listed() == [good.digest, destroyer.digest, newcomer.digest]
    shop.registry.bundles.move(destroyer.digest, State.YANKED, actor="operator", now=shop.clock())
    shop.worker.step()
    assert shop.listed() == [good.digest, newcomer.digest]


def test_a_pool_that_costs_much_without_anybodys_fault_is_left_alone(
    shop: Workshop, submit: Callable[..., Bundle]
) -> None:
    bundles = old_pool(shop, submit, "bob", "eve", "sam")
    shop.model.harm = dict.fromkeys((bundle.digest for bundle in bundles), 0.8)
    for _ in range(3):
        bundles.append(submit(shop))
        while shop.worker.step():
            pass
    assert shop.listed() == [bundle.digest for bundle in bundles]


def test_a_restart_goes_on_with_what_was_measured(shop: Workshop, submit: Callable[..., Bundle]) -> None:
    first, second = submit(shop), submit(shop, "bob")
    probe, seen = shop.model.probe, []

    def killed(*given: object, **routed: object) -> object:
        seen.append(given)
        if shop.state(first) == State.ACCEPTED:
            raise KeyboardInterrupt
        return probe(*given, **routed)  # type: ignore[arg-type]

    shop.model.probe = killed  # type: ignore[method-assign, assignment]
    with pytest.raises(KeyboardInterrupt):
        shop.worker.step()
    assert shop.state(first) == State.ACCEPTED
    shop.model = ObedientModel()
    shop.worker = shop.start()
    shop.worker.step()
    assert shop.listed() == [first.digest, second.digest]
    assert shop.model.examined == [second.digest]


def test_yanked_and_handed_in_again_it_is_measured_again(shop: Workshop, submit: Callable[..., Bundle]) -> None:
    good, destroyer = old_pool(shop, submit, "bob", "mallory")
    shop.model.norm[destroyer.digest] = 1e41
    again = submit(shop, "mallory", name="another")
    shop.model.norm[again.digest] = 1e41  # what a change of gauge leaves as it is
    while shop.worker.step():
        pass
    assert shop.listed() == [good.digest]
    assert verdict(shop, again) == (State.REFUSED, Code.NORM_LIMIT.name)


def test_an_endless_review_comes_to_an_end(shop: Workshop, submit: Callable[..., Bundle]) -> None:
    slow, good = submit(shop), submit(shop, "bob")
    norms = shop.model.norms

    def dawdle(digest: str, tick: Callable[[], None]) -> dict[str, float]:
        while digest == slow.digest:
            time.sleep(0.01)
            tick()
        return norms(digest, tick)

    shop.model.norms = dawdle  # type: ignore[method-assign]
    shop.worker._reviewer = shop.reviewer(seconds=0.05)
    for _ in range(TRIES):
        assert shop.state(slow) != State.REFUSED
        shop.worker.step()
        shop.clock.forward(hours=1)
    assert verdict(shop, slow) == (State.REFUSED, Code.VALIDATOR_FAILED.name)
    assert shop.listed() == [good.digest]


def test_contributors_take_turns(shop: Workshop, submit: Callable[..., Bundle]) -> None:
    flood = [submit(shop, "mallory") for _ in range(6)]
    honest = [submit(shop, "bob")]
    turns: list[str] = []
    check = shop.check

    def look(bundle: Bundle) -> None:
        turns.append(bundle.digest)
        if len(turns) == 3:
            honest.append(submit(shop, "eve"))
        check(bundle)

    shop.worker._check = look
    while shop.worker.step():
        pass
    assert turns[:5] == [*(b.digest for b in (flood[0], honest[0], flood[1], honest[1], flood[2]))]
    assert len(shop.listed()) == 8


def test_a_yank_waits_for_one_review(shop: Workshop, submit: Callable[..., Bundle]) -> None:
    old = submit(shop, "bob")
    shop.worker.step()
    flood = [submit(shop, "mallory") for _ in range(4)]
    check = shop.check

    def yank_meanwhile(bundle: Bundle) -> None:
        if bundle.digest == flood[1].digest:
            shop.registry.bundles.move(old.digest, State.YANKED, actor="operator", now=shop.clock())
        if bundle.digest == flood[2].digest:
            assert old.digest not in shop.listed()
        check(bundle)

    shop.worker._check = yank_meanwhile
    shop.worker.step()
    assert shop.listed() == [bundle.digest for bundle in flood]


def test_of_what_is_out_for_good_nothing_is_kept(shop: Workshop, submit: Callable[..., Bundle]) -> None:
    good, huge, old = submit(shop, "bob"), submit(shop), submit(shop, "eve")
    shop.model.norm[huge.digest] = 1e41
    shop.worker.step()
    shop.registry.bundles.move(old.digest, State.YANKED, actor="operator", now=shop.clock())
    shop.worker.step()
    assert {path.name for path in (shop.folder / "figures").glob("*/*")} == {"base", good.digest}
