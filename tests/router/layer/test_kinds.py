"""Experts of every kind, alone and in one pool, against the float64 reference."""

import random

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from protocol.adapters import BottleneckModule, DoraModule, Ia3Module, LoraModule, Module, RsLoraModule
from protocol.errors import Code, Refused
from router.base.linear import Linear, shape
from router.layer import experts_cpu
from router.layer.choice import Choice
from router.layer.dispatch import offered
from router.layer.routed_linear import RoutedLinear, RoutingPlan, routing
from router.layer.scaling import add_scaled
from router.methods.merged import Merged
from router.methods.phatgoose import Phatgoose
from router.methods.single_expert import SingleExpert
from router.pool.conversion import make_expert_module
from router.pool.expert import Expert
from router.pool.expert_module import ExpertModule
from router.pool.gate import standardise
from router.pool.pool import ExpertPool
from router.training.gated_linear import GatedExpert
from tests.router.experts import PATH, error
from tests.router.layer.test_dispatch import WAYS
from tests.router.reference import ReferenceExpert, delta, route

D_IN, D_OUT = 48, 40
KINDS = ("lora", "rslora", "dora", "ia3 output", "ia3 input", "relu", "gelu")


def linear_of(form: str, *, bias: bool = True) -> Linear:
    torch.manual_seed(5)
    linear = Conv1D(D_OUT, D_IN) if form == "conv1d" else nn.Linear(D_IN, D_OUT, bias=bias)
    if linear.bias is not None:
        nn.init.normal_(linear.bias)
    nn.init.normal_(linear.weight, std=D_IN**-0.5)
    return linear.requires_grad_(requires_grad=False)


def rows_of(linear: Linear) -> Tensor:
    """[o, d]."""
    return linear.weight.T if isinstance(linear, Conv1D) else linear.weight


def module_of(kind: str, rank: int, d_in: int = D_IN, d_out: int = D_OUT) -> Module:
    match kind:
        case "lora":
            return LoraModule(d_in=d_in, d_out=d_out, rank=rank, alpha=2.0)
        case "rslora":
            return RsLoraModule(d_in=d_in, d_out=d_out, rank=rank, alpha=2.0)
        case "dora":
            return DoraModule(d_in=d_in, d_out=d_out, rank=rank, alpha=2.0)
        case "ia3 output":
            return Ia3Module(d_in=d_in, d_out=d_out, side="output")
        case "ia3 input":
            return Ia3Module(d_in=d_in, d_out=d_out, side="input")
    return BottleneckModule(
        d_in=d_in, d_out=d_out, rank=rank, alpha=2.0, activation="gelu" if kind == "gelu" else "relu"
    )


def make(kind: str, linear: Linear, *, rank: int = 3, seed: int = 0) -> tuple[ExpertModule, ReferenceExpert]:
    """One expert of a kind, fast and slow."""
    generator = torch.Generator().manual_seed(seed)
    widths = shape(linear)
    module = module_of(kind, rank, widths.d_in, widths.d_out)
    tensors = {name: torch.randn(*shape, generator=generator) for name, shape in module.tensors.items()}
    gate = torch.randn(widths.d_in, generator=generator)
    part = make_expert_module(PATH, module, tensors, linear, standardise(gate.double()).float(), torch.empty(0))
    a, b = torch.zeros(0, widths.d_in), torch.zeros(widths.d_out, 0)
    vector = None
    for name, tensor in tensors.items():
        match name:
            case "lora_A.weight" | "adapter_down.weight":
                a = tensor
            case "lora_B.weight" | "adapter_up.weight":
                b = tensor
            case _:
                vector = tensor.flatten()
    scaling = 2.0 / (rank**0.5 if kind == "rslora" else rank)
    return part, ReferenceExpert(a, b, scaling, gate, "lora" if kind == "rslora" else kind, vector)


def make_pool(kinds: tuple[str, ...], count: int, linear: Linear) -> tuple[ExpertPool, list[ReferenceExpert]]:
    pool, slow = ExpertPool(), []
    for number in range(count):
        part, expert = make(kinds[number % len(kinds)], linear, rank=1 + number % 5, seed=number)
        pool = pool.add(Expert(f"{number:064x}", f"e{number}", "", {PATH: part}))
        slow.append(expert)
    return pool, slow


def inputs(tokens: int) -> Tensor:
    return torch.randn(tokens, D_IN, generator=torch.Generator().manual_seed(tokens)) + 0.3


@pytest.mark.parametrize("form", ["linear", "conv1d"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [1, 6])
def test_one_expert_is_what_its_paper_says(kind: str, form: str, tokens: int) -> None:
    linear = linear_of(form)
    pool, (slow,) = make_pool((kind,), 1, linear)
    layer, u = RoutedLinear(PATH, linear), inputs(tokens)
    with torch.inference_mode(), routing(RoutingPlan(pool, SingleExpert(pool.find("e0")))):
        y = layer(u)
    weight, bias = rows_of(linear), linear.bias
    exact = torch.stack([weight.double() @ x + bias.double() + delta(slow, x, weight, bias) for x in u.double()])
    assert error(y, exact) <= 1e-6


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tokens", [1, 2, 9, 70])
@pytest.mark.parametrize("count", [2, 9, 40])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_a_pool_of_all_kinds_agrees_with_the_reference(tokens: int, count: int, k: int, bias: bool) -> None:  # noqa: FBT001 - a parameter of the test
    linear = linear_of("linear", bias=bias)
    pool, slow = make_pool(KINDS, count, linear)
    layer, u = RoutedLinear(PATH, linear), inputs(tokens)
    with torch.inference_mode(), routing(RoutingPlan(pool, Phatgoose(k))):
        y = layer(u)
    assert error(y[-20:], route(u[-20:], linear.weight, linear.bias, slow, k).y) <= 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_a_pool_of_one_kind_agrees_with_the_reference(kind: str) -> None:
    linear = linear_of("linear")
    pool, slow = make_pool((kind,), 20, linear)
    layer, u = RoutedLinear(PATH, linear), inputs(12)
    with torch.inference_mode(), routing(RoutingPlan(pool, Phatgoose(2))):
        y = layer(u)
    assert error(y, route(u, linear.weight, linear.bias, slow, 2).y) <= 1e-6


@pytest.mark.parametrize("seed", range(20))
def test_whatever_the_widths_the_ranks_and_who_leaves_the_module_alone(seed: int) -> None:
    draw = random.Random(seed)
    d_in, d_out, count, k = (
        draw.randint(3, 90),
        draw.randint(3, 90),
        draw.choice((1, 2, 5, 30, 200)),
        draw.randint(1, 9),
    )
    torch.manual_seed(seed)
    linear = nn.Linear(d_in, d_out, bias=draw.random() < 0.5).requires_grad_(requires_grad=False)
    pool, slow = ExpertPool(), list[ReferenceExpert]()
    for number in range(count):
        rank = draw.randint(1, min(d_in, d_out, 9))
        part, expert = make(draw.choice(KINDS), linear, rank=rank, seed=1000 * seed + number)
        here = number == 0 or draw.random() < 0.7
        pool = pool.add(Expert(f"{number:064x}", f"e{number}", "", {PATH if here else "elsewhere": part}))
        slow += [expert] if here else []
    u = torch.randn(draw.choice((1, 3, 20)), d_in) * draw.choice((0.1, 1, 10)) + draw.choice((0, 0.5))
    with torch.inference_mode(), routing(RoutingPlan(pool, Phatgoose(k))):
        y = RoutedLinear(PATH, linear)(u)
    assert error(y, route(u, linear.weight, linear.bias, slow, k).y) <= 1e-6


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tokens", [2, 30])
def test_every_way_knows_what_stands_between_the_factors(way: str, tokens: int) -> None:
    linear = linear_of("linear", bias=False)
    pool, slow = ExpertPool(), list[ReferenceExpert]()
    for number, kind in enumerate(("relu", "lora", "gelu") * 4):
        part, expert = make(kind, linear, rank=4, seed=number)
        pool, slow = pool.add(Expert(f"{number:064x}", f"e{number}", "", {PATH: part})), [*slow, expert]
    module, u = pool.modules[PATH], inputs(tokens)
    assert way in offered(module, u) or tokens > 8
    choice = Phatgoose(2).choose(module, u)
    assert isinstance(choice, Choice)
    y = linear(u)
    WAYS[way](module, u, choice, y)
    assert error(y, route(u, linear.weight, None, slow, 2).y) <= 1e-6


def test_experts_without_factors_keep_out_of_the_grouped_product() -> None:
    pool, _ = make_pool(("lora", "ia3 output"), 4, linear_of("linear"))
    assert "grouped" not in offered(pool.modules[PATH], inputs(20))


def test_merged_is_the_mean_of_what_all_add() -> None:
    linear = linear_of("linear")
    pool, slow = make_pool(KINDS, 9, linear)
    layer, u = RoutedLinear(PATH, linear), inputs(5)
    with torch.inference_mode(), routing(RoutingPlan(pool, Merged())):
        y = layer(u)
    exact = torch.stack(
        [linear.weight.double() @ x + linear.bias.double()
         + sum(delta(expert, x, linear.weight, linear.bias) for expert in slow) / 9 for x in u.double()]
    )  # fmt: skip
    assert error(y, exact) <= 1e-6


@pytest.mark.parametrize("tokens", [1, 7])
def test_a_plain_generation_stays_what_it_was_when_other_kinds_come(tokens: int) -> None:
    linear = linear_of("linear")
    old, _ = make_pool(("lora",), 5, linear)
    layer, u = RoutedLinear(PATH, linear), inputs(tokens)

    def answer(pool: ExpertPool) -> Tensor:
        with torch.inference_mode(), routing(RoutingPlan(pool, Phatgoose(2))):
            y: Tensor = layer(u)
        return y

    before, grown = answer(old), old
    for number in range(40):  # across pages of vectors
        part, _ = make(KINDS[2 + number % 5], linear, seed=100 + number)
        grown = grown.add(Expert(f"{number:x>64}", f"n{number}", "", {PATH: part}))
        assert torch.equal(answer(old), before)
    assert old.modules[PATH].plain
    assert not grown.modules[PATH].plain
    shrunk = grown
    for number in range(40):
        shrunk = shrunk.remove(f"{number:x>64}")
    torch.testing.assert_close(answer(shrunk), before)


def test_vectors_of_many_experts_stay_where_they_are() -> None:
    linear = linear_of("linear")
    pool, _ = make_pool(("ia3 output",), 3, linear)
    first = pool.modules[PATH].part(0).scales
    assert first is not None
    assert first.outer is not None
    place, kept = first.outer.data_ptr(), first.outer.clone()
    grown, slow = make_pool(("ia3 output", "dora"), 90, linear)
    for expert in grown.experts:
        if expert.digest not in {each.digest for each in pool.experts}:
            pool = pool.add(expert)
    again = pool.modules[PATH].part(0).scales
    assert again is not None
    assert again.outer is not None
    assert (again.outer.data_ptr(), torch.equal(again.outer, kept)) == (place, True)
    layer, u = RoutedLinear(PATH, linear), inputs(30)
    with torch.inference_mode(), routing(RoutingPlan(grown, Phatgoose(3))):
        y = layer(u)
    assert error(y, route(u, linear.weight, linear.bias, slow, 3).y) <= 1e-6


@pytest.mark.parametrize("way", WAYS)
def test_what_is_not_chosen_reaches_nothing(way: str) -> None:
    linear = linear_of("linear")
    pool, _ = make_pool(("lora",), 3, linear)
    for number, kind in enumerate(KINDS[2:]):
        part, _ = make(kind, linear)
        scales = part.scales and type(part.scales)(*(v if v is None else v * torch.inf for v in part.scales))
        bad = ExpertModule(torch.full_like(part.a, torch.nan), part.b, 1.0, part.gate, part.activation, scales)
        pool = pool.add(Expert(f"{number:x>64}", f"bad{number}", "", {PATH: bad}))
    u, choice = inputs(3), Choice(torch.tensor([[0, 1], [1, 2], [2, 0]]), torch.full((3, 2), 0.5))
    y = torch.zeros(3, D_OUT)
    if way in offered(pool.modules[PATH], u):
        WAYS[way](pool.modules[PATH], u, choice, y)
    assert add_scaled(pool.modules[PATH], linear, u, choice, y).isfinite().all()


def test_a_token_that_meets_no_input_scale_costs_no_second_product() -> None:
    linear = linear_of("linear")
    pool, _ = make_pool(("lora", "ia3 input"), 4, linear)
    seen: list[int] = []

    class Counting(nn.Linear):
        def forward(self, u: Tensor) -> Tensor:
            seen.append(len(u))
            return super().forward(u)

    counting = Counting(D_IN, D_OUT)
    counting.load_state_dict(linear.state_dict())
    choice = Choice(torch.tensor([[0, 2], [0, 1], [2, 0], [3, 1]]), torch.full((4, 2), 0.5))
    add_scaled(pool.modules[PATH], counting, inputs(4), choice, torch.zeros(4, D_OUT))
    assert seen == [2]


@pytest.mark.parametrize("tokens", [1, 5])
def test_bfloat16_is_as_near_as_bfloat16_can_be(tokens: int) -> None:
    linear = linear_of("linear")
    exact_pool, _ = make_pool(KINDS, 14, linear)
    u = inputs(tokens).bfloat16()
    with torch.inference_mode(), routing(RoutingPlan(exact_pool, Phatgoose(3))):
        exact = RoutedLinear(PATH, linear)(u.float())
    pool = ExpertPool()
    for expert in exact_pool.experts:
        part = expert.modules[PATH]
        half = ExpertModule(part.a.bfloat16(), part.b.bfloat16(), part.scaling, part.gate, part.activation, part.scales)
        pool = pool.add(Expert(expert.digest, expert.name, "", {PATH: half}))
    with torch.inference_mode(), routing(RoutingPlan(pool, Phatgoose(3))):
        y = RoutedLinear(PATH, linear.bfloat16())(u)
    assert y.dtype == torch.bfloat16
    assert (y.float() - exact).abs().max() / exact.abs().max() < 3e-2


@pytest.mark.parametrize("form", ["linear", "conv1d"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_gate_opens_the_whole_expert(kind: str, form: str) -> None:
    linear = linear_of(form)
    part, slow = make(kind, linear)
    layer, u = GatedExpert(linear, part), inputs(4).requires_grad_()
    layer.gate.data = torch.randn(D_IN, generator=torch.Generator().manual_seed(9)) / 3
    y = layer(u)
    weight, bias, v = rows_of(linear), linear.bias, layer.gate.detach().double()
    exact = torch.stack(
        [weight.double() @ x + bias.double() + delta(slow, x, weight, bias) * torch.sigmoid(v @ x)
         for x in u.detach().double()]
    )  # fmt: skip
    assert error(y.detach(), exact) <= 1e-6
    y.sum().backward()
    assert layer.gate.grad is not None
    assert u.grad is not None  # gates of earlier modules learn through it
    assert layer.gate.grad.abs().min() > 0


def test_dora_over_a_row_of_length_zero_is_refused() -> None:
    linear = linear_of("linear")
    linear.weight[3] = 0
    module = module_of("dora", 2)
    tensors = {name: torch.ones(shape) for name, shape in module.tensors.items()}
    tensors["lora_B.weight"].zero_()
    with pytest.raises(Refused, match="length near zero") as refused:
        make_expert_module(PATH, module, tensors, linear, torch.zeros(D_IN), torch.empty(0))
    assert refused.value.code is Code.NOT_FINITE


@pytest.mark.parametrize(
    "weight", [torch.empty(D_OUT, D_IN, device="meta"), torch.ones(D_OUT * D_IN // 2, 1, dtype=torch.uint8)]
)
def test_dora_over_weights_that_cannot_be_read_is_refused(weight: Tensor) -> None:
    linear = linear_of("linear")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    module = module_of("dora", 2)
    tensors = {name: torch.ones(shape) for name, shape in module.tensors.items()}
    with pytest.raises(Refused, match=f"needs the base's weights at {PATH}") as refused:
        make_expert_module(PATH, module, tensors, linear, torch.zeros(D_IN), torch.empty(0))
    assert refused.value.code is Code.KIND_UNSUPPORTED


def test_one_token_of_a_plain_pool_takes_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    linear, calls = linear_of("linear"), []
    monkeypatch.setattr(experts_cpu, "add_one", lambda *_: calls.append("one"))
    for kinds in (("lora", "rslora"), ("lora", "relu")):
        pool, _ = make_pool(kinds, 4, linear)
        with torch.inference_mode(), routing(RoutingPlan(pool, Phatgoose(2))):
            RoutedLinear(PATH, linear)(inputs(1))
    assert calls == ["one"]
