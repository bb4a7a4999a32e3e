"""Biases and temperatures: the formula on every path, the file, and pools that grow."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

from protocol.errors import Code, Refused
from router.layer import topk_gpu
from router.layer.choice import Choice, CommonChoice
from router.layer.kernels import available
from router.methods.average_activation import AverageActivation
from router.methods.phatgoose import Phatgoose
from router.pool.calibration import MAX_BIAS, MAX_LOG_TEMPERATURE, Calibration
from router.pool.group_view import ModuleExperts
from router.pool.pool import ExpertPool
from tests.router.experts import PATH, SIBLINGS, make_experts, siblings
from tests.router.reference import ReferenceExpert, Routed, route

D, OUT = 48, 8


def calibrate(pool: ExpertPool, *paths: str, seed: int = 0) -> Calibration:
    """Draw biases as large as scores, and temperatures around 1."""
    generator = np.random.default_rng(seed)
    empty = Calibration.zeros([expert.digest for expert in pool.experts], paths or (PATH,))
    return empty.at(generator.normal(0, 1, empty.vector.shape).astype(np.float32))


def exact(u: torch.Tensor, slow: list[ReferenceExpert], module: ModuleExperts, found: Calibration, k: int) -> Routed:
    """Route by the reference, which knows the experts of one module alone."""
    (mine,) = [found.over([expert.digest for expert in module.experts], [module.path])]
    biases = mine.bias[0].tolist()
    temperature = float(np.exp(mine.log_temperature[0]))
    return route(u, torch.zeros(OUT, D), None, slow, k, biases=biases, temperature=temperature)


def check(module: ModuleExperts, choice: Choice | CommonChoice | None, wanted: Routed, *, close: float = 1e-5) -> None:
    assert choice is not None
    rows, weights = torch.as_tensor(choice.experts), torch.as_tensor(choice.weights)
    rows, weights = rows.reshape(len(wanted.experts), -1), weights.reshape(len(wanted.experts), -1)
    for at, gap in enumerate(wanted.gaps):
        if gap > close:
            assert [module.rows.index(row) for row in rows[at].tolist()] == wanted.experts[at]
            assert weights[at].tolist() == pytest.approx(wanted.weights[at], abs=2 * close)


def on_cpu(module: ModuleExperts, u: torch.Tensor, k: int, temperature: float = 1.0) -> Choice | CommonChoice | None:
    return Phatgoose(k, temperature).choose(module, u)


def as_on_gpu(module: ModuleExperts, u: torch.Tensor, k: int, temperature: float = 1.0) -> Choice | None:
    return topk_gpu.choose_on_gpu(module.group, u, k, temperature)[module.slot]


Way = Callable[..., Choice | CommonChoice | None]


@pytest.fixture(params=[on_cpu, as_on_gpu])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Way:
    """Choose on the CPU, or in plain PyTorch as on a GPU."""
    monkeypatch.setattr(available, "kernels", lambda _: None)
    found: Way = request.param
    return found


@pytest.mark.parametrize("tokens", [1, 9, 40])
@pytest.mark.parametrize("count", [1, 2, 5, 36, 200])
@pytest.mark.parametrize("ratio", [0.0, 30.0])
def test_choices_are_those_of_the_reference(tokens: int, count: int, ratio: float, way: Way) -> None:
    pool, slow = make_experts(count, D, OUT, absent=3 if count > 3 else 0, seed=count)
    found = calibrate(pool, seed=count)
    module = pool.calibrated(found).modules[PATH]
    u = torch.randn(tokens, D, generator=torch.Generator().manual_seed(tokens)) + ratio
    for k, temperature in ((1, 1.0), (2, 0.5), (4, 1.0)):
        wanted = exact(u, slow, module, found, k)
        choice = way(module, u, k, temperature)
        if temperature != 1:
            assert choice is not None
            shares = torch.as_tensor(choice.weights).reshape(tokens, -1)
            expected = torch.softmax(torch.tensor(wanted.weights, dtype=torch.float64).log() / temperature, 1)
            clear = torch.tensor(wanted.gaps) > 1e-5
            torch.testing.assert_close(shares.double()[clear], expected[clear], atol=1e-5, rtol=1e-4)
        else:
            check(module, choice, wanted)


@pytest.mark.parametrize("tokens", [1, 7])
def test_modules_of_a_group_have_biases_of_their_own(tokens: int, way: Way) -> None:
    pool, slow = siblings(20, D, OUT)
    found = calibrate(pool, "a.k", "a.q")  # nothing is said about a.v
    seen = pool.calibrated(found)
    u = torch.randn(tokens, D, generator=torch.Generator().manual_seed(tokens))
    for path in SIBLINGS:
        module = seen.modules[path]
        check(module, way(module, u, 2), exact(u, slow[path], module, found, 2))


@pytest.mark.parametrize("tokens", [1, 7])
def test_zeros_change_nothing_but_rounding(tokens: int) -> None:
    pool, _ = make_experts(30, D, OUT, absent=4)
    zeros = Calibration.zeros([expert.digest for expert in pool.experts], [PATH])
    u = torch.randn(tokens, D)
    plain, calibrated = (Phatgoose(2).choose(seen.modules[PATH], u) for seen in (pool, pool.calibrated(zeros)))
    assert plain is not None
    assert calibrated is not None
    for one, other in zip(plain, calibrated, strict=True):
        assert one is other is None or torch.equal(torch.as_tensor(one), torch.as_tensor(other))


@pytest.mark.parametrize("tokens", [1, 7])
def test_a_newcomer_has_no_bias_and_nobody_is_copied(tokens: int, way: Way) -> None:
    pool, slow = make_experts(12, D, OUT, seed=3)
    grown = ExpertPool()
    for expert in pool.experts[:9]:
        grown = grown.add(expert)
    found = calibrate(grown, seed=1)
    grown = grown.calibrated(found)
    kept = grown.modules[PATH].group.calibration
    for expert in pool.experts[9:]:
        grown = grown.add(expert)
    module = grown.modules[PATH]
    assert module.group.calibration is kept
    u = torch.randn(tokens, D)
    check(module, way(module, u, 2), exact(u, slow, module, found, 2))


def test_restricted_reordered_and_moved_pools_keep_what_each_expert_has() -> None:
    pool, slow = make_experts(24, D, OUT, seed=5)
    found, u = calibrate(pool, seed=2), torch.randn(9, D)
    calibrated = pool.calibrated(found)
    left = [number for number in range(24) if number % 3]
    pools = {
        "allowing": calibrated.allowing([f"e{number}" for number in left], []),
        "reordered": calibrated.reordered([f"{number:064x}" for number in reversed(range(24))]),
        "moved": calibrated,
    }
    for number in range(20):
        pools["moved"] = pools["moved"].remove(f"{number:064x}")
    pools["moved"] = pools["moved"].add(dataclasses.replace(pool.experts[0], digest="f" * 64))
    orders = {"allowing": left, "reordered": [*reversed(range(24))], "moved": [20, 21, 22, 23, 0]}
    for name, order in orders.items():
        module = pools[name].modules[PATH]
        check(module, Phatgoose(2).choose(module, u), exact(u, [slow[n] for n in order], module, found, 2))
    assert calibrated.calibrated(None).modules[PATH].group.calibration is None


def test_biases_belong_to_gates_alone() -> None:
    pool, _ = make_experts(6, D, OUT)
    told = ExpertPool()
    for number, expert in enumerate(pool.experts):
        mean = torch.randn(D, generator=torch.Generator().manual_seed(number))
        told = told.add(dataclasses.replace(expert, means={PATH: mean, "another": mean}))
    u = torch.randn(5, D)
    ours, plain = (
        AverageActivation(2).choose(seen.modules[PATH], u) for seen in (told.calibrated(calibrate(told)), told)
    )
    assert isinstance(ours, Choice)
    assert isinstance(plain, Choice)
    assert torch.equal(ours.weights, plain.weights)


def test_a_file_says_what_was_written() -> None:
    pool, _ = make_experts(5, D, OUT)
    found = calibrate(pool, "b.q", "a.k")
    again = Calibration.load(found.content)
    assert again.digest == found.digest
    assert again.experts == found.experts
    back = again.over(found.experts, found.modules)
    assert np.array_equal(back.vector, found.vector)
    fewer = found.over([found.experts[3], "e" * 64], ["a.k", "c"])
    assert fewer.bias.tolist() == [[found.bias[1, 3], 0], [0, 0]]
    assert fewer.log_temperature.tolist() == [found.log_temperature[1], 0]
    assert Calibration.load(Calibration.zeros([], []).content).vector.size == 0


def spoiled(**changes: object) -> bytes:
    tensors = load(calibrate(make_experts(2, D, OUT)[0], "a").content)
    return save({name: value for name, value in {**tensors, **changes}.items() if value is not None})  # type: ignore[misc]


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", Code.TENSOR_HEADER),
        (b"\xff" * 100, Code.TENSOR_HEADER),
        (spoiled(row=np.zeros(3, np.float32)), Code.TENSOR_NAMES),
        (spoiled(**{"a.log_temperature": None}), Code.TENSOR_NAMES),
        (spoiled(**{"a.bias": np.zeros(3, np.float32)}), Code.TENSOR_SHAPE),
        (spoiled(**{"a.bias": np.zeros(2, np.float64)}), Code.TENSOR_SHAPE),
        (spoiled(experts=np.zeros((2, 31), np.uint8)), Code.TENSOR_SHAPE),
        (spoiled(experts=np.zeros(64, np.uint8)), Code.TENSOR_SHAPE),
        (spoiled(**{"a.bias": np.array([0, np.nan], np.float32)}), Code.NOT_FINITE),
        (spoiled(**{"a.bias": np.array([0, 2 * MAX_BIAS], np.float32)}), Code.NOT_FINITE),
        (spoiled(**{"a.log_temperature": np.array([np.inf], np.float32)}), Code.NOT_FINITE),
        (spoiled(**{"a.log_temperature": np.array([2 * MAX_LOG_TEMPERATURE], np.float32)}), Code.NOT_FINITE),
    ],
)
def test_another_file_is_refused(content: bytes, code: Code) -> None:
    with pytest.raises(Refused) as refused:
        Calibration.load(content)
    assert refused.value.code is code


def test_another_number_of_numbers_is_refused() -> None:
    with pytest.raises(Refused) as refused:
        calibrate(make_experts(3, D, OUT)[0]).at(np.zeros(5, np.float32))
    assert refused.value.code is Code.TENSOR_SHAPE
