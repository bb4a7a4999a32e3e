"""The life of a name: what a contributor's own records say of it, and what the coordinator takes."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from client.submission import outbox
from coordinator.policy.lifecycle import State
from protocol.bundle import ADAPTER_WEIGHTS, Bundle
from protocol.documents import read_receipt
from protocol.errors import Code
from protocol.signing import Identity
from protocol.v1 import catalog_pb2
from protocol.wire.grpc_status import from_rpc_error
from tests import factories
from tests.coordinator.conftest import Clock, Served, resign
from tests.coordinator.contributor import DEADLINE_S, Contributor
from tests.coordinator.serving.conftest import refusal

ACCEPTED = (State.VERIFIED, State.QUARANTINED, State.ACCEPTED)
LIVES = {
    "refused": (State.REFUSED,), "waiting": (), "released": (*ACCEPTED, State.RELEASED),
    "yanked": (*ACCEPTED, State.RELEASED, State.YANKED),
}  # fmt: skip


class Name:
    """One contributor's bundles of one name: each trained afresh, made to follow what the outbox tells."""

    def __init__(self, served: Served, channel: grpc.Channel, folder: Path, identity: Identity) -> None:
        self.served, self.folder, self.identity = served, folder, identity
        self.ada = Contributor(channel, identity)
        self.ada.enrol(served.pool, "ada")
        self.records: list[outbox.Record] = []
        self.made = 0

    def make(self, records: list[outbox.Record]) -> Bundle:
        self.made += 1
        bundle = factories.make_bundle(self.folder / str(self.made), self.served.pool, self.identity, seed=self.made)
        return resign(bundle, self.identity, supersedes=outbox.predecessor(records, "expert"))

    def submit(self, life: str, *, heard: bool) -> Bundle:
        """Submit the next one, let it live, and write down what is heard of that, or nothing."""
        bundle = self.make(self.records)
        receipt = self.ada.submit(bundle)
        record = outbox.submitted("expert", read_receipt(receipt, self.served.pool), receipt)
        moves = self.served.registry.bundles.move
        if State.RELEASED in LIVES[life] and bundle.spec.supersedes:
            for row in self.served.registry.bundles.all(State.RELEASED):
                moves(row.digest, State.SUPERSEDED, actor="worker", now=self.served.clock())
        for step in LIVES[life]:
            moves(bundle.digest, step, actor="worker", now=self.served.clock())
        self.records.append(record)
        if heard:
            states = {row.digest: row.state for row in self.served.registry.bundles.all()}
            self.records = [each.model_copy(update={"state": states[each.digest]}) for each in self.records]
        return bundle


@pytest.fixture
def name(served: Served, tmp_path: Path, identity: Identity) -> Iterator[Name]:
    with served.running() as address, grpc.insecure_channel(address) as channel:
        yield Name(served, channel, tmp_path, identity)


@pytest.mark.parametrize("heard", [True, False], ids=["heard", "not-heard"])
@pytest.mark.parametrize(
    "lives",
    [["yanked"], ["refused"], ["refused", "refused", "yanked"], ["released", "refused"], ["released", "yanked"],
     ["released", "released"], ["waiting", "waiting"], ["yanked", "released", "refused", "refused"]],
    ids="-".join,
)  # fmt: skip
def test_whatever_became_of_the_last_one_the_next_is_taken(name: Name, lives: list[str], *, heard: bool) -> None:
    for life in lives:
        name.submit(life, heard=heard)
    last = name.submit("released", heard=heard)
    assert name.ada.status(last.digest).state == "released"


def test_a_yank_that_nobody_heard_of_leaves_the_name_to_the_next(name: Name, clock: Clock) -> None:
    first = name.submit("released", heard=True)
    name.submit("refused", heard=True)
    name.served.registry.bundles.move(first.digest, State.YANKED, actor="operator", now=clock())
    last = name.submit("released", heard=True)
    assert last.spec.supersedes == first.digest
    assert name.ada.status(last.digest).state == "released"


def test_what_was_superseded_elsewhere_is_not_superseded_again(name: Name) -> None:
    name.submit("released", heard=True)
    old_records = list(name.records)
    current = name.submit("released", heard=True)
    late = name.make(old_records)
    refused = refusal(name.ada.begin, late)
    assert refused.code is Code.SUPERSEDES_UNKNOWN
    assert current.digest[:16] in refused.message
    name.ada.submit(name.make(name.records))


def test_a_name_that_lives_is_not_begun_anew(name: Name, clock: Clock) -> None:
    current = name.submit("waiting", heard=True)
    refused = refusal(name.ada.begin, name.make([]))
    assert refused.code is Code.VERSION_REUSED
    assert current.digest[:16] in refused.message
    name.served.registry.bundles.move(current.digest, State.REFUSED, actor="operator", now=clock())
    name.ada.submit(name.make([]))


def test_what_was_overtaken_unseen_is_fetched_by_nobody(name: Name, clock: Clock) -> None:
    overtaken = name.submit("waiting", heard=True)
    name.served.registry.bundles.move(overtaken.digest, State.SUPERSEDED, actor="worker", now=clock())
    get = catalog_pb2.GetBundleRequest(digest=overtaken.digest)
    with pytest.raises(grpc.RpcError) as error:
        name.ada.catalog.GetBundle(get, timeout=DEADLINE_S)
    assert from_rpc_error(error.value, "the coordinator").code is Code.BUNDLE_UNKNOWN
    with pytest.raises(grpc.RpcError):
        name.ada.fetch(overtaken.manifest.files[ADAPTER_WEIGHTS].sha256)
