from datetime import UTC, datetime
from pathlib import Path

import pytest

from coordinator.fleet.records.fleet import Fleet
from coordinator.registry.registry import Registry
from protocol.documents import Pool, read_enrolment
from protocol.errors import Code, Refused
from protocol.fleet.node_key import NodeKey, bind, read_binding
from protocol.signing import Identity
from tests.coordinator.contributor import NOW as NOW_TEXT
from tests.coordinator.contributor import enrolment

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.fixture
def fleet(registry: Registry) -> Fleet:
    return Fleet(registry)


def join(registry: Registry, pool: Pool, name: str, state: str = "active") -> Identity:
    identity = Identity.generate()
    envelope = enrolment(pool.digest, identity, name)
    registry.contributors.enrol(read_enrolment(envelope), envelope, state=state, now=NOW)
    return identity


def tie(fleet: Fleet, pool: Pool, identity: Identity, node: NodeKey) -> None:
    envelope = bind(pool.digest, identity, node, NOW_TEXT)
    fleet.nodes.bind(read_binding(envelope), envelope, now=NOW)


def test_a_node_is_bound_once_and_a_new_one_takes_its_place(fleet: Fleet, registry: Registry, pool: Pool) -> None:
    ada, first, second = join(registry, pool, "ada"), NodeKey.generate(), NodeKey.generate()
    tie(fleet, pool, ada, first)
    tie(fleet, pool, ada, first)
    assert [(node.state, name) for node, name in fleet.nodes.all()] == [("active", "ada")]
    tie(fleet, pool, ada, second)
    assert {node.public: node.state for node, _ in fleet.nodes.all()} == {
        first.public: "revoked",
        second.public: "active",
    }
    with pytest.raises(Refused) as refused:
        tie(fleet, pool, ada, first)
    assert refused.value.code is Code.KEY_REVOKED


def test_a_node_belongs_to_one_contributor(fleet: Fleet, registry: Registry, pool: Pool) -> None:
    node = NodeKey.generate()
    tie(fleet, pool, join(registry, pool, "ada"), node)
    with pytest.raises(Refused) as refused:
        tie(fleet, pool, join(registry, pool, "bob"), node)
    assert refused.value.code is Code.NODE_TAKEN


@pytest.mark.parametrize(
    ("state", "code"), [("pending", Code.KEY_PENDING), ("revoked", Code.KEY_REVOKED), (None, Code.KEY_UNKNOWN)]
)
def test_only_active_contributors_bind_nodes(
    fleet: Fleet, registry: Registry, pool: Pool, state: str | None, code: Code
) -> None:
    identity = join(registry, pool, "ada", state) if state else Identity.generate()
    with pytest.raises(Refused) as refused:
        tie(fleet, pool, identity, NodeKey.generate())
    assert refused.value.code is code
    assert fleet.nodes.all() == []


def test_both_keys_are_revoked_together_and_for_ever(fleet: Fleet, registry: Registry, pool: Pool) -> None:
    ada, node = join(registry, pool, "ada"), NodeKey.generate()
    tie(fleet, pool, ada, node)
    registry.contributors.set_state("ada", "revoked", now=NOW)
    assert [each.state for each, _ in fleet.nodes.all()] == ["revoked"]
    registry.contributors.set_state("ada", "active", now=NOW)
    assert [each.state for each, _ in fleet.nodes.all()] == ["revoked"]
    assert [event.step for event in registry.events() if event.kind == "node"] == ["active", "revoked"]


def test_a_campaign_that_does_not_exist(fleet: Fleet, tmp_path: Path) -> None:
    for number in (0, 7):
        with pytest.raises(Refused) as refused:
            fleet.campaigns.find(number)
        assert refused.value.code is Code.CAMPAIGN_UNKNOWN
