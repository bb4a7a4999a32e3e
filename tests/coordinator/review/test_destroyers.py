"""Destroyers of a pool over the demo's base, and the newcomers that were once refused in their stead."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from coordinator.policy.lifecycle import State
from coordinator.policy.review_rule import Figures
from coordinator.registry.registry import Registry
from coordinator.review.kept_figures import KeptFigures
from coordinator.review.probe import Reviewer
from coordinator.workspace.material import ROWS, Material, parse_rows
from deploy.demo import world
from deploy.demo.world import WORDS
from protocol.bundle import ADAPTER_WEIGHTS, GATES, Bundle, pack
from protocol.errors import Code
from protocol.signing import Identity
from router.model.routed_model import RoutedModel
from router.query.request import RoutingChoice
from tests import factories
from tests.attacks.weights import HONEST_STD, mean_directions, public_inputs
from tests.coordinator.conftest import Clock
from tests.coordinator.review.workshop import Workshop

ENCODER = "encoder.block.1.layer.1.DenseReluDense.wo"


@pytest.fixture(scope="session")
def means() -> dict[str, torch.Tensor]:
    """The mean input of each module over public requests: the direction that takes most tokens."""
    return dict(mean_directions(public_inputs()))


@pytest.fixture
def shop(tmp_path: Path, coordinator_identity: Identity, registry: Registry, clock: Clock) -> Workshop:
    pool = factories.make_pool(WORDS.base, coordinator_identity)
    shop = Workshop(tmp_path, pool, coordinator_identity, registry, clock)
    model = RoutedModel.from_base(WORDS.base, device="cpu", cache=tmp_path / "base.json")
    shop.load = lambda: model
    return shop


def with_rows(shop: Workshop, count: int = 24) -> None:
    lines = [json.dumps(row._asdict()) for row in world.marked(count, 9)]
    rows = parse_rows(Path("rows.jsonl"), "\n".join(lines).encode()) if count else None
    material = Material(WORDS.probe, {ROWS: rows} if rows else {})
    shop.worker._reviewer = Reviewer(
        shop.load, shop.registry, shop.cache, material=material, review=shop.pool.spec.policy.review, seconds=60.0,
        kept=KeptFigures(shop.folder / "figures", material.digest),
    )  # fmt: skip


def hand_in(
    shop: Workshop,
    name: str,
    *,
    std: float = HONEST_STD,
    scale: float = 1.0,
    alpha: float = 4.0,
    modules: list[str] | None = None,
    gates: dict[str, torch.Tensor] | None = None,
) -> Bundle:
    identity, folder = Identity.generate(), shop.folder / "made" / name
    bundle = factories.make_bundle(
        folder, shop.pool, identity, name=name, alpha=alpha, modules=modules, seed=sum(map(ord, name))
    )
    weights = {key: tensor / 0.3 * std * scale for key, tensor in load_file(folder / ADAPTER_WEIGHTS).items()}
    save_file(weights, folder / ADAPTER_WEIGHTS, {"format": "pt"})
    if gates is not None:
        drawn = load_file(folder / GATES)
        save_file({key: gates[key.removesuffix(".gate")].clone() for key in drawn}, folder / GATES, {"format": "pt"})
    return shop.receive(pack(folder, bundle.spec, identity), name)


def code(shop: Workshop, bundle: Bundle) -> tuple[str, str]:
    row = shop.registry.bundles.find(bundle.digest)
    assert row is not None
    return row.state, row.code


DESTROYERS: dict[str, dict[str, Any]] = {
    "alpha-4096": {"alpha": 4096.0},
    "quiet": {"modules": [ENCODER], "std": 1e10},
    "quieter": {"modules": [ENCODER], "std": 10**19.2},
    "four-modules": {"alpha": 4096.0, "modules": [f"encoder.block.0.layer.0.SelfAttention.{name}" for name in "qkvo"]},
}


@pytest.mark.parametrize("destroyer", DESTROYERS)
@pytest.mark.parametrize("rows", [0, 24], ids=["lines", "rows"])
def test_a_destroyer_is_refused_and_newcomers_are_not(
    shop: Workshop, means: dict[str, torch.Tensor], destroyer: str, rows: int
) -> None:
    with_rows(shop, rows)
    first = hand_in(shop, "first")
    bad = hand_in(shop, "bad", gates=means, **DESTROYERS[destroyer])
    last = hand_in(shop, "last", gates=means)
    while shop.worker.step():
        pass
    assert code(shop, bad) == (State.REFUSED, Code.NORM_LIMIT.name)
    assert shop.listed() == [first.digest, last.digest]


def test_twenty_times_an_honest_payload(shop: Workshop, means: dict[str, torch.Tensor]) -> None:
    with_rows(shop)
    twenty = hand_in(shop, "twenty", gates=means, scale=20**0.5)
    while shop.worker.step():
        pass
    assert code(shop, twenty) == (State.REFUSED, Code.HARMFUL.name)


def test_twenty_times_in_a_pool_without_rows_waits_for_a_person(shop: Workshop, means: dict[str, torch.Tensor]) -> None:
    with_rows(shop, 0)
    honest = [hand_in(shop, f"honest-{number}").digest for number in range(3)]
    twenty = hand_in(shop, "twenty", gates=means, scale=20**0.5)
    while shop.worker.step():
        pass
    assert code(shop, twenty) == (State.QUARANTINED, Code.NORM_UNUSUAL.name)
    assert shop.listed() == honest


def test_a_destroyer_that_an_earlier_version_released(
    shop: Workshop, means: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_rows(shop)
    first = hand_in(shop, "first")
    while shop.worker.step():
        pass
    with monkeypatch.context() as patch:
        patch.setattr(shop.worker._reviewer, "examine", lambda _: None)
        patch.setattr(shop.worker._reviewer, "try_expert", lambda *_: Figures())
        quiet = hand_in(shop, "quiet", gates=means, modules=[ENCODER], std=1e10)
        while shop.worker.step():
            pass
    assert shop.listed() == [first.digest, quiet.digest]
    shop.worker = shop.start()
    with_rows(shop)
    newcomer = hand_in(shop, "newcomer")
    while shop.worker.step():
        pass
    assert code(shop, quiet) == (State.YANKED, Code.NORM_LIMIT.name)
    assert shop.listed() == [first.digest, newcomer.digest]


def test_rows_tell_what_text_against_itself_does_not(shop: Workshop, means: dict[str, torch.Tensor]) -> None:
    model = shop.load()
    rows = world.marked(16, 9)
    base = RoutingChoice("base")
    bad = hand_in(shop, "bad", gates=means, **DESTROYERS["four-modules"])
    model.append(bad, contributor="c")
    alone = RoutingChoice("expert:c/bad")
    texts, asked, right = list(WORDS.probe), [row.input for row in rows], [row.target for row in rows]
    assert model.probe(texts, texts, alone).loss < model.probe(texts, texts, base).loss
    assert model.probe(asked, right, alone).loss > model.probe(asked, right, base).loss + 3


def test_what_nearly_overflows_in_the_dtype_that_routers_serve_in(
    tmp_path: Path, coordinator_identity: Identity, registry: Registry, clock: Clock
) -> None:
    pool = factories.make_pool(WORDS.base, coordinator_identity, review={"max_norm": 1e6})
    shop = Workshop(tmp_path, pool, coordinator_identity, registry, clock)
    half = RoutedModel.from_base(WORDS.base, device="cpu", dtype="float16")
    shop.load = lambda: half
    with_rows(shop, 0)
    near: dict[str, Any] = {"modules": ["encoder.block.1.layer.0.SelfAttention.v"], "std": 20.0}
    good, bad = hand_in(shop, "good"), hand_in(shop, "near", **near)
    while shop.worker.step():
        pass
    assert shop.listed() == [good.digest]
    assert code(shop, bad) == (State.REFUSED, Code.HEADROOM.name)
