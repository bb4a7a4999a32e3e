from itertools import pairwise

import pytest

from coordinator.policy.lifecycle import State, check_step, is_public
from coordinator.workspace.metrics import Metrics
from protocol.compatibility import HOLDING
from protocol.errors import Code, Refused


def test_the_life_that_the_plan_draws() -> None:
    road = [State.RECEIVED, State.VERIFIED, State.QUARANTINED, State.ACCEPTED, State.RELEASED, State.YANKED]
    for before, after in pairwise(road):
        check_step("d", before, after)


@pytest.mark.parametrize("last", [State.REFUSED, State.YANKED])
@pytest.mark.parametrize("after", list(State))
def test_nothing_comes_back(last: State, after: State) -> None:
    with pytest.raises(Refused) as refused:
        check_step("d" * 64, last, after)
    assert refused.value.code is Code.STATE_CHANGE


def test_no_step_skips_the_checks() -> None:
    for before in (State.RECEIVED, State.VERIFIED, State.QUARANTINED):
        with pytest.raises(Refused):
            check_step("d" * 64, before, State.RELEASED)


def test_what_is_not_let_in_is_not_public() -> None:
    hidden = (State.RECEIVED, State.VERIFIED, State.QUARANTINED, State.REFUSED, State.YANKED)
    assert not any(is_public(state, release) for state in hidden for release in (0, 1))
    assert set(State) - {State.REFUSED, State.SUPERSEDED, State.YANKED} == HOLDING, "these hold their names"


def test_every_code_and_state_has_its_counter_from_the_start() -> None:
    metrics = Metrics()
    collected = metrics._registry
    for code in Code:
        assert collected.get_sample_value("greylag_refusals_total", {"code": code.name}) == 0
        metrics.refused(code)
        assert collected.get_sample_value("greylag_refusals_total", {"code": code.name}) == 1
    for state in State:
        assert collected.get_sample_value("greylag_bundle_steps_total", {"state": state}) == 0
        metrics.stepped(state)
        assert collected.get_sample_value("greylag_bundle_steps_total", {"state": state}) == 1
