"""How much an expert changes a module, against the whole matrix that it adds."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from router.base.linear import Linear, find_linear, linear_modules
from router.base.loading import load_base
from router.pool import base_norms as kept
from router.pool.base_norms import base_norms
from router.pool.expert_module import ExpertModule
from router.pool.norms import relative_norm, spectral_norm
from tests.router.experts import PATH
from tests.router.layer.test_kinds import D_IN, D_OUT, KINDS, linear_of, make, rows_of


def whole(part: ExpertModule, linear: Linear) -> Tensor:
    """What a linear expert adds to W, [o, d] float64, column by column; the long way."""
    u = torch.eye(D_IN)
    with torch.inference_mode():
        zero = part.delta(torch.zeros(1, D_IN), linear(torch.zeros(1, D_IN)), linear)
        return (part.delta(u, linear(u), linear) - zero).T.double()


def exact(matrix: Tensor) -> float:
    return torch.linalg.matrix_norm(matrix.double(), 2).item()


@pytest.mark.parametrize("form", ["linear", "conv1d"])
@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_what_is_added_over_the_base(kind: str, form: str) -> None:
    linear = linear_of(form)
    part, _ = make(kind, linear)
    base = exact(rows_of(linear))
    assert relative_norm(part, linear, PATH, base) == pytest.approx(exact(whole(part, linear)) / base, rel=0.02)


@pytest.mark.parametrize("kind", ["ia3 output", "ia3 input"])
def test_scales_by_the_largest(kind: str) -> None:
    linear = linear_of("linear", bias=False)
    part, slow = make(kind, linear)
    base, found = exact(rows_of(linear)), relative_norm(part, linear, PATH, exact(rows_of(linear)))
    assert slow.vector is not None
    assert found == pytest.approx((slow.vector - 1).abs().max().item())
    assert found >= exact(whole(part, linear)) / base


@pytest.mark.parametrize("kind", ["relu", "gelu"])
def test_no_input_is_changed_by_more_than_a_bottleneck_may(kind: str) -> None:
    linear = linear_of("linear", bias=False)
    part, _ = make(kind, linear)
    base = exact(rows_of(linear))
    most = relative_norm(part, linear, PATH, base) * base
    u = torch.cat([torch.randn(500, D_IN), part.a / part.a.norm(dim=1, keepdim=True)]) * 10
    added = part.delta(u, torch.zeros(len(u), D_OUT), linear)
    assert (added.norm(dim=1) <= most * u.norm(dim=1) * (1 + 1e-5)).all()
    assert (added.norm(dim=1) > most * u.norm(dim=1) / 10).any(), "and the bound is no empty one"


@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_another_gauge_has_the_same_norm(scale: float) -> None:
    linear = linear_of("linear")
    part, _ = make("lora", linear)
    gauge = torch.randn(3, 3) * scale
    other = replace(part, a=gauge @ part.a, b=part.b @ torch.linalg.inv(gauge))
    assert relative_norm(other, linear, PATH, 1.0) == pytest.approx(relative_norm(part, linear, PATH, 1.0), rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_huge_expert_has_a_huge_norm(kind: str) -> None:
    linear = linear_of("linear")
    part, _ = make(kind, linear)
    scales = part.scales and type(part.scales)(*(vector if vector is None else vector * 1e30 for vector in part.scales))
    huge = replace(part, a=part.a * 1e30, b=part.b * 1e30, scales=scales)
    assert relative_norm(huge, linear, PATH, 1.0) > 1e25


def test_a_large_matrix_and_odd_ones() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(300, 700)  # a flat spectrum, the hardest
    assert spectral_norm(matrix) == pytest.approx(exact(matrix), rel=0.05)
    assert spectral_norm(matrix * 1e30) == pytest.approx(exact(matrix) * 1e30, rel=0.05)
    assert spectral_norm(torch.zeros(4, 5)) == 0
    assert spectral_norm(torch.tensor([[math.inf, 0.0]])) == spectral_norm(torch.tensor([[math.nan, 0.0]])) == math.inf
    assert spectral_norm(torch.tensor([[3.0, 4.0]])) == pytest.approx(5)


def test_over_a_weight_of_zeros() -> None:
    linear = nn.Linear(D_IN, D_OUT)
    part, _ = make("lora", linear)
    assert relative_norm(part, linear, PATH, 0.0) == math.inf
    assert relative_norm(replace(part, b=torch.zeros_like(part.b)), linear, PATH, 0.0) == 0


def test_a_base_is_measured_once(t5_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_base(str(t5_base), device="cpu")
    linears = {path: find_linear(loaded.model, path) for path in linear_modules(loaded.model)}
    cache = tmp_path / "base.json"
    found = base_norms(linears, loaded.source, cache)
    for path, linear in linears.items():
        assert found[path] == pytest.approx(exact(linear.weight), rel=0.05)
    monkeypatch.setattr(kept, "spectral_norm", lambda _: 7.0)
    assert base_norms(linears, loaded.source, cache) == found
    (place,) = tmp_path.glob("norms-*.json")
    place.write_bytes(b'{"half')
    assert set(base_norms(linears, loaded.source, cache).values()) == {7.0}


def test_a_weight_of_nothing_is_held_against_the_others(t5_base: Path) -> None:
    loaded = load_base(str(t5_base), device="cpu")
    linears = {path: find_linear(loaded.model, path) for path in linear_modules(loaded.model)}
    empty = next(iter(linears))
    with torch.no_grad():
        linears[empty].weight.zero_()
    found = base_norms(linears, loaded.source)
    assert 0 < found[empty] <= min(norm for path, norm in found.items() if path != empty)
