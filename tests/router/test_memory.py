"""A pool beyond memory is refused before anything of it is loaded."""

from pathlib import Path

import pytest
import torch

from protocol.errors import Code, Unavailable
from protocol.release import Pool
from protocol.signing import Identity
from router import memory
from router.model import RoutedModel
from router.pages import FactorPages
from tests.factories import make_bundle, make_pool

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pool(t5_base: Path) -> Pool:
    return make_pool(t5_base, Identity.generate())


def test_the_estimate_is_what_the_pool_then_holds(pool: Pool, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", pool, Identity.generate())
    tensors = sum(
        (module.rank * (module.d_in + module.d_out) + module.d_in) * 4 for module in bundle.spec.modules.values()
    )
    estimate = memory.loaded_bytes(bundle, torch.float32)
    assert tensors <= estimate <= 1.2 * tensors + 40_000  # headers
    gates = sum(module.d_in * 4 for module in bundle.spec.modules.values())
    assert memory.loaded_bytes(bundle, torch.bfloat16) < estimate / 2 + gates


def test_a_model_keeps_what_it_had(pool: Pool, t5_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (make_bundle(tmp_path / name, pool, Identity.generate(), seed=len(name)) for name in ("a", "bb"))
    model = RoutedModel.from_bundles(str(t5_base), [first], device="cpu")
    before = model.generate(["please reverse it : a b"], max_new_tokens=4)
    needed = 2 * memory.loaded_bytes(second, torch.float32)  # the expert and a copy of it while it is read
    monkeypatch.setattr(memory, "free_bytes", lambda _device: needed - 1)
    with pytest.raises(Unavailable) as refused:
        model.append(second)
    assert refused.value.code is Code.MEMORY_FULL
    assert model.digests == (first.digest,)
    assert model.generate(["please reverse it : a b"], max_new_tokens=4) == before
    monkeypatch.setattr(memory, "free_bytes", lambda _device: needed)
    model.append(second)
    assert len(model.digests) == 2


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


@pytest.mark.parametrize(("limit", "used", "free"), [("3000", "1000", 2400), ("3000", "4000", 0)])
def test_a_container_has_less_than_the_machine(
    limit: str, used: str, free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{used}\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 400\n")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory.free_bytes(CPU) == free


def test_a_container_without_a_limit_has_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert 1 << 26 < memory.free_bytes(CPU) < 1 << 50
