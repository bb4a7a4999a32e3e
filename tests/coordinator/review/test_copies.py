"""Weights that come again, through the whole worker: whoever brings them, in whatever bytes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from coordinator.admission.limited_process import CheckFailedError, ProcessLimits
from coordinator.policy.eligibility import judge
from coordinator.policy.lifecycle import State
from coordinator.registry.bundles import read_standing
from coordinator.registry.registry import Registry
from coordinator.registry.tables import BundleRow
from coordinator.review.copies import Copies
from protocol.bundle import ADAPTER_WEIGHTS, Bundle, pack
from protocol.documents import Pool
from protocol.errors import Code, Refused
from protocol.signing import Identity
from tests import factories
from tests.coordinator.conftest import Clock, make_pool, resign
from tests.coordinator.review.workshop import Workshop

ADA, BOB, EVE = (Identity.generate() for _ in range(3))
NAMES = {ADA.public.hex: "ada", BOB.public.hex: "bob", EVE.public.hex: "eve"}
Tensors = dict[str, torch.Tensor]


class Door(Workshop):
    """A worker that looks for copies, and the door in front of it."""

    def __init__(self, folder: Path, *rest: Any) -> None:
        super().__init__(folder, *rest)
        self.folder = folder
        (folder / "pool.json").write_bytes(self.pool.envelope)
        self.copies = Copies(self.pool, folder / "pool.json", self.registry, self.cache, b"s" * 32, ProcessLimits())

    def check(self, bundle: Bundle) -> Refused | None:  # type: ignore[override]
        super().check(bundle)
        return self.copies.check(bundle)

    def make(self, who: Identity, seed: int, change: Callable[[Tensors], Any] = len, **facts: Any) -> Bundle:
        folder = self.folder / f"b{len(list(self.folder.iterdir()))}"
        bundle = factories.make_bundle(folder, self.pool, who, name=facts.pop("name", "x"), seed=seed)
        tensors = load_file(folder / ADAPTER_WEIGHTS)
        change(tensors)
        save_file(tensors, folder / ADAPTER_WEIGHTS, {"format": "pt"})
        return resign(pack(folder, bundle.spec, who), who, **facts)

    def submit(self, bundle: Bundle) -> BundleRow:
        """Bring a bundle, and let the worker work."""
        with self.registry.reading() as session:
            standing = read_standing(session, bundle.manifest)
        if standing.contributor is not None:
            judge(bundle.manifest, self.pool, standing)
        self.receive(bundle, NAMES.get(bundle.spec.contributor, bundle.spec.contributor[:8]))
        self.worker.step()
        return self.row(bundle)

    def row(self, bundle: Bundle) -> BundleRow:
        row = self.registry.bundles.find(bundle.digest)
        assert row is not None
        return row

    def yank(self, bundle: Bundle, *, pause: bool = False) -> None:
        self.registry.bundles.move(bundle.digest, State.YANKED, actor="operator", now=self.clock(), pause=pause)
        self.worker.step()


@pytest.fixture
def door(tmp_path: Path, pool: Pool, coordinator_identity: Identity, registry: Registry, clock: Clock) -> Door:
    return Door(tmp_path, pool, coordinator_identity, registry, clock)


def gauge(tensors: Tensors) -> None:
    for name in [name for name in tensors if "lora_A" in name]:
        change = torch.eye(len(tensors[name])) * 2
        change[0, 1] = 0.5
        tensors[name] = change @ tensors[name]
        b = name.replace("lora_A", "lora_B")
        tensors[b] = tensors[b] @ torch.linalg.inv(change)


def slightly(tensors: Tensors) -> None:
    for name in tensors:
        tensors[name] = tensors[name] * 1.0001


def turned_round(tensors: Tensors) -> None:
    for name in [name for name in tensors if "lora_B" in name]:
        tensors[name] = -tensors[name]


def noisy(share: float, seed: int = 5) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        draw = torch.Generator().manual_seed(seed)
        for name, tensor in tensors.items():
            tensors[name] = tensor + share * tensor.std() * torch.randn(tensor.shape, generator=draw)

    return change


def verdict(row: BundleRow) -> tuple[str, str]:
    return row.state, row.code


def reorder(bundle: Bundle, who: Identity) -> Bundle:
    """The same tensors with spaces in the header: other bytes, and another digest."""
    path = bundle.folder / ADAPTER_WEIGHTS
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + length] + b" " * 8
    path.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + length :])
    return pack(bundle.folder, bundle.spec, who)


@pytest.mark.parametrize("change", [slightly, gauge, noisy(0.01), turned_round])
def test_what_was_yanked_stays_out_whoever_brings_it(door: Door, change: Callable[[Tensors], None]) -> None:
    bad = door.make(ADA, 1)
    assert verdict(door.submit(bad)) == ("released", "")
    door.yank(bad)
    for who, name in ((ADA, "other"), (BOB, "x")):
        row = door.submit(door.make(who, 1, change, name=name))
        assert verdict(row) == ("refused", "COPY_OF")
        assert "number 1 (x by ada, which is yanked): mean cosine of updates 1.00" in row.message
    assert verdict(door.submit(door.make(BOB, 2, name="own"))) == ("released", "")


def test_the_very_bytes_of_what_was_yanked_come_no_further_than_the_door(door: Door) -> None:
    bad = door.make(ADA, 1)
    door.submit(bad)
    door.submit(door.make(BOB, 2))
    door.yank(bad)
    for who in (ADA, BOB):
        with pytest.raises(Refused) as refused:
            door.submit(door.make(who, 1, name="again"))
        assert refused.value.code is Code.DUPLICATE_OF


def test_other_spaces_in_a_header_make_no_other_expert(door: Door) -> None:
    door.submit(door.make(ADA, 1))
    again = reorder(door.make(BOB, 1), BOB)
    assert verdict(door.submit(again)) == ("refused", "COPY_OF")


def test_what_was_refused_stays_out(door: Door) -> None:
    bad = door.make(ADA, 1)
    door.model.breaks_on = {bad.digest}
    assert verdict(door.submit(bad)) == ("refused", "PROBE_FAILED")
    assert verdict(door.submit(door.make(ADA, 1, gauge))) == ("refused", "COPY_OF")
    with pytest.raises(Refused) as refused:
        door.submit(door.make(ADA, 1, license="mit"))
    assert refused.value.code is Code.DUPLICATE_OF


def test_weights_that_were_refused_for_their_gates_may_come_with_others(door: Door) -> None:
    first, second = door.make(ADA, 1), door.make(ADA, 1, license="mit")
    door.verdicts[first.digest] = Refused(Code.CONSTANT_GATE, "Constant.")
    assert verdict(door.submit(first)) == ("refused", "CONSTANT_GATE")
    assert verdict(door.submit(second)) == ("released", "")


def test_who_supersedes_his_own_may_and_who_copies_the_old_one_may_not(door: Door) -> None:
    old = door.make(ADA, 1)
    door.submit(old)
    new = door.make(ADA, 1, noisy(0.05), supersedes=old.digest)
    assert verdict(door.submit(new)) == ("released", "")
    assert door.row(old).state == "superseded"
    for change in (gauge, noisy(0.05, 7)):
        assert verdict(door.submit(door.make(BOB, 1, change))) == ("refused", "COPY_OF")
    back = door.make(ADA, 1, supersedes=new.digest, license="mit")
    assert verdict(door.submit(back)) == ("released", ""), "a thief's copies keep nobody's own out"


def test_one_expert_has_one_place(door: Door) -> None:
    door.submit(door.make(ADA, 1))
    row = door.submit(door.make(ADA, 1, gauge, name="twice"))
    assert verdict(row) == ("refused", "QUOTA")
    moved = door.make(ADA, 1, gauge, supersedes=door.registry.bundles.all()[0].digest)
    assert verdict(door.submit(moved)) == ("released", "")


def test_what_is_near_waits_for_a_person_in_an_open_pool_too(door: Door) -> None:
    door.submit(door.make(ADA, 1))
    near = door.make(BOB, 1, noisy(0.5))
    row = door.submit(near)
    assert verdict(row) == ("quarantined", "NEAR_COPY")
    assert not door.worker.step()
    door.registry.bundles.move(near.digest, State.ACCEPTED, actor="operator", now=door.clock())
    door.worker.step()
    assert verdict(door.row(near)) == ("released", "")


def test_experts_near_to_each_other_count_as_one_contributors(
    tmp_path: Path, coordinator_identity: Identity, registry: Registry, clock: Clock
) -> None:
    pool = make_pool(coordinator_identity, max_experts_per_contributor=3)
    door = Door(tmp_path, pool, coordinator_identity, registry, clock)
    for number in range(3):
        row = door.submit(door.make(Identity.generate(), 1, noisy(0.5, number) if number else len))
        assert row.code == ("NEAR_COPY" if number else "")
    assert verdict(door.submit(door.make(Identity.generate(), 1, noisy(0.5, 99)))) == ("refused", "QUOTA")


def test_a_sketch_outlives_the_bytes(door: Door) -> None:
    bad = door.make(ADA, 1)
    door.submit(bad)
    door.yank(bad)
    door.store.remove(bad.manifest.files[ADAPTER_WEIGHTS].sha256)
    assert verdict(door.submit(door.make(BOB, 1, gauge))) == ("refused", "COPY_OF")


def test_what_an_older_version_let_in_is_sketched_first(door: Door) -> None:
    old = door.make(ADA, 1)
    door.receive(old)
    steps = State.VERIFIED, State.QUARANTINED, State.ACCEPTED
    door.registry.bundles.move(old.digest, *steps, actor="worker", now=door.clock())
    assert verdict(door.submit(door.make(BOB, 1, gauge))) == ("refused", "COPY_OF")
    assert door.row(old).state == "released"


def test_an_operator_may_let_it_come_again(door: Door) -> None:
    bad = door.make(ADA, 1)
    door.submit(bad)
    door.yank(bad)
    again = door.submit(door.make(ADA, 1, gauge))
    for row in (door.row(bad), again):
        door.registry.sketches.lift(row.digest, now=door.clock())
    assert verdict(door.submit(door.make(ADA, 1, license="mit"))) == ("released", "")
    assert verdict(door.submit(door.make(BOB, 1, gauge))) == ("refused", "COPY_OF"), "by that one"


def test_a_yank_for_cause_lets_the_key_wait_and_what_it_brought(door: Door) -> None:
    bad = door.make(ADA, 1)
    door.submit(bad)
    waiting = door.receive(door.make(ADA, 2, name="waiting"))
    steps = State.VERIFIED, State.QUARANTINED, State.ACCEPTED
    door.registry.bundles.move(waiting.digest, *steps, actor="worker", now=door.clock())
    door.yank(bad, pause=True)
    door.worker.step()
    assert door.row(waiting).state == "accepted"
    with pytest.raises(Refused) as refused:
        door.submit(door.make(ADA, 3, name="more"))
    assert refused.value.code is Code.KEY_PENDING
    with pytest.raises(Refused) as refused:
        door.registry.bundles.move(waiting.digest, State.RELEASED, actor="worker", now=door.clock())
    assert refused.value.code is Code.KEY_PENDING
    door.registry.contributors.set_state("ada", "active", now=door.clock())
    door.worker.step()
    assert door.row(waiting).state == "released"
    assert verdict(door.submit(door.make(ADA, 3, name="more"))) == ("released", "")


def test_a_comparison_that_fails_leaves_the_sketches_word(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> float:
        raise CheckFailedError("was killed")

    door.submit(door.make(ADA, 1))
    monkeypatch.setattr("coordinator.admission.limited_process.compare", fail)
    assert verdict(door.submit(door.make(EVE, 1, gauge))) == ("refused", "COPY_OF")
