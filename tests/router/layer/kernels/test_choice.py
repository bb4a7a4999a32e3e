"""Which experts the kernels choose, against the float64 reference."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from router.layer.kernels import launch
from router.pool.calibration import Calibration
from router.pool.expert import Expert
from router.pool.gate import standardise
from router.pool.group_view import ModuleExperts
from router.pool.pool import ExpertPool
from tests.router.experts import PATH, SIBLINGS, in_dtype, make_experts, pool_of, siblings
from tests.router.reference import route

pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter's inf - inf
D = 40


def choose(module: ModuleExperts, u: Tensor, k: int) -> tuple[list[list[int]], list[list[float]]]:
    experts, weights, _ = launch.choose(module.group.view, u, k)
    return experts[module.slot].tolist(), weights[module.slot].tolist()


@pytest.mark.parametrize(
    ("dtype", "tokens", "count", "offset"),
    [
        (torch.float32, 1, 1, 0.5),
        (torch.float32, 2, 17, 30.0),
        (torch.bfloat16, 1, 17, 30.0),
        (torch.float32, 3, 20, 0.5),
        (torch.bfloat16, 3, 8, 0.5),
        (torch.float32, 64, 12, 30.0),
        (torch.bfloat16, 64, 12, 30.0),
        (torch.float16, 5, 5, 0.5),
    ],
)
def test_choices_are_those_of_the_reference(dtype: torch.dtype, tokens: int, count: int, offset: float) -> None:
    # Ranks 1 to 7, every third expert absent.
    pool, slow = make_experts(count, D, 8, absent=3 if count > 3 else 0, seed=count)
    pool = in_dtype(pool.remove(pool.experts[-1].digest) if count > 3 else pool, dtype)
    module = pool.modules[PATH]
    u = (torch.randn(tokens, D, generator=torch.Generator().manual_seed(tokens)) + offset).to(dtype)
    kept = min(2, len(module))
    experts, weights = choose(module, u, kept)
    exact = route(u, torch.zeros(8, D), None, slow[: len(module)], kept)
    for row in range(tokens):
        if exact.gaps[row] > 1e-5 * (1 if dtype == torch.float32 else offset):
            assert [module.rows.index(at) for at in experts[row]] == exact.experts[row]
        assert weights[row] == pytest.approx(exact.weights[row], abs=1e-5 if dtype == torch.float32 else 1e-3)


@pytest.mark.parametrize(("tokens", "k"), [(1, 8), (2, 3)])
def test_many_experts_a_token(tokens: int, k: int) -> None:
    pool, slow = make_experts(200, D, 8, seed=k)
    u = torch.randn(tokens, D, generator=torch.Generator().manual_seed(k))
    experts, weights = choose(pool.modules[PATH], u, k)
    exact = route(u, torch.zeros(8, D), None, slow, k)
    assert experts == exact.experts
    assert torch.tensor(weights).allclose(torch.tensor(exact.weights), atol=1e-6)


def test_bf16_activations_choose_as_float64_does() -> None:
    d, count, tokens = 256, 120, 192
    generator = torch.Generator().manual_seed(0)
    pool = pool_of(torch.randn(count, d, generator=generator, dtype=torch.float64))
    gates = pool.modules[PATH].gates
    u = (torch.randn(tokens, d, generator=generator) + 3).bfloat16()
    experts, _, _ = launch.choose(pool.modules[PATH].group.view, u, 2)
    exact = (standardise(u.double()) @ gates.double().T).topk(2).indices
    same = (experts[0].sort().values == exact.sort().values).all(1)
    assert same.double().mean() >= 0.999


@pytest.mark.parametrize(("tokens", "count"), [(1, 21), (3, 3), (2, 3)])
def test_ties_go_to_whoever_came_first(tokens: int, count: int) -> None:
    gate = torch.randn(D, generator=torch.Generator().manual_seed(0))
    pool = pool_of([-gate, *[gate] * count])
    experts, weights = choose(pool.modules[PATH], gate.repeat(tokens, 1), 3)
    assert experts == [[1, 2, 3]] * tokens
    assert torch.tensor(weights).allclose(torch.tensor(1 / 3))


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_broken_activation_gives_no_finite_answer(tokens: int, value: float) -> None:
    pool, _ = make_experts(5, D, 8)
    u = torch.randn(tokens, D)
    u[0, 3] = value
    experts, weights = choose(pool.modules[PATH], u, 2)
    assert all(math.isnan(weight) for weight in weights[0])
    assert set(experts[0]) <= set(range(5))
    assert torch.tensor(weights[1:]).isfinite().all()


@pytest.mark.parametrize("tokens", [1, 3])
def test_modules_of_a_group_choose_for_themselves(tokens: int) -> None:
    pool, slow = siblings(20, D, 4)
    u = torch.randn(tokens, D, generator=torch.Generator().manual_seed(tokens))
    found, _, _ = launch.choose(pool.modules["a.q"].group.view, u, 2)
    for path, experts in zip(SIBLINGS, found.tolist(), strict=True):
        rows = pool.modules[path].rows
        exact = route(u, torch.zeros(4, D), None, slow[path], 2)
        assert [[rows.index(row) for row in chosen] for chosen in experts] == exact.experts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 3, 8])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_biases_and_temperatures_are_those_of_the_reference(
    dtype: torch.dtype, tokens: int, temperature: float
) -> None:
    pool, slow = make_experts(17, D, 8, absent=3, seed=tokens)
    pool = in_dtype(pool, dtype)
    generator = np.random.default_rng(tokens)
    empty = Calibration.zeros([expert.digest for expert in pool.experts[:14]], [PATH])  # the last ones came later
    found = empty.at(generator.normal(0, 1, empty.vector.shape).astype(np.float32))
    module = pool.calibrated(found).modules[PATH]
    u = (torch.randn(tokens, D, generator=torch.Generator().manual_seed(tokens)) + 5).to(dtype)
    experts, weights, _ = launch.choose(module.group.view, u, 2, temperature)
    biases = found.over([expert.digest for expert in module.experts], [PATH]).bias[0].tolist()
    tau = float(np.exp(found.log_temperature[0]))
    exact = route(u, torch.zeros(8, D), None, slow, 2, biases=biases, temperature=tau)
    close = 1e-5 if dtype == torch.float32 else 1e-3
    for row in range(tokens):
        if exact.gaps[row] > close:
            assert [module.rows.index(at) for at in experts[module.slot, row].tolist()] == exact.experts[row]
            shares = (torch.tensor(exact.weights[row]).log() / temperature).softmax(0)
            assert weights[module.slot, row].tolist() == pytest.approx(shares.tolist(), abs=close)


def test_a_view_follows_a_calibrated_pool() -> None:
    pool, _ = make_experts(6, D, 8)
    empty = Calibration.zeros([expert.digest for expert in pool.experts], [PATH])
    one, other = (
        pool.calibrated(empty.at(np.linspace(-1, sign, empty.vector.size, dtype=np.float32))) for sign in (1, -2)
    )
    u = torch.randn(3, D)
    group = one.modules[PATH].group
    held = group.store.table.view(group.length, group.hidden, group.calibration)
    held.follow(other.modules[PATH].group.view)
    expected = launch.choose(other.modules[PATH].group.view, u, 2)
    found = launch.choose(held, u, 2)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    with pytest.raises(ValueError, match="outgrew"):
        held.follow(pool.modules[PATH].group.view)


@pytest.mark.parametrize("tokens", [1, 3])
def test_a_view_follows_a_growing_pool_in_place(tokens: int) -> None:
    """What a captured graph needs: the same tensors, more experts; and fewer than k as well."""
    pool, _ = make_experts(12, D, 8)
    u = torch.randn(tokens, D)
    generations = [ExpertPool()]
    for expert in pool.experts:
        generations.append(generations[-1].add(expert))
    old, new = generations[1].modules[PATH].group, generations[12].modules[PATH].group
    held = old.store.table.view(old.length, old.hidden)
    alone, weights, _ = launch.choose(held, u, 2)
    assert alone[0].tolist() == [[0, -1]] * tokens
    assert weights[0].tolist() == [[1.0, 0.0]] * tokens
    expected = launch.choose(new.view, u, 2)[0]
    held.follow(new.view)
    assert torch.equal(launch.choose(held, u, 2)[0], expected)
    for number in range(8):
        part = pool.experts[0].modules[PATH]
        generations.append(generations[-1].add(Expert(f"{number:e>64}", f"n{number}", "", {PATH: part})))
    with pytest.raises(ValueError, match="outgrew"):
        held.follow(generations[-1].modules[PATH].group.view)
