"""Every method that scores for itself, against a slow float64 answer written from its paper."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from protocol.errors import Code, Refused
from router.layer.routed_linear import routing
from router.methods import METHODS
from router.methods.context import MethodContext
from router.methods.lag import Lag
from router.methods.registry import resolve
from router.pool.expert import Expert
from router.pool.expert_module import ExpertModule
from router.pool.pool import ExpertPool
from router.pool.prototypes import Direction, first_direction
from tests.router.experts import PATH, make_experts, make_layer
from tests.router.reference import ReferenceExpert

D, O = 32, 24  # noqa: E741 - the letter of the formulas
TOLD = ("average-activation", "retrieval", "nnls-request", "nnls-cautious", "nnls-token", "nnls-gates")
BY_WEIGHTS = [name for name in METHODS if ":" not in name and name not in TOLD]
"""Methods that need nothing but weights and gates."""
Scores = Callable[[Tensor, Sequence[Tensor]], list[float]]


def update(expert: ReferenceExpert) -> Tensor:
    return expert.scaling * expert.b.double() @ expert.a.double()


def main_direction(matrix: Tensor) -> Tensor:
    return torch.linalg.svd(matrix.double())[2][0]


def arrow_scores(u: Tensor, updates: Sequence[Tensor]) -> list[float]:
    return [abs(float(main_direction(matrix) @ u)) for matrix in updates]


def spectr_scores(u: Tensor, updates: Sequence[Tensor]) -> list[float]:
    found = []
    for matrix in updates:
        _, lengths, directions = torch.linalg.svd(matrix, full_matrices=False)
        found.append(math.sqrt(float(((lengths * (directions @ u)) ** 2).sum())))
    return found


def ranked(scores: Sequence[float]) -> list[int]:
    return sorted(range(len(scores)), key=lambda z: (-scores[z], z))


def shares(scores: Sequence[float], temperature: float) -> list[float]:
    exponents = [math.exp((score - scores[0]) / temperature) for score in scores]
    return [value / sum(exponents) for value in exponents]


def top_k(u: Tensor, updates: Sequence[Tensor], scores: Scores, k: int, temperature: float) -> dict[int, float]:
    """Experts and weights of one token."""
    found = scores(u, updates)
    best = ranked(found)[:k]
    return dict(zip(best, shares([found[z] for z in best], temperature), strict=True))


def routed(pool: ExpertPool, method: str, u: Tensor, k: int = 2, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """What the layer adds to the base, and the base."""
    layer = make_layer(D, O)
    (plan,) = resolve(method, MethodContext(pool, ["x"], k, temperature))
    plain = layer(u)
    with routing(plan):
        return layer(u).double() - plain.double(), plain


def agrees(found: Tensor, expected: Sequence[Tensor], plain: Tensor) -> bool:
    exact = torch.stack(list(expected)).view_as(found)
    return bool((found - exact).abs().max() <= 2e-6 * (exact + plain).abs().max())


@pytest.mark.parametrize("tokens", [1, 17])
@pytest.mark.parametrize("count", [1, 2, 9, 60])
@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize(("method", "scores"), [("arrow", arrow_scores), ("spectr", spectr_scores)])
def test_scores_by_the_update_itself(tokens: int, count: int, k: int, method: str, scores: Scores) -> None:
    # Ranks 1 to 7, five alphas, every third expert absent, fewer experts than k.
    pool, slow = make_experts(count, D, O, absent=3 if count > 3 else 0, seed=count)
    u = torch.randn(1, tokens, D, generator=torch.Generator().manual_seed(tokens)) * 2
    updates = [update(expert) for expert in slow]
    expected = []
    for token in u[0].double():
        weights = top_k(token, updates, scores, k, 0.7)
        expected.append(sum((w * updates[z] @ token for z, w in weights.items()), torch.zeros(O, dtype=torch.float64)))
    assert agrees(*insert(routed(pool, method, u, k, 0.7), expected))


def insert(found: tuple[Tensor, Tensor], expected: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor], Tensor]:
    return found[0], expected, found[1]


@pytest.mark.parametrize("tokens", [1, 17])
@pytest.mark.parametrize(("count", "filtered"), [(1, 20), (9, 20), (60, 20), (60, 3)])
def test_lag_ranks_what_arrow_lets_through(tokens: int, count: int, filtered: int) -> None:
    pool, slow = make_experts(count, D, O, absent=3 if count > 3 else 0, seed=count)
    u = torch.randn(tokens, D, generator=torch.Generator().manual_seed(tokens))
    updates = [update(expert) for expert in slow]
    module = pool.modules[PATH]
    choice = Lag(filtered).choose(module, u)
    assert choice is not None
    assert choice.weights.tolist() == [[1.0]] * tokens
    for token, (row,) in zip(u.double(), choice.experts.tolist(), strict=True):
        passed = sorted(ranked(arrow_scores(token, updates))[:filtered])
        norms = spectr_scores(token, [updates[z] for z in passed])
        assert module.rows.index(row) == passed[ranked(norms)[0]]


@pytest.mark.parametrize("tokens", [1, 17])
@pytest.mark.parametrize("general", [["e1"], ["e4", "c/e2"], ["e0", "e3", "e5"]])
def test_general_knowledge_is_taken_off(tokens: int, general: list[str]) -> None:
    # e0, e3 and e6 leave the module alone: as general experts they count as zeros there.
    pool, slow = make_experts(9, D, O, absent=3)
    known = dict(zip((1, 2, 4, 5, 7, 8), (update(expert) for expert in slow), strict=True))
    numbers = [int(name[-1]) for name in general]
    mean = sum((known[n] for n in numbers if n in known), torch.zeros(O, D, dtype=torch.float64)) / len(numbers)
    rest = [known[n] - mean for n in known if n not in numbers]
    u = torch.randn(tokens, D)
    expected = []
    for token in u.double():
        weights = top_k(token, rest, arrow_scores, 2, 1.0)
        expected.append(sum((w * rest[z] @ token for z, w in weights.items()), torch.zeros(O, dtype=torch.float64)))
    assert agrees(*insert(routed(pool, f"genknowsub:{','.join(general)}", u), expected))


def test_general_experts_may_be_alone_at_one_of_several_siblings() -> None:
    def part() -> ExpertModule:
        return ExpertModule(torch.randn(1, D), torch.randn(O, 1), 1.0, torch.randn(D))

    pool = ExpertPool()
    for number, paths in enumerate((("a.q", "a.k", "a.v"), ("a.q", "a.v"), ("a.q", "a.v"))):
        pool = pool.add(Expert(f"{number:064x}", f"e{number}", "", {path: part() for path in paths}))
    (plan,) = resolve("genknowsub:e0", MethodContext(pool, ["x"], 2, 1.0))
    for u in torch.randn(2, 3, D):
        found = {path: plan.method.choose(pool.modules[path], u) for path in ("a.q", "a.k", "a.v")}
        assert [choice is None for choice in found.values()] == [False, True, False]


def test_uniform_counts_absent_experts_and_merged_does_not() -> None:
    pool, slow = make_experts(9, D, O, absent=3)
    u = torch.randn(5, D)
    total = sum((update(expert) for expert in slow), torch.zeros(O, D, dtype=torch.float64))
    assert agrees(*insert(routed(pool, "uniform", u), list(u.double() @ total.T / 9)))
    assert agrees(*insert(routed(pool, "merged", u), list(u.double() @ total.T / 6)))


def test_parameters_are_averaged_with_zeros_for_what_is_not_there() -> None:
    pool, slow = make_experts(9, D, O, absent=3)
    a, b = torch.zeros(7, D, dtype=torch.float64), torch.zeros(O, 7, dtype=torch.float64)
    for expert in slow:
        for r in range(len(expert.a)):
            a[r] += expert.a[r].double() / len(slow)
            b[:, r] += expert.scaling * expert.b[:, r].double() / len(slow)
    u = torch.randn(5, D)
    assert agrees(*insert(routed(pool, "parameter-average", u), list(u.double() @ (b @ a).T)))
    (first,), (again,) = (resolve("parameter-average", MethodContext(pool, ["x"])) for _ in range(2))
    assert first.pool is again.pool


def test_a_direction_is_exact_and_never_dense() -> None:
    pool, slow = make_experts(5, D, O)
    for expert, exact in zip(pool.experts, slow, strict=True):
        found = Direction()(expert, PATH)
        assert found is not None
        assert abs(float(found.double() @ main_direction(update(exact)))) == pytest.approx(1, abs=1e-6)
    wide = ExpertModule(torch.randn(4, 20000), torch.randn(20000, 4), 1.0, torch.zeros(20000))
    assert first_direction([(wide, 1.0)]).norm() == pytest.approx(1, abs=1e-5)


def test_an_update_of_zero_points_nowhere() -> None:
    part = make_experts(1, D, O)[0].experts[0].modules[PATH]
    nothing = ExpertModule(part.a, torch.zeros_like(part.b), 1.0, part.gate)
    assert not first_direction([(nothing, 1.0)]).any()
    assert not first_direction([(part, 1.0), (part, -1.0)]).any()


def test_prototypes_are_worked_out_once_an_expert(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def counted(_self: Direction, expert: Expert, _path: str) -> Tensor:
        asked.append(expert.name)
        return torch.ones(D)

    monkeypatch.setattr(Direction, "__call__", counted)
    pool, _ = make_experts(5, D, O)
    group, direction = pool.modules[PATH].group, Direction()
    assert len(group.by(direction).blocks[0]) == len(group.by(direction).blocks[0]) == 6
    assert asked == ["e0", "e1", "e2", "e3", "e4"]
    grown = pool.add(Expert("f" * 64, "new", "", {PATH: pool.experts[0].modules[PATH]}))
    assert len(grown.modules[PATH].group.by(direction).blocks[0]) == 7
    assert asked[5:] == ["new"]
    assert len(group.by(direction).blocks[0]) == 6


def test_what_a_generation_works_out_for_other_vectors_outlives_a_call() -> None:
    pool, _ = make_experts(5, D, O)
    group, direction = pool.modules[PATH].group, Direction()
    assert group.by(direction) is group.by(Direction())
    for expert in pool.experts:
        group.by(Direction((expert,)))
    assert group.by(Direction((pool.experts[4],))) is group.by(Direction((pool.experts[4],)))
    assert len(group._by) == 4


@pytest.mark.parametrize("method", ["arrow", "spectr", "lag", "genknowsub:e4"])
@pytest.mark.parametrize("tokens", [1, 6])
def test_equal_experts_are_taken_in_order(method: str, tokens: int) -> None:
    # One feature alone counts, so that equal experts have equal scores to the last bit.
    part = ExpertModule(torch.eye(1, D), torch.ones(O, 1), 1.0, torch.zeros(D))
    pool = ExpertPool()
    for number in range(5):
        pool = pool.add(Expert(f"{number:064x}", f"e{number}", "", {PATH: part}))
    general = ExpertModule(torch.eye(2, D)[1:], torch.ones(O, 1), 1.0, torch.zeros(D))
    pool = pool.remove(pool.experts[4].digest).add(Expert("f" * 64, "e4", "", {PATH: general}))
    (plan,) = resolve(method, MethodContext(pool, ["x"]))
    choice = plan.method.choose(pool.modules[PATH], torch.randn(tokens, D).abs() + torch.eye(1, D) * 9)
    assert choice is not None
    rows = choice.experts if isinstance(choice.experts, list) else choice.experts[0].tolist()
    assert rows[:2] == ([0] if method == "lag" else [0, 1])


@pytest.mark.parametrize("method", BY_WEIGHTS)
@pytest.mark.parametrize("tokens", [1, 6])
def test_every_method_survives_removal_and_an_empty_pool(method: str, tokens: int) -> None:
    pool, _ = make_experts(6, D, O, absent=4)
    fewer = ExpertPool()
    for expert in pool.experts[1:4]:
        fewer = fewer.add(expert)
    u = torch.randn(tokens, D)
    routed(pool, method, u)
    for expert in (pool.experts[0], *pool.experts[4:]):
        pool = pool.remove(expert.digest)
    torch.testing.assert_close(routed(pool, method, u)[0], routed(fewer, method, u)[0], rtol=1e-5, atol=1e-5)
    for expert in pool.experts:
        pool = pool.remove(expert.digest)
    assert not routed(pool, method, u)[0].any()


@pytest.mark.parametrize(
    ("method", "code"),
    [
        ("genknowsub:nobody", Code.EXPERT_UNKNOWN),
        ("genknowsub:e0,", Code.EXPERT_UNKNOWN),
        ("genknowsub:e0,e1,e2", Code.EXPERTS_EXHAUSTED),
        ("genknowsub", Code.METHOD_UNKNOWN),
        ("arrow:x", Code.METHOD_UNKNOWN),
    ],
)
def test_arguments_are_checked(method: str, code: Code) -> None:
    with pytest.raises(Refused) as refused:
        resolve(method, MethodContext(make_experts(3, D, O)[0], ["x"]))
    assert refused.value.code is code


@pytest.mark.parametrize("method", ["arrow", "spectr", "lag", "genknowsub:e1", "parameter-average"])
def test_updates_that_are_no_matrix_are_refused_unless_denied(method: str) -> None:
    pool, _ = make_experts(3, D, O)
    part = pool.experts[0].modules[PATH]
    bent = ExpertModule(part.a, part.b, part.scaling, part.gate, "relu")
    pool = pool.add(Expert("f" * 64, "bent", "", {PATH: bent}))
    with pytest.raises(Refused, match=r"another kind: bent\.") as refused:
        resolve(method, MethodContext(pool, ["x"]))
    assert refused.value.code is Code.KIND_UNSUPPORTED
    u, straight = torch.randn(4, D), make_experts(3, D, O)[0]
    found, expected = (routed(each, method, u)[0] for each in (pool.allowing(None, ["bent"]), straight))
    torch.testing.assert_close(found, expected)


def test_no_expert_at_all_is_the_base_for_every_method() -> None:
    for method in BY_WEIGHTS:
        assert not routed(ExpertPool(), method, torch.randn(3, D))[0].any()
