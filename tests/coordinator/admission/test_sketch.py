"""Sketches and exact products, held against whole updates in float64."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from coordinator.admission.sketch import compare, nearness, sketch, touched, width
from protocol.adapters import Kind
from protocol.bundle import ADAPTER_WEIGHTS, Bundle, pack
from protocol.documents import Pool
from protocol.signing import Identity
from protocol.tensors import ADAPTER_PREFIX
from tests import factories

Tensors = dict[str, torch.Tensor]
SECRET = b"s" * 32
KINDS: tuple[Kind, ...] = get_args(Kind)


def update(bundle: Bundle, path: str) -> np.ndarray:
    """The whole update of a module: slow, and obvious."""
    tensors = {name: tensor.double().numpy() for name, tensor in load_file(bundle.folder / ADAPTER_WEIGHTS).items()}
    start = f"{ADAPTER_PREFIX}{path}."
    if f"{start}ia3_l" in tensors:
        vector: np.ndarray = tensors[f"{start}ia3_l"] - 1
        return vector
    b, a = ("lora_B", "lora_A") if f"{start}lora_A.weight" in tensors else ("adapter_up", "adapter_down")
    product: np.ndarray = tensors[f"{start}{b}.weight"] @ tensors[f"{start}{a}.weight"]
    return product


def reference(one: Bundle, other: Bundle) -> float:
    """Mean cosine over the modules of the smaller one, of whole updates."""
    cosines = []
    for path in set(one.spec.modules) & set(other.spec.modules):
        u, v = update(one, path).ravel(), update(other, path).ravel()
        cosines.append(abs(float(u @ v / np.linalg.norm(u) / np.linalg.norm(v))))
    return sum(cosines) / min(len(one.spec.modules), len(other.spec.modules))


def by_sketch(pool: Pool, *bundles: Bundle) -> float:
    modules = sorted(pool.spec.modules)
    one, other = (sketch(bundle.folder, bundle.spec, modules, SECRET).astype(float) for bundle in bundles)
    return float(nearness((one * other).sum(-1), touched(one), touched(other)))


def exactly(one: Bundle, other: Bundle) -> float:
    return compare((one.folder, one.spec), (other.folder, other.spec))


Make = Callable[..., Bundle]


@pytest.fixture
def make(tmp_path: Path, pool: Pool, identity: Identity) -> Make:
    def make(number: int, change: Callable[[Tensors], None] = lambda _: None, **facts: Any) -> Bundle:
        bundle = factories.make_bundle(
            tmp_path / f"{len(list(tmp_path.iterdir()))}", pool, identity, **facts, seed=number
        )
        tensors = load_file(bundle.folder / ADAPTER_WEIGHTS)
        change(tensors)
        save_file(tensors, bundle.folder / ADAPTER_WEIGHTS, {"format": "pt"})
        return pack(bundle.folder, bundle.spec, identity)

    return make


def gauge(tensors: Tensors) -> None:
    """B G^-1 and G A add what B and A add."""
    draw = torch.Generator().manual_seed(7)
    for name in [name for name in tensors if "lora_A" in name]:
        rank = tensors[name].shape[0]
        change = torch.randn(rank, rank, generator=draw) + 3 * torch.eye(rank)
        tensors[name] = change @ tensors[name]
        b = name.replace("lora_A", "lora_B")
        tensors[b] = tensors[b] @ torch.linalg.inv(change)


def permuted(tensors: Tensors) -> None:
    """The hidden units of a bottleneck adapter in another order, each by another factor."""
    for name in [name for name in tensors if "down" in name]:
        order, factors = torch.tensor([2, 0, 3, 1]), torch.tensor([[0.5], [2.0], [4.0], [1.0]])
        tensors[name] = (tensors[name] * factors)[order]
        up = name.replace("down", "up")
        tensors[up] = (tensors[up] / factors.T)[:, order]


def noisy(share: float) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        draw = torch.Generator().manual_seed(5)
        for name, tensor in tensors.items():
            tensors[name] = tensor * (1 + share * torch.randn(tensor.shape, generator=draw))

    return change


def scaled(tensors: Tensors) -> None:
    for name in tensors:
        if "lora_B" in name:
            tensors[name] = tensors[name] * 1.7


def turned_round(tensors: Tensors) -> None:
    """Takes off what the other adds, at every other module."""
    for name in sorted(name for name in tensors if "lora_B" in name)[::2]:
        tensors[name] = -tensors[name]


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("lora", turned_round), ("lora", gauge), ("rslora", gauge), ("dora", gauge), ("lora", noisy(0.01)),
        ("lora", scaled), ("bottleneck", permuted), ("ia3", noisy(0.001)),
    ],
)  # fmt: skip
def test_a_copy_is_near_in_whatever_bytes(
    make: Make, pool: Pool, kind: Kind, change: Callable[[Tensors], None]
) -> None:
    one, copy = make(1, kind=kind), make(1, change, kind=kind)
    assert one.manifest.files[ADAPTER_WEIGHTS].sha256 != copy.manifest.files[ADAPTER_WEIGHTS].sha256
    assert exactly(one, copy) > 0.99
    assert by_sketch(pool, one, copy) > 0.98


@pytest.mark.parametrize("kind", KINDS)
def test_an_honest_pair_is_not(make: Make, pool: Pool, kind: Kind) -> None:
    one, other = make(1, kind=kind), make(2, kind=kind)
    assert exactly(one, other) == pytest.approx(reference(one, other), abs=1e-6)
    assert abs(by_sketch(pool, one, other) - reference(one, other)) < 0.25
    assert exactly(one, other) < 0.4


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0, 2.0])
def test_the_exact_figure_is_that_of_whole_updates(make: Make, pool: Pool, share: float) -> None:
    one, other = make(1), make(1, noisy(share))
    assert exactly(one, other) == pytest.approx(reference(one, other), abs=1e-6)
    assert by_sketch(pool, one, other) == pytest.approx(reference(one, other), abs=0.2)


def test_a_part_of_another_expert_is_all_of_what_one_has(make: Make, pool: Pool) -> None:
    """Neither modules of one's own beside it hide it, however large they are, nor the other's that were left out."""
    whole, part = make(1), make(1, modules=["block.0.q"])
    copied = load_file(part.folder / ADAPTER_WEIGHTS)
    loud = make(2, lambda own: own.update(copied | {name: own[name] * 1e6 for name in own if ".v." in name}))
    assert exactly(part, whole) == pytest.approx(1)
    assert exactly(part, loud) == pytest.approx(1)
    assert exactly(whole, loud) == pytest.approx(0.5, abs=0.1)
    assert by_sketch(pool, part, whole) > 0.99


def test_a_module_that_is_turned_round_is_as_near(make: Make) -> None:
    def undo(tensors: Tensors) -> None:
        tensors[f"{ADAPTER_PREFIX}block.0.v.lora_B.weight"] *= -1

    assert exactly(make(1), make(1, undo)) == pytest.approx(1)


def test_a_module_without_effect_is_no_module(make: Make, pool: Pool) -> None:
    def silence(tensors: Tensors) -> None:
        tensors[f"{ADAPTER_PREFIX}block.0.v.lora_B.weight"] *= 0

    one, part = make(1), make(1, silence)
    assert exactly(one, part) == pytest.approx(1)
    assert by_sketch(pool, one, part) > 0.99


def test_numbers_as_large_as_files_hold(make: Make, pool: Pool) -> None:
    def huge(tensors: Tensors) -> None:
        for name in tensors:
            tensors[name] = tensors[name] / tensors[name].abs().max() * 3e38

    one, loud = make(1), make(1, huge)
    assert exactly(one, loud) == pytest.approx(1)
    assert by_sketch(pool, one, loud) > 0.99


def test_without_the_secret_there_is_no_telling(make: Make, pool: Pool) -> None:
    one, modules = make(1), sorted(pool.spec.modules)
    mine, theirs = (sketch(one.folder, one.spec, modules, secret).astype(float) for secret in (SECRET, b"t" * 32))
    assert np.abs((mine * theirs).sum(-1)).max() < 0.3


def test_blocks_make_no_difference(make: Make, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = make(1), make(1, noisy(0.5))
    whole = exactly(one, other)
    monkeypatch.setattr("coordinator.admission.sketch._BLOCK", 5)
    assert exactly(one, other) == pytest.approx(whole)
    assert by_sketch(pool, one, one) == pytest.approx(1, abs=1e-3)


def test_the_size_of_a_sketch_is_bounded() -> None:
    assert [width(modules) for modules in (1, 60, 224, 400, 5000)] == [256, 256, 73, 40, 32]


def test_five_hundred_are_compared_in_no_time() -> None:
    draw = np.random.default_rng(0)
    kept, new = draw.normal(size=(500, 224, 73)).astype(np.float16), draw.normal(size=(224, 73)).astype(np.float16)
    start = time.process_time()
    cosines = np.einsum("nmk,mk->nm", kept.astype(np.float32), new.astype(np.float32))
    assert nearness(cosines, touched(new), touched(kept)).shape == (500,)
    assert time.process_time() - start < 2
