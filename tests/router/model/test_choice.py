"""What a request chooses for itself, and batches in which every row chooses something else."""

import gc
import weakref
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from protocol.bundle import Bundle
from protocol.documents import Pool
from protocol.errors import Code, Refused
from protocol.signing import Identity
from protocol.spec import Routing
from router.layer.routed_linear import MixedPlan, RoutingPlan, routing
from router.methods.phatgoose import Phatgoose
from router.model import planner
from router.model.releases import KEPT, Generation, Held, listing
from router.model.routed_model import RoutedModel
from router.pool.pool import ExpertPool
from router.query.answer import Answer
from router.query.request import RoutingChoice
from tests import factories
from tests.router.experts import PATH, make_experts, make_layer

INPUTS = ["please reverse it : a b c", "say d", "copy it : x y z w v", "rotate it : a", "now copy it : b"]
TARGETS = ["c b a", "d d d d", "x", "b a", "c c c"]
CHOICES = [
    RoutingChoice(),
    RoutingChoice("merged", allow=("ada/",)),
    RoutingChoice("phatgoose", k=1, temperature=3.0, deny=("e1",)),
    RoutingChoice("base"),
    RoutingChoice("expert:bob/e3"),
]


def test_names_may_be_written_as_lists() -> None:
    choice = RoutingChoice(allow=["e0"], deny=["e1"])  # type: ignore[arg-type]
    assert choice == RoutingChoice(allow=("e0",), deny=("e1",))
    assert hash(choice) == hash(RoutingChoice(allow=("e0",), deny=("e1",)))


@pytest.fixture
def bundles(pool: Pool, tmp_path: Path, identity: Identity) -> list[Bundle]:
    paths = list(pool.spec.modules)
    return [
        factories.make_bundle(
            tmp_path / f"b{n}", pool, identity, name=f"e{n}", rank=1 + n, modules=paths[n:], alpha=2.0 * (n + 1), seed=n
        )
        for n in range(5)
    ]


@pytest.fixture
def model(base: Path, bundles: list[Bundle]) -> RoutedModel:
    return put_together(base, bundles)


def put_together(base: Path, bundles: list[Bundle]) -> RoutedModel:
    model = RoutedModel.from_base(str(base), device="cpu")
    for bundle in bundles:
        model.append(bundle, contributor="ada" if bundle.spec.name < "e3" else "bob")
    return model


@pytest.mark.parametrize(
    ("choice", "left"),
    [
        (RoutingChoice(allow=("e1", "bob/e3")), [1, 3]),
        (RoutingChoice(allow=("ada/",)), [0, 1, 2]),
        (RoutingChoice(deny=("ada/e0", "bob/")), [1, 2]),
        (RoutingChoice(allow=("ada/",), deny=("e1",)), [0, 2]),
        (RoutingChoice(k=3, temperature=0.5, deny=("e0",)), [1, 2, 3, 4]),
        (RoutingChoice("merged", deny=("e0", "e4")), [1, 2, 3]),
    ],
)
def test_experts_that_may_not_answer_are_as_if_they_had_never_come(
    model: RoutedModel, base: Path, bundles: list[Bundle], choice: RoutingChoice, left: list[int]
) -> None:
    fewer = put_together(base, [bundles[n] for n in left])
    alike = replace(choice, allow=None, deny=())
    assert model.losses(INPUTS, TARGETS, choice) == pytest.approx(fewer.losses(INPUTS, TARGETS, alike), rel=1e-4)
    assert model.losses(INPUTS, TARGETS, choice) != model.losses(INPUTS, TARGETS, alike)


@pytest.mark.parametrize("tokens", [1, 9])
def test_restriction_is_exact_at_one_module(tokens: int) -> None:
    pool, _ = make_experts(30, 32, 16, absent=4)
    seen = pool.allowing([f"e{n}" for n in range(0, 30, 3)], ["e3", "e6"])
    left = [n for n in range(0, 30, 3) if n not in (3, 6)]
    assert [expert.name for expert in seen.experts] == [f"e{n}" for n in left]
    assert len(seen.modules[PATH]) == len([n for n in left if n % 4])
    assert len(pool.experts) == 30
    fewer = ExpertPool()
    for n in left:
        fewer = fewer.add(pool.experts[n])
    layer, u = make_layer(32, 16), torch.randn(2, tokens, 32)
    with routing(RoutingPlan(seen, Phatgoose(2))):
        ours = layer(u)
    with routing(RoutingPlan(fewer, Phatgoose(2))):
        torch.testing.assert_close(ours, layer(u), rtol=1e-6, atol=1e-6)


def test_everybody_allowed_is_the_pool_itself() -> None:
    pool, _ = make_experts(4, 32, 16)
    assert pool.allowing(["c/"], []) is pool
    assert pool.allowing(None, []) is pool


def test_temperature_divides_the_scores() -> None:
    pool, _ = make_experts(9, 32, 16)
    for tokens in (1, 7):
        u = torch.randn(tokens, 32)
        plain, flat, sharp = (weights(pool, u, temperature) for temperature in (1.0, 4.0, 0.25))
        torch.testing.assert_close(flat, torch.softmax(plain.log() / 4, 1))
        torch.testing.assert_close(sharp, torch.softmax(plain.log() * 4, 1))


def weights(pool: ExpertPool, u: torch.Tensor, temperature: float) -> torch.Tensor:
    choice = Phatgoose(3, temperature).choose(pool.modules[PATH], u)
    assert choice is not None
    return torch.as_tensor(choice.weights).reshape(len(u), 3)


def test_a_mixed_batch_answers_as_its_inputs_do_alone(model: RoutedModel) -> None:
    together = model.answer(INPUTS, CHOICES, max_new_tokens=8, explain=True)
    for text, choice, mixed in zip(INPUTS, CHOICES, together.answers, strict=True):
        (alone,) = model.answer([text], choice, max_new_tokens=8, explain=True).answers
        assert mixed.text == alone.text
        assert mixed.method == (choice.method or "phatgoose")
        assert (mixed.input_tokens, mixed.output_tokens) == (alone.input_tokens, alone.output_tokens)
        assert chosen(mixed) == chosen(alone)
        for ours, theirs in zip(mixed.routes, alone.routes, strict=True):
            assert ours.weights == pytest.approx(theirs.weights, abs=1e-5)


def chosen(answer: Answer) -> dict[str, list[list[int]]]:
    return {route.module: route.experts.tolist() for route in answer.routes}


def test_a_mixed_batch_scores_as_its_inputs_do_alone(model: RoutedModel) -> None:
    choices = CHOICES + CHOICES[1:] + CHOICES[:1]
    together = model.losses(INPUTS * 2, TARGETS * 2, choices)
    alone = [
        model.losses([text], [target], choice)[0]
        for text, target, choice in zip(INPUTS * 2, TARGETS * 2, choices, strict=True)
    ]
    assert together == pytest.approx(alone, rel=1e-5)
    assert len(set(together)) == len(together)


def test_rows_that_choose_alike_are_routed_together(model: RoutedModel) -> None:
    choices = [RoutingChoice(k=1), RoutingChoice(), RoutingChoice("phatgoose", k=1), RoutingChoice(temperature=1.0)]
    planned = planner.plan(model.features, model.held, INPUTS[:4], choices)
    assert [part.inputs for part in planned.parts] == [(0, 2), (1, 3)]
    assert isinstance(planned.plan, MixedPlan)
    assert isinstance(planner.plan(model.features, model.held, INPUTS[:1], choices[:1]).plan, RoutingPlan)


def test_old_and_new_releases_share_a_batch(
    model: RoutedModel, base: Path, bundles: list[Bundle], tmp_path: Path, pool: Pool, identity: Identity
) -> None:
    first = model.generation
    model.held = model.held.followed_by(replace(first, release=1))
    changed = factories.make_bundle(tmp_path / "changed", pool, identity, name="e0", seed=99)
    grown = first.pool.remove(bundles[0].digest).remove(bundles[2].digest).add(model.load(changed, contributor="ada"))
    model.held = model.held.followed_by(Generation(grown, Routing(k=1), 2))
    choices = [RoutingChoice(), RoutingChoice(release=1), RoutingChoice(release=2), RoutingChoice(release=1)]
    together = model.answer(INPUTS[:4], choices, max_new_tokens=6, explain=True)
    assert [answer.release for answer in together.answers] == [2, 1, 2, 1]
    assert {name.partition("@")[0] for name in together.experts} == {f"ada/e{n}" for n in (0, 1, 2)} | {
        "bob/e3", "bob/e4"
    }  # fmt: skip
    assert len(together.experts) == 6
    assert sum("@" in name for name in together.experts) == 2
    for text, choice, mixed in zip(INPUTS, choices, together.answers, strict=False):
        alone = model.answer([text], choice, max_new_tokens=6, explain=True)
        named, mine = chosen_by_name(alone.experts, alone.answers[0]), chosen_by_name(together.experts, mixed)
        assert mixed.text == alone.answers[0].text
        assert mine == named
    old = put_together(base, bundles)
    assert model.losses(INPUTS, TARGETS, RoutingChoice(release=1)) == pytest.approx(
        old.losses(INPUTS, TARGETS), rel=1e-6
    )


def chosen_by_name(names: tuple[str, ...], answer: Answer) -> list[list[list[str]]]:
    plain = [name.partition("@")[0] for name in names]
    return [[[plain[at] for at in token] for token in route.experts.tolist()] for route in answer.routes]


def test_only_a_few_releases_are_held(model: RoutedModel) -> None:
    for number in range(1, KEPT + 3):
        model.held = model.held.followed_by(replace(model.generation, release=number))
    assert model.held.releases == tuple(range(3, KEPT + 3))
    with pytest.raises(Refused, match=r"these are: 3, 4, 5, 6\.") as refused:
        model.generate(["a"], RoutingChoice(release=2))
    assert refused.value.code is Code.RELEASE_UNKNOWN


def test_memory_of_a_release_that_is_let_go_comes_back() -> None:
    held, stores, pool = Held(), [], ExpertPool()
    for number in range(1, KEPT + 2):
        newcomers, _ = make_experts(12, 32, 16, seed=number)
        for expert in pool.experts:
            pool = pool.remove(expert.digest)
        for expert in newcomers.experts:
            pool = pool.add(replace(expert, digest=f"{number}{expert.digest[1:]}"))
        stores.append(weakref.ref(pool._store))
        held = held.followed_by(Generation(pool, release=number))
    del newcomers, expert
    gc.collect()
    assert stores[0]() is None
    assert all(store() is not None for store in stores[1:])


def test_a_release_goes_on_from_what_has_its_order() -> None:
    first, _ = make_experts(6, 32, 16)
    turned = first.reordered([expert.digest for expert in reversed(first.experts)])
    fewer = turned.remove(first.experts[0].digest)
    held = Held().followed_by(Generation(first, release=1)).followed_by(Generation(turned, release=2))
    order = [listing(expert) for expert in first.experts]
    assert held.nearest(order) is first
    assert held.nearest(order[::-1]) is turned
    # Equal ways: the newest. No way without another order: the newest, too.
    assert held.nearest(order[:1]) is turned
    assert held.nearest([order[3], order[1], order[2]]) is turned
    assert held.nearest([("another", "one", "")]) is turned
    # An order that costs more experts than it saves is no way.
    held = Held().followed_by(Generation(fewer, release=3)).followed_by(Generation(first, release=4))
    assert held.nearest([order[5], order[4], order[0], order[3]]) is first


def test_an_earlier_release_answers_until_it_expires(model: RoutedModel) -> None:
    over = datetime(2020, 1, 1, tzinfo=UTC)
    model.held = model.held.followed_by(replace(model.generation, release=1, expires=over))
    assert model.generate(["a"], RoutingChoice(release=1), max_new_tokens=2)  # the newest there is
    model.held = model.held.followed_by(replace(model.generation, release=2))
    with pytest.raises(Refused) as refused:
        model.generate(["a"], RoutingChoice(release=1))
    assert refused.value.code is Code.RELEASE_EXPIRED


@pytest.mark.parametrize(
    ("choice", "code"),
    [
        (RoutingChoice("magic"), Code.METHOD_UNKNOWN),
        (RoutingChoice(allow=("nobody",)), Code.EXPERT_UNKNOWN),
        (RoutingChoice(deny=("eve/",)), Code.EXPERT_UNKNOWN),
        (RoutingChoice(allow=("ada/e3",)), Code.EXPERT_UNKNOWN),
        (RoutingChoice(allow=()), Code.EXPERTS_EXHAUSTED),
        (RoutingChoice(allow=("ada/",), deny=("ada/",)), Code.EXPERTS_EXHAUSTED),
        (RoutingChoice("expert:e3", deny=("bob/",)), Code.EXPERT_UNKNOWN),
        (RoutingChoice(release=7), Code.RELEASE_UNKNOWN),
    ],
)
def test_a_choice_that_cannot_be_met_is_refused_and_harms_nothing(
    model: RoutedModel, choice: RoutingChoice, code: Code
) -> None:
    before = model.held
    with pytest.raises(Refused) as refused:
        model.generate(["a", "b"], [RoutingChoice(), choice])
    assert refused.value.code is code
    assert model.held is before
    assert model.generate(["a"], max_new_tokens=1)


def test_choices_and_inputs_are_as_many(model: RoutedModel) -> None:
    with pytest.raises(Refused, match="3 inputs and 2 routing choices") as refused:
        model.generate(["a", "b", "c"], [RoutingChoice()] * 2)
    assert refused.value.code is Code.REQUEST_INVALID


def test_flattened_rows_are_told_apart() -> None:
    pool, _ = make_experts(9, 32, 16)
    layer, u = make_layer(32, 16), torch.randn(3, 5, 32)
    plans = [(RoutingPlan(pool, Phatgoose(2)), 2), (RoutingPlan(pool, Phatgoose(1)), 1)]
    with routing(MixedPlan(plans)):
        whole = layer(u)
        flat = layer(u.reshape(15, 32))
    torch.testing.assert_close(flat.view(3, 5, 16), whole, rtol=1e-6, atol=1e-6)
    for rows, (plan, _) in zip((slice(0, 2), slice(2, 3)), plans, strict=True):
        with routing(plan):
            torch.testing.assert_close(layer(u[rows]), whole[rows], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(5, 3, 32), (1, 15, 32), (15, 32), (9, 32), (4, 32), (32,)])
def test_rows_that_cannot_be_told_apart_are_refused(shape: tuple[int, ...]) -> None:
    # Such as tokens that a base model hands out among experts of its own.
    pool, _ = make_experts(3, 32, 16)
    layer, plan = make_layer(32, 16), RoutingPlan(pool, Phatgoose(2))
    with routing(MixedPlan([(plan, 2), (RoutingPlan(pool, Phatgoose(1)), 1)])):
        layer(torch.randn(3, 4, 32))
        with pytest.raises(Refused, match="cannot be told apart") as refused:
            layer(torch.randn(shape))
    assert refused.value.code is Code.REQUEST_INVALID
