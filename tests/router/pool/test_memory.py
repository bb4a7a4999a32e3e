"""A pool beyond memory is refused before anything of it is loaded."""

from pathlib import Path

import pytest
import torch

from protocol.adapters import BottleneckModule, LoraModule, Module
from protocol.documents import Pool
from protocol.errors import Code, Unavailable
from protocol.signing import Identity
from router.model.routed_model import RoutedModel
from router.pool import capacity
from router.pool.expert import Expert
from router.pool.expert_module import ExpertModule
from router.pool.pages import FactorPages
from router.pool.pool import ExpertPool
from tests.factories import make_bundle, make_pool

CPU = torch.device("cpu")
GPUS = [torch.device("cuda", number) for number in range(2)]


@pytest.fixture(scope="module")
def pool(t5_base: Path) -> Pool:
    return make_pool(t5_base, Identity.generate())


def test_the_estimate_is_what_the_pool_then_holds(pool: Pool, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", pool, Identity.generate())
    modules = bundle.spec.modules.values()
    factors = sum(each.rank * (each.d_in + each.d_out) for each in modules)
    gates = sum(each.d_in for each in modules)
    assert capacity.loaded_bytes(bundle.spec.modules, torch.float32) == 4 * factors + 6 * gates
    assert capacity.loaded_bytes(bundle.spec.modules, torch.bfloat16) == 2 * factors + 6 * gates


def test_a_model_keeps_what_it_had(pool: Pool, t5_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (make_bundle(tmp_path / name, pool, Identity.generate(), seed=len(name)) for name in ("a", "bb"))
    model = RoutedModel.from_bundles(str(t5_base), [first], device="cpu")
    before = model.generate(["please reverse it : a b"], max_new_tokens=4)
    needed = 2 * capacity.loaded_bytes(second.spec.modules, torch.float32)  # itself, and a copy while it is read
    monkeypatch.setattr(capacity, "free_bytes", lambda _device: needed - 1)
    with pytest.raises(Unavailable) as refused:
        model.append(second)
    assert refused.value.code is Code.MEMORY_FULL
    assert model.digests == (first.digest,)
    assert model.generate(["please reverse it : a b"], max_new_tokens=4) == before
    monkeypatch.setattr(capacity, "free_bytes", lambda _device: needed)
    model.append(second)
    assert len(model.digests) == 2


def test_a_gpu_needs_room_for_whole_pages(pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle(tmp_path / "b", pool, Identity.generate())
    needed = capacity.loaded_bytes(bundle.spec.modules, torch.float32)
    monkeypatch.setattr(capacity, "free_bytes", lambda _device: 3 * needed)
    capacity.check_room([bundle], ExpertPool(), dict.fromkeys(bundle.spec.modules, CPU), torch.float32)
    with pytest.raises(Unavailable) as refused:
        capacity.check_room([bundle], ExpertPool(), dict.fromkeys(bundle.spec.modules, GPUS[0]), torch.float32)
    assert refused.value.code is Code.MEMORY_FULL


def test_each_device_needs_room_for_its_own_modules(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(tmp_path / "b", pool, Identity.generate())
    whole = ExpertPool().opened_bytes([bundle.spec.modules], torch.float32)
    places = {path: GPUS["decoder" in path] for path in bundle.spec.modules}
    monkeypatch.setattr(capacity, "free_bytes", lambda _device: whole)
    capacity.check_room([bundle], ExpertPool(), places, torch.float32)
    monkeypatch.setattr(capacity, "free_bytes", lambda device: whole if device == GPUS[0] else 1000)
    with pytest.raises(Unavailable, match="on cuda:1") as refused:
        capacity.check_room([bundle], ExpertPool(), places, torch.float32)
    assert refused.value.code is Code.MEMORY_FULL


def held_bytes(pool: ExpertPool) -> int:
    stores = {id(module.group.store): module.group.store for module in pool.modules.values()}.values()
    gates = [page for store in stores for page in store.gates._pages]
    factors = [factor for module in pool.modules.values() for page in module.pages for factor in (page.a, page.b)]
    return sum(page.numel() * page.itemsize for page in [*gates, *factors])


@pytest.mark.parametrize("held", [0, 1, 15, 16, 40])
@pytest.mark.parametrize("more", [1, 20, 60])
def test_pages_take_what_was_said_before_they_were_opened(held: int, more: int) -> None:
    shapes: dict[str, Module] = {
        path: BottleneckModule(alpha=1, rank=4, activation="relu", d_in=8, d_out=6) for path in ("q", "k", "v")
    }
    shapes["o"] = LoraModule(alpha=1, rank=3, d_in=7, d_out=5)

    def expert(number: int) -> Expert:
        return Expert(f"{number:064x}", f"e{number}", "", {
            path: ExpertModule(
                torch.randn(each.rank, each.d_in), torch.randn(each.d_out, each.rank), 1.0, torch.randn(each.d_in),
                getattr(each, "activation", None),
            ) for path, each in shapes.items()
        })  # fmt: skip

    pool = ExpertPool()
    for number in range(held):
        pool = pool.add(expert(number))
    before, said = held_bytes(pool), pool.opened_bytes([shapes] * more, torch.float32)
    for number in range(held, held + more):
        pool = pool.add(expert(number))
    row = 4 * (3 * 8 + 7)  # the means, in front of the first page of gates
    assert held_bytes(pool) - before == said + (0 if held else row)


def test_memory_that_runs_out_all_the_same_is_said_in_words(
    pool: Pool, t5_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    first, second = (make_bundle(tmp_path / name, pool, Identity.generate(), seed=len(name)) for name in ("a", "bb"))
    model = RoutedModel.from_bundles(str(t5_base), [first], device="cpu")
    with monkeypatch.context() as patched:
        patched.setattr(FactorPages, "reserve", short)
        with pytest.raises(Unavailable) as refused:
            model.append(second)
    assert refused.value.code is Code.MEMORY_FULL
    assert model.digests == (first.digest,)
    model.append(second)
    assert len(model.digests) == 2
