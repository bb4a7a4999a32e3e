"""Whole routed models of both families."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from protocol.bundle import ADAPTER_WEIGHTS
from protocol.errors import Code, Refused
from protocol.signing import Identity
from protocol.spec import Routing
from router.base.linear import find_linear
from router.base.loading import load_base
from router.layer.choice import Choice
from router.layer.routed_linear import RoutingPlan, routing
from router.methods.phatgoose import Phatgoose
from router.methods.single_expert import SingleExpert
from router.model.recorder import RouteRecorder
from router.model.releases import Generation
from router.model.routed_model import RoutedModel
from router.pool.expert import load_expert
from router.pool.group_view import ModuleExperts
from router.query.attribution import expert_shares, module_shares
from router.query.request import RoutingChoice
from tests import factories

INPUTS = ["please reverse it : a b c", "say d", "copy it : x y z w v"]


@pytest.fixture
def model(base: Path, tmp_path: Path, identity: Identity) -> RoutedModel:
    pool = factories.make_pool(base, identity)
    routed = RoutedModel.from_base(str(base), device="cpu")
    paths = list(pool.spec.modules)
    for number in range(4):
        bundle = factories.make_bundle(
            tmp_path / f"b{number}", pool, identity, name=f"e{number}", rank=2 + number, alpha=3.0 + number,
            modules=paths[number:], seed=number,
        )  # fmt: skip
        routed.append(bundle, contributor="ada")
    return routed


def logits(model: torch.nn.Module, routed: RoutedModel, text: str) -> torch.Tensor:
    ids = routed.base.tokenizer(text, return_tensors="pt").input_ids
    more = {"decoder_input_ids": ids} if routed.base.architecture == "encoder-decoder" else {}
    with torch.inference_mode():
        return model(input_ids=ids, **more).logits


def test_from_bundles_puts_experts_on_in_order(base: Path, tmp_path: Path, identity: Identity) -> None:
    pool = factories.make_pool(base, identity)
    bundles = [
        factories.make_bundle(tmp_path / name, pool, identity, name=name, seed=seed) for seed, name in enumerate("ab")
    ]
    model = RoutedModel.from_bundles(str(base), bundles, device="cpu")
    assert model.digests == tuple(bundle.digest for bundle in bundles)
    with pytest.raises(Refused) as refused:
        model.append(bundles[0])
    assert refused.value.code is Code.DUPLICATE_OF


def test_a_single_expert_gives_plain_peft_logits(base: Path, model: RoutedModel, tmp_path: Path) -> None:
    plain = PeftModel.from_pretrained(load_base(str(base), device="cpu").model, tmp_path / "b2").eval()
    pool = model.generation.pool
    with routing(RoutingPlan(pool, SingleExpert(pool.find("ada/e2")))):
        ours = logits(model.base.model, model, INPUTS[0])
    torch.testing.assert_close(ours, logits(plain, model, INPUTS[0]), atol=1e-5, rtol=1e-5)


def test_without_experts_logits_are_bitwise_the_base(base: Path) -> None:
    routed = RoutedModel.from_base(str(base), device="cpu")
    with routing(RoutingPlan(routed.generation.pool, Phatgoose(2))):
        ours = logits(routed.base.model, routed, INPUTS[0])
    assert torch.equal(ours, logits(load_base(str(base), device="cpu").model, routed, INPUTS[0]))


@pytest.mark.parametrize("method", ["phatgoose", "merged", "base", "expert:e1"])
def test_a_batch_answers_as_its_inputs_do_alone(model: RoutedModel, method: str) -> None:
    together = model.generate(INPUTS, RoutingChoice(method), max_new_tokens=8)
    alone = [model.generate([text], RoutingChoice(method), max_new_tokens=8)[0] for text in INPUTS]
    assert together == alone


def test_scores_do_not_depend_on_the_batch(model: RoutedModel) -> None:
    targets = ["c b a", "d d d d", "x"]
    together = model.losses(INPUTS, targets)
    alone = [model.losses([text], [target])[0] for text, target in zip(INPUTS, targets, strict=True)]
    assert together == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize(("inputs", "targets"), [([], []), (["a", "b"], ["a", "b", "c"]), (["a", "b"], ["a"])])
def test_targets_that_are_not_one_an_input_are_refused(
    model: RoutedModel, inputs: list[str], targets: list[str]
) -> None:
    with pytest.raises(Refused, match=f"{len(inputs)} inputs and {len(targets)} targets") as refused:
        model.losses(inputs, targets)
    assert refused.value.code is Code.REQUEST_INVALID


@pytest.mark.parametrize("tokens", [5, 3])
def test_what_a_base_hands_to_experts_of_its_own_is_refused_not_guessed(model: RoutedModel, tokens: int) -> None:
    # Of two inputs' tokens some went elsewhere.
    module = next(iter(model.generation.pool.modules.values()))
    recorder = RouteRecorder({digest: at for at, digest in enumerate(model.digests)}, rows=2)
    with pytest.raises(Refused, match="is not given every token of every input") as refused:
        recorder.record(
            "m", module, Choice(torch.zeros(tokens, 1).long(), torch.ones(tokens, 1)), torch.ones(tokens, 4)
        )
    assert refused.value.code is Code.REQUEST_INVALID
    recorder.record("m", module, Choice(torch.zeros(2, 1).long(), torch.ones(2, 1)), torch.ones(2, 4))
    with pytest.raises(Refused, match="is not given every token of every input"):
        recorder.routes(0, [True, True], 1, causal=True)


def test_a_filler_beside_an_expert_takes_nothing_off_its_whole_distribution(model: RoutedModel) -> None:
    # Rows of a batch that were given fewer experts are filled up with an expert that they have, at weight 0.
    class Everybody:
        def choose(self, module: ModuleExperts, u: torch.Tensor) -> Choice:
            return Choice(torch.tensor([[1, 0], [0, 0]]), torch.tensor([[0.25, 0.75], [1.0, 0.0]]))

    module = next(iter(model.generation.pool.modules.values()))
    recorder = RouteRecorder({digest: at for at, digest in enumerate(model.digests)}, 2, Everybody())
    u = torch.ones(2, 4)
    recorder.record("m", module, Everybody().choose(module, u), u)
    full = [recorder.routes(row, [True], 1, causal=True)[0].full for row in range(2)]
    assert [each[0, :2].tolist() for each in full if each is not None] == [[0.75, 0.25], [1.0, 0.0]]


def test_score_is_the_mean_log_likelihood(model: RoutedModel) -> None:
    tokenizer = model.base.tokenizer
    target = [*tokenizer("c b", add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    prompt = tokenizer("a b").input_ids
    pool = model.generation.pool
    with torch.inference_mode(), routing(RoutingPlan(pool, Phatgoose(2))):
        if model.base.architecture == "decoder-only":
            out = model.base.model(input_ids=torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
        else:
            start = [model.base.model.config.decoder_start_token_id]
            out = model.base.model(
                input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([start + target[:-1]])
            ).logits[0]
    expected = -torch.log_softmax(out, -1)[range(len(target)), target].mean().item()
    assert model.losses(["a b"], ["c b"]) == [pytest.approx(expected, rel=1e-5)]


def test_growing_and_shrinking_changes_only_later_requests(model: RoutedModel, tmp_path: Path) -> None:
    before = model.losses(INPUTS, INPUTS)
    digest = model.digests[1]
    kept = model.generation
    model.remove(digest)
    assert model.losses(INPUTS, INPUTS) != before
    assert digest in {expert.digest for expert in kept.pool.experts}
    model.generation = kept
    assert model.losses(INPUTS, INPUTS) == before


def test_what_is_changed_by_hand_is_no_release(model: RoutedModel) -> None:
    model.generation = replace(model.generation, release=1)
    model.remove("f" * 64)  # a stranger
    assert model.generation.release == 1
    model.remove(model.digests[1])
    assert model.answer(["say a"], max_new_tokens=1).answers[0].release == 0


def test_experts_that_come_at_once_all_stay(base: Path, tmp_path: Path, identity: Identity) -> None:
    pool, model = factories.make_pool(base, identity), RoutedModel.from_base(str(base), device="cpu")
    bundles = [factories.make_bundle(tmp_path / f"b{n}", pool, identity, name=f"e{n}", seed=n) for n in range(8)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(model.append, bundles))
    assert sorted(model.digests) == sorted(bundle.digest for bundle in bundles)


def test_routes_name_every_token_of_input_and_output(model: RoutedModel) -> None:
    answered = model.answer(INPUTS, max_new_tokens=5, explain=True)
    assert answered.experts == ("ada/e0", "ada/e1", "ada/e2", "ada/e3")
    for text, answer in zip(INPUTS, answered.answers, strict=True):
        assert [token for token in answer.input_tokens if token not in ("</s>", "<s>")] == text.split()
        assert answer.routes
        for route in answer.routes:
            read = len(answer.input_tokens) if route.reads_input else len(answer.output_tokens)
            if model.base.architecture == "decoder-only":
                read = len(answer.input_tokens) + len(answer.output_tokens) - 1
            assert route.experts.shape == route.weights.shape == (read, min(2, route.experts.shape[1]))
            assert route.weights.sum(1) == pytest.approx(1.0)
        assert sum(expert_shares(answer.routes, answered.experts).values()) == pytest.approx(1.0)
    # Only expert 0 touches the first module.
    lonely = next(path for path, module in model.generation.pool.modules.items() if len(module.experts) == 1)
    assert module_shares(answered.answers[0].routes, answered.experts)[lonely].tolist() == [1, 0, 0, 0]


def test_routes_of_a_batch_are_those_of_its_inputs_alone(model: RoutedModel) -> None:
    together = model.answer(INPUTS, max_new_tokens=5, explain=True).answers
    for text, batched in zip(INPUTS, together, strict=True):
        alone = model.answer([text], max_new_tokens=5, explain=True).answers[0]
        assert batched.output_tokens == alone.output_tokens
        for ours, theirs in zip(batched.routes, alone.routes, strict=True):
            assert ours.experts.tolist() == theirs.experts.tolist()


@pytest.mark.parametrize(
    ("method", "code"),
    [
        ("magic", Code.METHOD_UNKNOWN),
        ("expert", Code.METHOD_UNKNOWN),
        ("base:x", Code.METHOD_UNKNOWN),
        ("expert:nobody", Code.EXPERT_UNKNOWN),
    ],
)
def test_unknown_methods_and_experts_are_refused(model: RoutedModel, method: str, code: Code) -> None:
    with pytest.raises(Refused) as refused:
        model.generate(["a"], RoutingChoice(method))
    assert refused.value.code is code


@pytest.mark.parametrize("inputs", [[], [""], ["a", "  "]])
def test_empty_requests_are_refused(model: RoutedModel, inputs: list[str]) -> None:
    with pytest.raises(Refused) as refused:
        model.generate(inputs)
    assert refused.value.code is Code.REQUEST_INVALID


def test_an_expert_for_a_wider_base_is_refused_and_harms_nothing(
    model: RoutedModel, tmp_path: Path, identity: Identity
) -> None:
    make = factories.make_t5 if model.base.architecture == "encoder-decoder" else factories.make_llama
    wide = make(tmp_path / "wide", **{"d_model" if make is factories.make_t5 else "hidden_size": 64})
    bundle = factories.make_bundle(tmp_path / "foreign", factories.make_pool(wide, identity), identity)
    before = model.generation
    with pytest.raises(Refused) as refused:
        model.append(bundle)
    assert refused.value.code is Code.TENSOR_SHAPE
    assert model.generation is before


def test_a_broken_expert_fails_the_probe(model: RoutedModel, base: Path, tmp_path: Path, identity: Identity) -> None:
    before = model.probe(INPUTS, INPUTS)
    assert before.losses == pytest.approx(model.losses(INPUTS, INPUTS))
    huge = factories.make_bundle(tmp_path / "huge", factories.make_pool(base, identity), identity)
    expert = model.load(huge)
    for part in expert.modules.values():
        part.b.fill_(3e38)
    model.generation = Generation(model.generation.pool.add(expert))
    with pytest.raises(Refused) as refused:
        model.probe(INPUTS, INPUTS)
    assert refused.value.code is Code.PROBE_FAILED
    with model.lacking(huge.digest):
        assert model.probe(INPUTS, INPUTS).losses == pytest.approx(before.losses, rel=1e-4)
    assert huge.digest in model.digests


def test_the_probe_tells_the_largest_number_and_can_be_ended(model: RoutedModel) -> None:
    seen: list[float] = []
    hooks = [
        module.register_forward_hook(lambda _module, _given, out: seen.append(out.abs().max().item()))
        for module in model.base.model.modules()
        if isinstance(module, torch.nn.Linear)
    ]
    texts = INPUTS * 6  # two batches
    found = model.probe(texts, texts, RoutingChoice("expert:ada/e1"))
    for hook in hooks:
        hook.remove()
    assert found.largest * torch.finfo(torch.float32).max >= max(seen) > 0
    assert not any(module._forward_hooks for module in model.base.model.modules())
    ticks: list[None] = []

    def tick() -> None:
        ticks.append(None)
        if len(ticks) == 2:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        model.probe(texts, texts, tick=tick)


def test_the_probe_is_routed_as_the_pool_is(model: RoutedModel) -> None:
    model.route_as(Routing(method="merged", k=3))
    assert model.probe(INPUTS, INPUTS).losses == pytest.approx(model.losses(INPUTS, INPUTS, RoutingChoice("merged")))
    model.remove(model.digests[0])
    assert model.generation.settings.method == "merged"


def test_norms_of_an_expert_are_by_module(model: RoutedModel) -> None:
    first, second = model.digests[:2]
    assert set(model.norms(first)) == set(model.generation.pool.find("e0").modules)
    assert len(model.norms(second)) == len(model.norms(first)) - 1
    assert all(norm > 0 for norm in model.norms(second).values())


def test_weights_that_the_models_dtype_cannot_hold_are_refused(base: Path, tmp_path: Path, identity: Identity) -> None:
    bundle = factories.make_bundle(tmp_path / "b", factories.make_pool(base, identity), identity)
    weights = bundle.folder / ADAPTER_WEIGHTS
    save_file({name: tensor * 1e6 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    model = load_base(str(base), device="cpu").model.half()
    linears = {path: find_linear(model, path) for path in bundle.spec.modules}
    with pytest.raises(Refused) as refused:
        load_expert(bundle, linears, dtype=model.dtype)
    assert refused.value.code is Code.NOT_FINITE
