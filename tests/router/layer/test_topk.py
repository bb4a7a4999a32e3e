"""Which experts are chosen: ties, large means, modules that share an input."""

import dataclasses
import math
import weakref

import pytest
import torch

from router.base.module_paths import shared_input
from router.layer.choice import Choice, CommonChoice
from router.layer.topk import choose_topk
from router.methods.phatgoose import Phatgoose
from router.pool.expert import Expert
from router.pool.expert_module import ExpertModule
from router.pool.group_view import RouteGroup
from router.pool.pool import ExpertPool
from tests.router.experts import PATH, SIBLINGS, as_lists, make_experts, pool_of, siblings
from tests.router.reference import route

D = 64


@pytest.mark.parametrize("tokens", [1, 9])
@pytest.mark.parametrize("ratio", [0, 1, 3, 30, 300, 3000])
@pytest.mark.parametrize("count", [5, 166])
def test_large_means_change_no_choice(tokens: int, ratio: int, count: int) -> None:
    pool, slow = make_experts(count, D, 8)
    u = torch.randn(tokens, D, generator=torch.Generator().manual_seed(count)) + ratio
    exact = route(u, torch.zeros(8, D), None, slow, 2)
    experts, weights = as_lists(choose_topk(pool.modules[PATH].group, u, 2)[0])
    for row in range(tokens):
        if exact.gaps[row] > 1e-5:
            assert experts[row] == exact.experts[row]
            assert weights[row] == pytest.approx(exact.weights[row], abs=1e-5 if ratio > 100 else 1e-6)


@pytest.mark.parametrize("tokens", [1, 9])
@pytest.mark.parametrize("count", [3, 7, 300])
def test_ties_go_to_whoever_came_first(tokens: int, count: int) -> None:
    gate = torch.randn(D, generator=torch.Generator().manual_seed(0))
    pool = pool_of([-gate, *[gate] * count])
    experts, weights = as_lists(choose_topk(pool.modules[PATH].group, gate.repeat(tokens, 1), 2)[0])
    assert experts == [[1, 2]] * tokens
    # One token's products with equal gates may be a last bit apart.
    assert weights == [[pytest.approx(0.5, rel=0, abs=0 if tokens > 1 else 1e-6)] * 2] * tokens


@pytest.mark.parametrize("tokens", [1, 9])
def test_a_constant_gate_scores_zero(tokens: int) -> None:
    gate = torch.randn(D, generator=torch.Generator().manual_seed(0))
    pool = pool_of([-gate, torch.full((D,), 7.0), gate])
    assert as_lists(choose_topk(pool.modules[PATH].group, gate.repeat(tokens, 1), 2)[0])[0] == [[2, 1]] * tokens


@pytest.mark.parametrize("tokens", [1, 9])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_broken_activation_gives_no_finite_answer(tokens: int, value: float) -> None:
    pool, _ = make_experts(5, D, 8)
    u = torch.randn(tokens, D)
    u[0, 3] = value
    assert all(math.isnan(weight) for weight in as_lists(choose_topk(pool.modules[PATH].group, u, 2)[0])[1][0])


@pytest.mark.parametrize("tokens", [2, 9])
@pytest.mark.parametrize("count", [4, 12, 100])
def test_a_broken_activation_gets_nobody_who_is_not_there(tokens: int, count: int) -> None:
    whole = pool_of([torch.randn(D) for _ in range(count)], "a.q", "a.k").experts
    u = torch.randn(tokens, D)
    u[0] = torch.nan
    for absent in range(0, count, 1 + count // 16):
        pool = ExpertPool()
        for at, expert in enumerate(whole):
            parts = {path: part for path, part in expert.modules.items() if path == "a.q" or at != absent}
            pool = pool.add(dataclasses.replace(expert, modules=parts))
        module = pool.modules["a.k"]
        experts, _ = as_lists(Phatgoose(2).choose(module, u))
        assert {row for chosen in experts for row in chosen} <= set(module.rows)


def test_scores_are_held_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, _ = make_experts(20, D, 8, absent=3)
    u, group = torch.randn(50, D), pool.modules[PATH].group
    whole = choose_topk(group, u, 2)[0]
    monkeypatch.setattr("router.layer.topk._SCORES", 21 * 8)
    pieces = choose_topk(group, u, 2)[0]
    assert isinstance(whole, Choice)
    assert isinstance(pieces, Choice)
    assert torch.equal(whole.experts, pieces.experts)
    torch.testing.assert_close(whole.weights, pieces.weights)


def test_pages_of_gates_are_one_to_the_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.pool.pages._FIRST_GATES", 3)
    pool, slow = make_experts(20, D, 8)
    assert len(pool.modules[PATH].group.blocks) > 2
    for tokens in (1, 9):
        u = torch.randn(tokens, D)
        exact = route(u, torch.zeros(8, D), None, slow, 3)
        assert as_lists(choose_topk(pool.modules[PATH].group, u, 3)[0])[0] == exact.experts


def test_names_tell_who_reads_the_same_input() -> None:
    attention = "encoder.block.0.layer.0.SelfAttention."
    assert shared_input(attention + "k") == tuple(attention + name for name in "qkv")
    crossed = "decoder.block.0.layer.1.EncDecAttention."
    assert shared_input(crossed + "q") == (crossed + "q",)
    assert shared_input(crossed + "v") == (crossed + "k", crossed + "v")
    for name in ("encoder_attn", "cross_attn", "cross_attention", "crossattention"):
        crossed = f"model.decoder.layers.0.{name}."
        assert shared_input(crossed + "q_proj") == (crossed + "q_proj",)
        assert shared_input(crossed + "k_proj") == (crossed + "k_proj", crossed + "v_proj")
    assert shared_input("model.layers.3.mlp.up_proj") == tuple(
        f"model.layers.3.mlp.{name}_proj" for name in ("gate", "up")
    )
    assert shared_input(attention + "o") == (attention + "o",)
    assert shared_input("lonely") == ("lonely",)


def test_modules_of_other_widths_share_nothing_whatever_their_names_promise() -> None:
    def part(d: int) -> ExpertModule:
        return ExpertModule(torch.randn(1, d), torch.randn(4, 1), 1.0, torch.randn(d))

    pool = ExpertPool()
    for number in range(3):
        pool = pool.add(Expert(f"{number:064x}", f"e{number}", "", {"a.q": part(D), "a.k": part(48), "a.v": part(48)}))
    q, k, v = (pool.modules[path] for path in ("a.q", "a.k", "a.v"))
    assert q.group is not k.group is v.group
    assert [len(module) for module in (q, k, v)] == [3, 3, 3]
    method = Phatgoose(2)
    for module, d in ((q, D), (k, 48), (v, 48)):
        assert method.choose(module, torch.randn(2, d)) is not None


@pytest.mark.parametrize("tokens", [1, 9])
def test_a_group_decides_for_each_module_by_itself(tokens: int) -> None:
    pool, slow = siblings(30, D, 4)
    u = torch.randn(tokens, D, generator=torch.Generator().manual_seed(tokens))
    method = Phatgoose(2)
    for path in SIBLINGS:
        module = pool.modules[path]
        experts, _ = as_lists(method.choose(module, u))
        exact = route(u, torch.zeros(4, D), None, slow[path], 2)
        assert [[module.rows.index(row) for row in chosen] for chosen in experts] == exact.experts


def test_modules_that_share_an_input_share_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = pool_of([torch.randn(D) for _ in range(4)], *SIBLINGS)
    calls = []

    def counted(group: RouteGroup, u: torch.Tensor, k: int, temperature: float) -> list[Choice | CommonChoice | None]:
        calls.append(u)
        return choose_topk(group, u, k, temperature)

    monkeypatch.setattr("router.methods.phatgoose.choose_topk", counted)
    method, u, other = Phatgoose(2), torch.randn(3, D), torch.randn(3, D)
    for path in SIBLINGS:
        method.choose(pool.modules[path], u)
    assert len(calls) == 1
    # A name promised too much: k is given another tensor. Or the tensor was written over.
    method.choose(pool.modules["a.q"], u)
    method.choose(pool.modules["a.k"], other)
    method.choose(pool.modules["a.k"], other.neg_())
    assert len(calls) == 4


@pytest.mark.parametrize("tokens", [1, 9])
@pytest.mark.parametrize("count", [3, 7, 64, 1000])
def test_of_equals_at_the_cut_the_first_is_taken(tokens: int, count: int) -> None:
    # One feature alone, so that equal gates have equal products wherever they stand in a matrix.
    best, other, u = (torch.zeros(D) for _ in range(3))
    best[3], other[3:6], u[3] = 1, 1, 1
    pool = pool_of([-best, *[other] * count, best])
    experts, _ = as_lists(choose_topk(pool.modules[PATH].group, u.repeat(tokens, 1), 2)[0])
    assert experts == [[count + 1, 1]] * tokens


@pytest.mark.parametrize("tokens", [1, 9])
@pytest.mark.parametrize("size", [1e-2, 3e-3, 1e-4])
def test_a_quiet_token_is_weighed_as_the_formula_says(tokens: int, size: float) -> None:
    pool, slow = make_experts(5, D, 8)
    u = size * torch.randn(tokens, D, generator=torch.Generator().manual_seed(tokens))
    exact = route(u, torch.zeros(8, D), None, slow, 2)
    _, weights = as_lists(choose_topk(pool.modules[PATH].group, u, 2)[0])
    for found, wanted in zip(weights, exact.weights, strict=True):
        assert found == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("tokens", [1, 9])
def test_whoever_leaves_a_module_alone_is_not_its_best_among_the_unwilling(tokens: int) -> None:
    u = torch.randn(D, generator=torch.Generator().manual_seed(0))
    pool = ExpertPool()
    for number, expert in enumerate(pool_of([u, -u, -u + 0.1 * torch.randn(D)], "a.q", "a.k").experts):
        parts = {path: part for path, part in expert.modules.items() if path == "a.q" or number}
        pool = pool.add(dataclasses.replace(expert, modules=parts))
    # Scores of those who are there are below zero, which is what a place without a gate would score.
    experts, _ = as_lists(Phatgoose(1).choose(pool.modules["a.k"], u.repeat(tokens, 1)))
    assert {row for (row,) in experts} <= {1, 2}


def test_a_decision_is_for_one_generation_and_holds_no_activation() -> None:
    gates, u = torch.randn(4, D), torch.randn(3, D)
    old = pool_of([*gates, -u[0], -u[0]], "a.q", "a.k")
    new = old.add(dataclasses.replace(pool_of([u[0]], "a.q", "a.k").experts[0], digest="f" * 64))
    method = Phatgoose(1)
    method.choose(old.modules["a.q"], u)
    found = method.choose(new.modules["a.k"], u)
    assert as_lists(found)[0][0] == [6]
    method.choose(new.modules["a.q"], u)
    held = weakref.ref(u)
    del u
    assert held() is None
