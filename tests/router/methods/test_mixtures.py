"""Requests as mixtures of experts, against slow float64 answers written from the formulas."""

import io
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor

from protocol.errors import Code, Refused
from protocol.signing import Identity
from protocol.spec import Means, Statistics
from router.base.linear import linear_modules
from router.base.loading import Base, load_base
from router.base.module_paths import reads_input
from router.base.tokens import encode_input
from router.layer.routed_linear import routing
from router.methods.features.activations import Reader
from router.methods.features.covariance import DIRECTIONS, spread_of
from router.methods.features.mixture import RIDGE, Shares, familiar
from router.methods.features.nnls import Floats
from router.methods.nnls_request import found_mass, request_weights, wider
from router.model.planner import plan
from router.model.routed_model import RoutedModel
from router.pool.expert import Expert
from router.pool.pool import ExpertPool
from router.query.request import RoutingChoice
from tests import factories

KINDS = ["reverse it : a b c d", "say x y z", "copy ; copy now", "rotate please : k l m n o", "cipher cipher cipher"]
"""One text an expert was trained on, as it were."""
INPUTS = ["reverse it : a b", "say z", "rotate please : l l copy ; copy", "please now it"]
METHODS = ["nnls-request", "nnls-cautious", "nnls-fixed:1.5", "nnls-token", "nnls-gates"]


@pytest.fixture(params=["t5_base", "llama_base", "gpt2_base"])
def base(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


@pytest.fixture(autouse=True)
def few_public_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.methods.features.background.TEXTS", 80)


@pytest.fixture
def model(base: Path, identity: Identity, tmp_path: Path) -> RoutedModel:
    """Experts of which each was trained on one text."""
    pool = factories.make_pool(base, identity)
    bundles = [
        factories.make_bundle(
            tmp_path / name, pool, identity, name=name, seed=number, statistics=Statistics(means=Means())
        )
        for number, name in enumerate("abcde")
    ]
    model = RoutedModel.from_bundles(str(base), bundles, device="cpu")
    plain = load_base(str(base), device="cpu")
    texts = iter(KINDS)
    return with_means(model, lambda expert: {**expert.means, **pooled(plain, next(texts), list(expert.modules))})


def with_means(model: RoutedModel, means: Callable[[Expert], Mapping[str, Tensor]]) -> RoutedModel:
    changed = ExpertPool()
    for expert in model.generation.pool.experts:
        changed = changed.add(replace(expert, means=means(expert)))
    model.generation = replace(model.generation, pool=changed)
    return model


def pooled(base: Base, text: str, paths: Sequence[str]) -> dict[str, Tensor]:
    """The mean over a text's tokens of what enters every module that sees it; the slow answer: one text alone."""
    found: dict[str, Tensor] = {}

    def look(_module: object, inputs: tuple[Tensor, ...], *, path: str) -> None:
        if base.architecture == "decoder-only" or reads_input(path):
            found[path] = inputs[0][0].double().mean(0).float()

    hooks = [base.model.get_submodule(path).register_forward_pre_hook(partial(look, path=path)) for path in paths]
    ids = torch.tensor([encode_input(base.tokenizer, text, base.architecture)])
    begin = {"decoder_input_ids": torch.tensor([[0]])} if base.architecture == "encoder-decoder" else {}
    with torch.no_grad():
        base.model(input_ids=ids, **begin)
    for hook in hooks:
        hook.remove()
    return found


def slow_shares(base: Base, model: RoutedModel, inputs: Sequence[str], experts: Sequence[Expert]) -> list[Floats]:
    """Every formula as it stands, over sets of experts one by one."""
    sources = set(model.features.mixtures.reader.sources.values())
    causal = base.architecture == "decoder-only"
    paths = sorted(path for path in sources if path in experts[0].means and (causal or reads_input(path)))
    tokens = model.features.mixtures.public._tokens()[0]
    seen = [pooled(base, base.tokenizer.decode(ids, skip_special_tokens=True), paths) for ids in tokens]
    asked = [pooled(base, text, paths) for text in inputs]
    n = len(experts)
    gram, targets = np.zeros((n, n)), np.zeros((len(inputs), n))
    for path in paths:
        rows = torch.stack([each[path] for each in seen]).double()
        centre, spread = rows.mean(0), torch.cov(rows.T)
        d = len(centre)
        metric = torch.linalg.inv(spread + RIDGE * spread.trace() / d * torch.eye(d, dtype=torch.float64))
        apart = [expert.means[path].double() - centre for expert in experts]
        for z in range(n):
            for at, mine in enumerate(asked):
                targets[at, z] += float((mine[path].double() - centre) @ metric @ apart[z]) / d / len(paths)
            for y in range(n):
                gram[z, y] += float(apart[z] @ metric @ apart[y]) / d / len(paths)
    gram += 1e-3 * gram.trace() / n * np.eye(n)
    return [slow_nnls(gram, target) for target in targets]


def slow_nnls(gram: Floats, target: Floats) -> Floats:
    n, best = len(target), np.zeros(len(target))
    for size in range(1, n + 1):
        for chosen in map(list, combinations(range(n), size)):
            c = np.zeros(n)
            c[chosen] = np.linalg.solve(gram[np.ix_(chosen, chosen)], target[chosen])
            if (c >= 0).all() and c @ gram @ c / 2 - target @ c < best @ gram @ best / 2 - target @ best:
                best = c
    return best


def shares(model: RoutedModel, inputs: Sequence[str], pool: ExpertPool | None = None) -> Shares:
    return model.features.mixtures.shares(pool or model.generation.pool, inputs)


def test_shares_are_those_of_the_formulas(base: Path, model: RoutedModel) -> None:
    found = shares(model, INPUTS * 9).shares  # more than are read at once
    expected = slow_shares(load_base(str(base), device="cpu"), model, INPUTS, model.generation.pool.experts)
    np.testing.assert_allclose(found[:4], expected, atol=2e-3)
    np.testing.assert_allclose(found, np.tile(found[:4], (9, 1)), atol=1e-4)
    own = shares(model, KINDS).shares
    assert (own.argmax(1) == np.arange(len(KINDS))).all()
    assert own.diagonal().min() > 0.8
    both = shares(model, [KINDS[0] + " " + KINDS[4]]).shares[0]
    assert set(np.argsort(-both)[:2]) == {0, 4}


def test_who_is_denied_is_as_if_absent(model: RoutedModel) -> None:
    pool = model.generation.pool
    whole = shares(model, INPUTS).shares
    allowed = pool.allowing(None, ["b", "d"])
    without = shares(model, INPUTS, allowed).shares
    assert without.shape == (4, 3)
    assert not np.allclose(without[1], whole[1][[0, 2, 4]])  # who is left takes over what is alike
    fewer = pool.remove(pool.experts[3].digest).remove(pool.experts[1].digest)
    np.testing.assert_array_equal(shares(model, INPUTS, fewer).shares, without)
    order = [pool.experts[at].digest for at in (4, 2, 0, 1, 3)]
    np.testing.assert_allclose(
        shares(model, INPUTS, pool.reordered(order)).shares, whole[:, [4, 2, 0, 1, 3]], atol=1e-6
    )


def test_equal_experts_share_and_count_as_one(model: RoutedModel) -> None:
    one = shares(model, KINDS)
    pool, twin = model.generation.pool, model.generation.pool.experts[1]
    for number in range(3):
        pool = pool.add(replace(twin, digest=f"{number:064x}", name=f"twin{number}"))
    several = shares(model, KINDS, pool)
    together = several.shares[:, [1, 5, 6, 7]]
    np.testing.assert_allclose(together, np.repeat(together[:, :1], 4, axis=1), atol=1e-4)
    np.testing.assert_allclose(together.sum(1), one.shares[:, 1], atol=2e-3)
    assert len(set(several.alike[[1, 5, 6, 7]])) == 1
    assert len(set(several.alike)) == 5
    alone, shared = (request_weights(each.shares[1], each.alike, 8, None) for each in (one, several))
    assert shared.sum() == pytest.approx(alone.sum(), abs=0.02)
    assert shared[[1, 5, 6, 7]].sum() == pytest.approx(1)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_of_many_methods_scores_as_its_inputs_do_alone(method: str, model: RoutedModel) -> None:
    choices = [
        RoutingChoice(method),
        RoutingChoice(method, k=4),
        RoutingChoice(),
        RoutingChoice(method, deny=("a",)),
        RoutingChoice("base"),
        RoutingChoice(method),
    ]
    inputs, targets = [*INPUTS, *KINDS[:2]], ["a b", "x", "b c d", "y", "z z", "k"]
    together = model.losses(inputs, targets, choices)
    alone = [
        model.losses([text], [target], choice)[0] for text, target, choice in zip(inputs, targets, choices, strict=True)
    ]
    assert together == pytest.approx(alone, rel=1e-4)
    assert together[0] != model.losses(inputs[:1], targets[:1], RoutingChoice("base"))[0]


@pytest.mark.parametrize("method", ["nnls-request", "nnls-fixed:1.5"])
def test_weights_are_a_requests_from_its_first_token_to_its_last(method: str, model: RoutedModel) -> None:
    answered = model.answer(INPUTS, RoutingChoice(method, k=3), max_new_tokens=4, explain=True)
    solved = shares(model, INPUTS)
    for c, answer in zip(solved.shares, answered.answers, strict=True):
        expected = request_weights(c, solved.alike, 3, None if method == "nnls-request" else 1.5)
        assert answer.routes
        for route in answer.routes:
            given = np.zeros((len(route.experts), 5))
            np.add.at(given, (np.arange(len(given))[:, None], route.experts), route.weights)
            np.testing.assert_allclose(given, np.broadcast_to(expected, given.shape), atol=1e-6)


@pytest.mark.parametrize("method", ["nnls-request", "nnls-token", "nnls-gates"])
def test_what_nobody_has_half_of_is_asked_of_twice_as_many(method: str, model: RoutedModel) -> None:
    inputs = [KINDS[0], " ".join(KINDS[:3]), KINDS[1]]
    solved = shares(model, inputs)
    assert [familiar(c, solved.alike) for c in solved.shares] == [True, False, True]
    answered = model.answer(inputs, RoutingChoice(method, k=1), max_new_tokens=2, explain=True).answers
    most = [
        max(sum(weight > 0 for weight in token) for route in answer.routes for token in route.weights)
        for answer in answered
    ]
    assert most == [1, 2, 1]


@pytest.mark.parametrize("base", ["llama_base", "gpt2_base"], indirect=True)
@pytest.mark.parametrize("method", METHODS)
def test_what_is_decoded_after_a_cache_is_what_a_whole_pass_says(method: str, model: RoutedModel) -> None:
    """Token by token after what is cached, as all at once: the target of the highest likelihood is what is written."""
    base, choice = model.base, RoutingChoice(method)
    answer = model.answer(INPUTS[:1], choice, max_new_tokens=4, explain=True).answers[0]
    planned = plan(model.features, model.held, INPUTS[:1], [choice])
    ids = base.tokenizer.convert_tokens_to_ids([*answer.input_tokens, *answer.output_tokens])
    with torch.inference_mode(), routing(planned.plan):
        logits = base.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    read = len(answer.input_tokens)
    assert logits[read - 1 : -1].argmax(1).tolist() == ids[read:]


@pytest.mark.parametrize("method", METHODS)
def test_nobody_is_chosen_where_nobody_fits(base: Path, method: str, model: RoutedModel) -> None:
    plain, public = load_base(str(base), device="cpu"), model.features.mixtures.public
    seen = pooled(plain, INPUTS[0], list(model.generation.pool.experts[0].modules))
    sources = model.features.mixtures.reader.sources

    def opposite(expert: Expert) -> dict[str, Tensor]:
        return {
            path: 2 * public.spread(path, "pooled").mean - seen[sources[path]] if path in seen else mean
            for path, mean in expert.means.items()
        }

    model = with_means(model, opposite)
    choices = [RoutingChoice(method), RoutingChoice(), RoutingChoice(method)]
    inputs, targets = [INPUTS[0], INPUTS[1], INPUTS[0]], ["a", "b", "c"]
    alone = model.losses(INPUTS[:1], ["a"], RoutingChoice("base"))
    assert model.losses(INPUTS[:1], ["a"], RoutingChoice(method)) == alone  # to the last bit
    assert model.losses(inputs, targets, choices)[0] == pytest.approx(alone[0], rel=1e-5)


def test_who_tells_too_little_is_refused(t5_base: Path, identity: Identity, tmp_path: Path) -> None:
    pool = factories.make_pool(t5_base, identity)
    paths = list(linear_modules(load_base(str(t5_base), device="cpu").model))
    seeing = [path for path in paths if reads_input(path)]
    told = {"a": paths, "b": paths, "c": seeing[:1], "d": seeing[-1:]}
    model = RoutedModel.from_base(str(t5_base), device="cpu")
    for name, some in told.items():
        statistics = Statistics(means=None if name == "b" else Means())
        bundle = factories.make_bundle(tmp_path / name, pool, identity, name=name, modules=some, statistics=statistics)
        model.append(bundle)
    for method in METHODS:
        with pytest.raises(Refused, match=r"1 tell none: b\.") as refused:
            model.losses(["a"], ["b"], RoutingChoice(method))
        assert refused.value.code is Code.STATISTICS_MISSING
        with pytest.raises(Refused, match="no module of which all experts") as refused:
            model.losses(["a"], ["b"], RoutingChoice(method, deny=("b",)))
        assert refused.value.code is Code.STATISTICS_MISSING
        assert model.losses(["a"], ["b"], RoutingChoice(method, deny=("b", "d")))


@pytest.mark.parametrize("argument", ["", "x", "0", "-1", "nan", "inf", "9"])
def test_a_mass_that_is_none_is_refused(t5_base: Path, argument: str) -> None:
    with pytest.raises(Refused) as refused:
        RoutedModel.from_base(str(t5_base), device="cpu").losses(["a"], ["b"], RoutingChoice(f"nnls-fixed:{argument}"))
    assert refused.value.code is Code.METHOD_UNKNOWN


def test_the_mass_goes_from_one_to_two() -> None:
    apart = np.arange(4)
    assert found_mass(np.array([0.9, 0, 0, 0]), apart) == 2
    assert found_mass(np.array([0.8, 0.7, 0.5, 0]), apart) == pytest.approx(1.5)
    assert found_mass(np.full(4, 0.5), apart) == 1
    assert found_mass(np.full(4, 0.25), np.array([0, 0, 0, 3])) == 2


def test_twice_as_many_are_asked_up_to_four() -> None:
    assert [wider(k) for k in (1, 2, 3, 4, 7)] == [2, 4, 4, 4, 7]


@pytest.mark.parametrize("largest", [0.0, 0.1, 0.499])
def test_what_nobody_has_half_of_gets_one_and_a_half(largest: float) -> None:
    c = np.array([largest, largest / 2, 0, 0])
    assert not familiar(c, np.arange(4))
    assert found_mass(c, np.arange(4)) == 1.5
    assert familiar(c + 0.5, np.arange(4))
    assert familiar(np.array([0.3, 0.3]), np.zeros(2, dtype=np.int64))  # who cannot be told apart have it together


@pytest.mark.parametrize(
    ("c", "k", "expected"),
    [
        ([0.9, 0.05, 0, 0], 4, [1, 0, 0, 0]),
        ([0.57, 0.44, 0.1, 0], 4, [1, 0.87129, 0, 0]),
        ([0.6, 0.4, 0.3, 0.1], 4, [0.60989, 0.40659, 0.30494, 0]),
        ([0.3, 0.2, 0.15, 0.05], 1, [0.9, 0.6, 0, 0]),
        ([0.3, 0.2, 0.15, 0.05], 4, [0.64286, 0.42857, 0.32143, 0.10714]),
        ([0.49, 0.05, 0, 0], 1, [1, 0.13889, 0, 0]),
        ([0.57, 0.44, 0.1, 0], 1, [1, 0, 0, 0]),
        ([0, 0, 0, 0], 4, [0, 0, 0, 0]),
    ],
)
def test_shares_become_weights(c: list[float], k: int, expected: list[float]) -> None:
    """By hand from the two formulas."""
    weights = request_weights(np.array(c), np.arange(4), k, None)
    np.testing.assert_allclose(weights, expected, atol=1e-4)


def test_public_text_is_read_once_a_base(
    t5_base: Path, model: RoutedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "workspace" / "base.json"
    kept.parent.mkdir()
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("router.base.progress.PATIENCE_S", 0)
    monkeypatch.setattr("router.base.progress._shown", ContextVar("shown", default=True))
    first = RoutedModel.from_base(str(t5_base), device="cpu", cache=kept)
    path = next(path for path in first.features.mixtures.reader.sources if reads_input(path))
    found = first.features.mixtures.public.spread(path, "pooled")
    (file,) = kept.parent.glob("public-*.safetensors")
    assert "Statistics of public text" in terminal.getvalue()
    terminal.truncate(0)
    look = Mock(side_effect=Reader.look)
    monkeypatch.setattr(Reader, "look", look)
    second = RoutedModel.from_base(str(t5_base), device="cpu", cache=kept)
    for mine, theirs in zip(second.features.mixtures.public.spread(path, "pooled"), found, strict=True):
        assert torch.equal(mine, theirs)
    look.assert_not_called()
    assert terminal.getvalue() == ""
    file.write_bytes(file.read_bytes()[:1000])
    monkeypatch.setattr("router.methods.features.background.write_whole", Mock(side_effect=OSError))
    third = RoutedModel.from_base(str(t5_base), device="cpu", cache=kept)
    monkeypatch.undo()
    monkeypatch.setattr("router.methods.features.background.TEXTS", 80)
    for mine, theirs in zip(third.features.mixtures.public.spread(path, "pooled"), found, strict=True):
        assert torch.equal(mine, theirs)


def test_an_operator_may_name_public_text(t5_base: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("".join(f"{text}\n\n" for text in (*KINDS, *INPUTS)))
    model = RoutedModel.from_base(str(t5_base), device="cpu", public=tmp_path / "text")
    plain = load_base(str(t5_base), device="cpu")
    path = next(path for path in model.features.mixtures.reader.sources if reads_input(path))
    means = torch.stack([pooled(plain, text, [path])[path] for text in (*KINDS, *INPUTS)])
    found = model.features.mixtures.public.spread(path, "pooled")
    torch.testing.assert_close(found.mean, means.mean(0), rtol=1e-4, atol=1e-5)
    one = torch.cov(means.double().T)
    vector = torch.ones(1, len(found.mean))
    assert float(found.deviation(vector)[0]) == pytest.approx(float((one.sum()).sqrt()), rel=1e-3)


@pytest.mark.parametrize("content", [None, b"", b"one line\n", b"\xff\xfe\n\n"])
def test_public_text_that_is_none_is_refused(t5_base: Path, tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "text").write_bytes(content)
    with pytest.raises(Refused, match="public text") as refused:
        RoutedModel.from_base(str(t5_base), device="cpu", public=tmp_path / "text")
    assert refused.value.code is Code.DATA_UNREADABLE


@pytest.mark.parametrize(("n", "d"), [(90, 24), (20, 48), (300, DIRECTIONS + 40)])
def test_spreads_are_covariances(n: int, d: int) -> None:
    generator = torch.Generator().manual_seed(n)
    factors = min(d, n, 12)
    samples = torch.randn(n, factors, generator=generator, dtype=torch.float64) @ torch.randn(
        factors, d, generator=generator, dtype=torch.float64) + torch.randn(d, generator=generator)  # fmt: skip
    spread, exact = spread_of(samples.float()), torch.cov(samples.T)
    vectors = torch.randn(5, d, generator=generator)
    metric = torch.linalg.inv(exact + 0.01 * exact.trace() / d * torch.eye(d, dtype=torch.float64))
    torch.testing.assert_close(
        spread.raised(vectors, 0.01, -1).double(), vectors.double() @ metric, rtol=1e-3, atol=1e-4
    )
    deviations = torch.stack([(v @ exact @ v).sqrt() for v in vectors.double()])
    torch.testing.assert_close(spread.deviation(vectors), deviations, rtol=1e-4, atol=1e-6)


def test_what_never_varies_says_nothing() -> None:
    spread = spread_of(torch.ones(9, 4))
    assert not spread.raised(torch.ones(2, 4), 0.01, -1).any()
    assert not spread.deviation(torch.ones(2, 4)).any()
