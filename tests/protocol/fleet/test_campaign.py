import hashlib
from datetime import UTC, datetime, timedelta

import pytest
from flwr.common.config import get_fab_config, get_metadata_from_config, validate_config
from pydantic import ConfigDict, ValidationError

from protocol.documents import Pool, timestamp
from protocol.errors import Code, Refused
from protocol.fleet.campaign import (
    APP_DIGEST,
    Decision,
    Order,
    app_bundle,
    read_decision,
    read_order,
    sign_decision,
    sign_order,
)
from protocol.release import read_candidate, read_release, sign_candidate, sign_release
from protocol.signing import Identity
from tests.protocol import samples

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.fixture
def operator() -> Identity:
    return samples.COORDINATOR


@pytest.fixture
def pool() -> Pool:
    return samples.pool()


def order(of: Pool, **changes: object) -> Order:
    facts = {
        "pool": of.digest, "number": 1, "kind": "train", "created": timestamp(NOW),
        "expires": timestamp(NOW + timedelta(hours=1)),
    }  # fmt: skip
    return Order.model_validate({**facts, **changes})


def test_an_order_is_read_as_it_was_signed(pool: Pool, operator: Identity) -> None:
    assert read_order(sign_order(order(pool), operator), pool, now=NOW) == order(pool)


@pytest.mark.parametrize("fault", ["stranger", "pool", "garbage", "decision"])
def test_a_node_obeys_the_pool_and_nobody_else(pool: Pool, operator: Identity, fault: str) -> None:
    decision = Decision(
        pool=pool.digest, candidate="1" * 64, promoted=True, by="rule", reason="Good.", created=timestamp(NOW)
    )
    envelopes: dict[str, bytes] = {
        "stranger": sign_order(order(pool), Identity.generate()),
        "pool": sign_order(order(pool, pool="1" * 64), operator),
        "garbage": b"{}",
        "decision": sign_decision(decision, operator),
    }
    with pytest.raises(Refused) as refused:
        read_order(envelopes[fault], pool, now=NOW)
    assert refused.value.code is Code.ORDER_INVALID


TASK = {
    "strategy": "fedavg", "rounds": 3, "number": 1, "round_minutes": 5.0, "steps": 10, "learning_rate": 0.1,
    "start": None, "numbers": 6,
}  # fmt: skip
PRIVACY = {"clipping_norm": 1.0, "noise_multiplier": 1.0, "max_epsilon": 8.0, "delta": 1e-5}


@pytest.mark.parametrize(
    ("named", "task"), [({"candidate": "1" * 64}, {}), ({"release": "1" * 64}, {"number": 3, "privacy": PRIVACY})]
)
def test_a_round_is_read_as_it_was_signed(
    pool: Pool, operator: Identity, named: dict[str, str], task: dict[str, object]
) -> None:
    one = order(pool, kind="calibrate", calibrating={**TASK, **task}, **named)
    assert read_order(sign_order(one, operator), pool, now=NOW) == one


@pytest.mark.parametrize(
    "task",
    [{"number": 4}, {"number": 0}, {"strategy": "krum", "privacy": PRIVACY}, {"numbers": 1 << 20}, {"steps": 0},
     {"learning_rate": 0.0}, {"privacy": {**PRIVACY, "delta": 1.0}}, {"privacy": {**PRIVACY, "noise_multiplier": 0.0}}],
)  # fmt: skip
def test_a_round_has_bounds(pool: Pool, task: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        order(pool, kind="calibrate", release="1" * 64, calibrating={**TASK, **task})


@pytest.mark.parametrize("left_out", TASK)
def test_a_round_says_all_that_is_asked(pool: Pool, left_out: str) -> None:
    task = {name: value for name, value in TASK.items() if name != left_out}
    with pytest.raises(ValidationError, match=left_out):
        order(pool, kind="calibrate", release="1" * 64, calibrating=task)


@pytest.mark.parametrize(
    "changes",
    [{"kind": "evaluate"}, {"candidate": "1" * 64}, {"kind": "leak"}, {"kind": "calibrate", "release": "1" * 64},
     {"kind": "calibrate", "calibrating": TASK}, {"release": "1" * 64}, {"calibrating": TASK},
     {"kind": "evaluate", "candidate": "1" * 64, "calibrating": TASK},
     {"kind": "calibrate", "candidate": "1" * 64, "release": "1" * 64, "calibrating": TASK}],
)  # fmt: skip
def test_an_order_is_whole(pool: Pool, changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        order(pool, **changes)


def test_an_order_that_is_over_tells_of_clocks(pool: Pool, operator: Identity) -> None:
    over = sign_order(order(pool, expires=timestamp(NOW - timedelta(seconds=1))), operator)
    with pytest.raises(Refused, match="clock says 2026-11-22T12:00:00Z") as refused:
        read_order(over, pool, now=NOW)
    assert refused.value.code is Code.CLOCKS_APART


@pytest.mark.parametrize("fields", [{"version": 2}, {"kind": "dream"}, {"more": 1}])
def test_an_order_of_another_version_tells_what_to_install(
    pool: Pool, operator: Identity, fields: dict[str, object]
) -> None:
    class Later(Order):
        model_config = ConfigDict(extra="allow", strict=False)

    later = Later.model_construct(**{**order(pool).model_dump(), **fields})
    with pytest.raises(Refused, match="does not understand the pool's order") as refused:
        read_order(sign_order(later, operator), pool, now=NOW)
    assert refused.value.code is Code.VERSION_UNKNOWN
    assert "version" in refused.value.hint


def test_the_app_bundle_is_the_same_everywhere_and_flower_takes_it() -> None:
    assert hashlib.sha256(app_bundle()).hexdigest() == APP_DIGEST
    assert APP_DIGEST == "519fbcbe0b264de9b4d67d657f88e4799b5b35388c5ad83b3d3b1f26fb9a8f9a"
    assert get_metadata_from_config(get_fab_config(app_bundle())) == ("greylag/campaign", "1.0.0")
    assert validate_config(get_fab_config(app_bundle()), check_module=False)[0]


def test_a_candidate_is_never_taken_for_a_release(pool: Pool, operator: Identity) -> None:
    spec = samples.release(pool=pool.digest)
    candidate = sign_candidate(spec, operator)
    assert read_candidate(candidate.envelope, pool).spec == spec
    for envelope, read in ((candidate.envelope, read_release), (sign_release(spec, operator).envelope, read_candidate)):
        with pytest.raises(Refused) as refused:
            read(envelope, pool)
        assert refused.value.code is Code.UNSUPPORTED_STATEMENT


def test_a_decision_is_signed_for_its_pool(pool: Pool, operator: Identity) -> None:
    decision = Decision(
        pool=pool.digest, candidate="1" * 64, promoted=False, by="operator", reason="No.", created=timestamp(NOW)
    )
    assert read_decision(sign_decision(decision, operator), pool) == decision
    with pytest.raises(Refused) as refused:
        read_decision(sign_decision(decision, Identity.generate()), pool)
    assert refused.value.code is Code.BAD_SIGNATURE
    elsewhere = decision.model_copy(update={"pool": "1" * 64})
    with pytest.raises(Refused) as refused:
        read_decision(sign_decision(elsewhere, operator), pool)
    assert refused.value.code is Code.WRONG_POOL


def test_every_round_of_a_campaign_is_the_same_order_to_a_contributor(pool: Pool) -> None:
    def round_of(**task: object) -> str:
        return order(pool, kind="calibrate", release="1" * 64, calibrating={**TASK, **task}).digest

    assert round_of() == round_of(number=3, start={"campaign": 1, "sha256": "2" * 64, "size": 8})
    assert round_of() != round_of(steps=11), "what is asked has changed"
    assert order(pool).digest != order(pool, number=2).digest
