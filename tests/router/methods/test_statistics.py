"""Methods that need what contributors tell about their data: means and centroids."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertConfig, BertModel

from protocol.bundle import GATES, Bundle, pack
from protocol.documents import Pool
from protocol.errors import Code, Refused
from protocol.release import Release, sign_release
from protocol.signing import Identity
from protocol.spec import Centroid, Means, Routing, Statistics
from router.base.fingerprint import fingerprint
from router.base.linear import linear_modules
from router.base.loading import Base, load_base
from router.base.tokens import IGNORED
from router.follow.pull import pull
from router.follow.workspace import Mirror
from router.layer import topk_gpu
from router.layer.choice import Choice
from router.layer.routed_linear import RoutingPlan, routing
from router.layer.topk import choose_topk
from router.methods import METHODS, NEEDS
from router.methods.average_activation import AverageActivation, mean
from router.methods.context import MethodContext
from router.methods.features.embedder import Embedder
from router.methods.registry import resolve
from router.model.releases import Generation
from router.model.routed_model import RoutedModel
from router.pool.expert import Expert
from router.pool.gate import standardise
from router.pool.pool import ExpertPool
from router.query.request import RoutingChoice
from router.serving.follower import Follower
from router.training.mean_inputs import mean_inputs
from tests import factories
from tests.router.catalog import Catalog
from tests.router.experts import PATH, make_experts, make_layer
from tests.router.reference import route
from tests.router.verbs import call

TOLD = Statistics(means=Means(), centroid=Centroid(width=32))
INPUTS = ["please reverse it : a b c", "say d", "copy it : x y z w v", "rotate it : a"]


def make_model(base: Path, pool: Pool, identity: Identity, folder: Path, *told: Statistics) -> RoutedModel:
    model = RoutedModel.from_base(str(base), device="cpu")
    for number, statistics in enumerate(told):
        model.append(
            factories.make_bundle(folder / f"b{number}", pool, identity, name=f"e{number}", seed=number,
                                  statistics=statistics)
        )  # fmt: skip
    return model


@pytest.mark.parametrize("tokens", [1, 17])
@pytest.mark.parametrize(("count", "k"), [(1, 2), (9, 2), (60, 5)])
def test_means_take_the_place_of_gates(tokens: int, count: int, k: int) -> None:
    plain, slow = make_experts(count, 32, 24, absent=3 if count > 3 else 0)
    generator = torch.Generator().manual_seed(count)
    pool, exact = ExpertPool(), iter(slow)
    expected = []
    for expert in plain.experts:
        means = {path: torch.randn(32, generator=generator) + 4 for path in expert.modules}
        pool = pool.add(Expert(expert.digest, expert.name, "", expert.modules, means=means))
        if PATH in means:
            expected.append(next(exact)._replace(gate=means[PATH]))
    layer, u = make_layer(32, 24), torch.randn(1, tokens, 32) + 1
    with routing(RoutingPlan(pool, AverageActivation(k))):
        y = layer(u)[0]
    answer = route(u[0], layer.linear.weight, None, expected, k)
    assert (y.double() - answer.y).abs().max() <= 1e-6 * answer.y.abs().max()


def test_the_kernels_of_a_gpu_never_take_gates_for_means() -> None:
    plain, _ = make_experts(9, 32, 24)
    pool = ExpertPool()
    for expert in plain.experts:
        means = {path: torch.randn(32) for path in expert.modules}
        pool = pool.add(Expert(expert.digest, expert.name, "", expert.modules, means=means))
    group, u = pool.modules[PATH].group, torch.randn(5, 32)
    (on_device,), (here,) = topk_gpu.choose_on_gpu(group.by(mean), u, 2), choose_topk(group.by(mean), u, 2)
    assert on_device is not None
    assert isinstance(here, Choice)
    assert torch.equal(on_device.experts, here.experts)
    (by_gates,) = choose_topk(group, u, 2)
    assert isinstance(by_gates, Choice)
    assert not torch.equal(here.experts, by_gates.experts)


def test_who_tells_no_means_is_named(base: Path, pool: Pool, identity: Identity, tmp_path: Path) -> None:
    model = make_model(base, pool, identity, tmp_path, TOLD, Statistics(), TOLD)
    with pytest.raises(Refused, match=r"1 tell none: e1\.") as refused:
        model.generate(["a"], RoutingChoice("average-activation"))
    assert refused.value.code is Code.STATISTICS_MISSING
    with pytest.raises(Refused, match=r"1 tell none: e1\.") as refused:
        model.generate(["a"], RoutingChoice("retrieval"))
    assert refused.value.code is Code.STATISTICS_MISSING
    left = RoutingChoice("average-activation", deny=("e1",))
    assert model.losses(["a"], ["b"], left) != model.losses(["a"], ["b"], RoutingChoice(deny=("e1",)))
    assert model.generate(["a"], RoutingChoice("retrieval", deny=("e1",)), max_new_tokens=2)


@pytest.mark.parametrize("base", ["t5_base"], indirect=True)
def test_methods_need_what_is_said_of_them(base: Path, pool: Pool, identity: Identity, tmp_path: Path) -> None:
    model = make_model(base, pool, identity, tmp_path, Statistics())
    lacking = set()
    for method in (name for name in METHODS if ":" not in name):
        try:
            model.generate(["a"], RoutingChoice(method), max_new_tokens=1)
        except Refused as error:
            lacking.add((method, error.code))
    assert lacking == {(method, Code.STATISTICS_MISSING) for method in NEEDS}


def test_a_release_whose_method_lacks_statistics_is_not_taken_up(
    t5_base: Path, catalog: Catalog, address: str, bundles: list[Bundle], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    load: Callable[..., Expert] = RoutedModel.load
    catalog.publish(bundles[:1], number=1)
    model = RoutedModel.from_base(str(t5_base), device="cpu")
    mirror = pull(tmp_path / "node", address)
    spec = mirror.release.spec.model_copy(update={"routing": Routing(method="average-activation")})
    offered, loaded = [Mirror(mirror.pool, sign_release(spec, catalog.identity), mirror.bundles)], list[Bundle]()

    def counted(self: RoutedModel, bundle: Bundle, **names: str) -> Expert:
        loaded.append(bundle)
        return load(self, bundle, **names)

    monkeypatch.setattr(RoutedModel, "load", counted)

    def fetch(
        *, held: Mirror | None, on_release: Callable[[Release], None], take_up: Callable[[Mirror], None]
    ) -> Mirror:
        on_release(offered[0].release)
        take_up(offered[0])
        return offered[0]

    follower = Follower(model, fetch, interval_s=60)
    assert not any(follower.step() for _ in range(5))
    assert model.digests == ()
    assert len(loaded) == 1  # not loaded again and again
    later = sign_release(mirror.release.spec.model_copy(update={"number": 2}), catalog.identity)
    offered[0] = Mirror(mirror.pool, later, mirror.bundles)
    assert follower.step()
    assert model.generation.release == 2


def encoder_of(base: Base, text: str) -> Tensor:
    """The slow answer: one text alone, no padding."""
    ids = torch.tensor([base.tokenizer(text).input_ids])
    with torch.no_grad():
        if base.architecture == "encoder-decoder":
            states = base.model.encoder(input_ids=ids).last_hidden_state[0]
        else:
            states = base.model.model(input_ids=ids).last_hidden_state[0]
    mean = states.double().mean(0)
    return mean / mean.norm()


def test_who_embeds_leaves_the_base_s_tokenizer_as_it_was(llama_base: Path) -> None:
    base = load_base(str(llama_base), device="cpu")
    told, padding = cast("Any", base.tokenizer), base.tokenizer.pad_token
    Embedder.of_base(base).embed(["a b c", "d"])
    # Whoever reads a long request in another thread would have it cut.
    assert (told.backend_tokenizer.truncation, told.backend_tokenizer.padding) == (None, None)
    assert base.tokenizer.pad_token == padding


def test_the_base_embeds_texts_alike_alone_and_together(base: Path) -> None:
    loaded = load_base(str(base), device="cpu")
    found = Embedder.of_base(loaded).embed(INPUTS * 9)
    for text, vector in zip(INPUTS * 9, found, strict=True):
        torch.testing.assert_close(vector.double(), encoder_of(loaded, text), rtol=1e-4, atol=1e-5)


def test_each_query_goes_to_the_nearest_expert(base: Path, pool: Pool, identity: Identity, tmp_path: Path) -> None:
    model = make_model(base, pool, identity, tmp_path, TOLD, TOLD, TOLD)
    queries = model.features.embedder.embed(INPUTS)
    experts, moved = model.generation.pool.experts, ExpertPool()
    for number, expert in enumerate(experts):
        moved = moved.add(replace(expert, centroid=(queries[number] + queries[3 - number]) / 2))
    model.generation = Generation(moved)
    nearest = []
    for query in queries.double():
        cosines = [float(query @ each.centroid.double()) for each in moved.experts if each.centroid is not None]
        nearest.append(experts[cosines.index(max(cosines))].name)
    assert len(set(nearest)) > 1
    together = model.losses(INPUTS, INPUTS, RoutingChoice("retrieval"))
    alone = [model.losses([text], [text], RoutingChoice(f"expert:{name}"))[0]
             for text, name in zip(INPUTS, nearest, strict=True)]  # fmt: skip
    assert together == pytest.approx(alone, rel=1e-5)
    answered = model.answer(INPUTS, RoutingChoice("retrieval"), max_new_tokens=3, explain=True)
    assert [{answered.experts[at] for route in answer.routes for at in route.experts.ravel()}
            for answer in answered.answers] == [{name} for name in nearest]  # fmt: skip


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """A small encoder such as sentence embeddings are made with."""
    torch.manual_seed(5)
    tokenizer = factories.save_tokenizer(tmp_path / "encoder", begin=False)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    BertModel(config).save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def test_another_encoder_may_embed(t5_base: Path, encoder: Path, identity: Identity, tmp_path: Path) -> None:
    told = Statistics(centroid=Centroid(embedding=fingerprint(str(encoder)), width=16))
    pool = factories.make_pool(t5_base, identity)
    bundles = [
        factories.make_bundle(tmp_path / f"b{n}", pool, identity, name=f"e{n}", seed=n, statistics=told)
        for n in range(2)
    ]
    model = RoutedModel.from_base(str(t5_base), device="cpu", embedding=str(encoder))
    for bundle in bundles:
        model.append(bundle)
    assert model.generate(INPUTS, RoutingChoice("retrieval"), max_new_tokens=2)
    by_base = RoutedModel.from_bundles(str(t5_base), bundles, device="cpu")
    with pytest.raises(Refused, match=r"embedded by the base model here; 2 experts .*: e0, e1\.") as refused:
        by_base.generate(["a"], RoutingChoice("retrieval"))
    assert refused.value.code is Code.STATISTICS_MISSING
    model.append(factories.make_bundle(tmp_path / "b9", pool, identity, name="e9", seed=9, statistics=TOLD))
    with pytest.raises(Refused, match=r"embedded by the embedding model encoder here; 1 experts .*: e9\.") as refused:
        model.generate(["a"], RoutingChoice("retrieval"))
    assert refused.value.code is Code.STATISTICS_MISSING


def test_a_saved_model_embeds_by_what_the_command_names(
    t5_base: Path, encoder: Path, identity: Identity, tmp_path: Path
) -> None:
    told = Statistics(centroid=Centroid(embedding=fingerprint(str(encoder)), width=16))
    make_model(t5_base, factories.make_pool(t5_base, identity), identity, tmp_path, told, told).save_pretrained(
        tmp_path / "saved", with_base=True
    )
    ask = ("ask", "--saved", tmp_path / "saved", "--device", "cpu", "--method", "retrieval", "--max-new-tokens", 1)
    call(*ask, "--embedding", encoder, "a b")
    with pytest.raises(Refused, match="embedded by the base model here") as refused:
        call(*ask, "a b")
    assert refused.value.code is Code.STATISTICS_MISSING


def test_a_centroid_of_another_width_is_refused_by_name(t5_base: Path, identity: Identity, tmp_path: Path) -> None:
    pool = factories.make_pool(t5_base, identity)
    odd = Statistics(centroid=Centroid(width=16))
    model = make_model(t5_base, pool, identity, tmp_path, TOLD, odd)
    for inputs in (["a"], []):  # none where a release is tried out
        with pytest.raises(Refused, match=r"1 experts tell a centroid that is not 32 numbers wide.*: e1\.") as refused:
            resolve("retrieval", MethodContext(model.generation.pool, inputs, features=model.features))
        assert refused.value.code is Code.STATISTICS_MISSING
    assert model.generate(["a"], RoutingChoice("retrieval", deny=("e1",)), max_new_tokens=1)


def test_an_embedding_model_that_is_none_is_refused(t5_base: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused) as refused:
        RoutedModel.from_base(str(t5_base), device="cpu", embedding=str(tmp_path / "nowhere"))
    assert refused.value.code is Code.BASE_UNREADABLE


def test_means_are_those_of_each_example_alone(base: Path) -> None:
    loaded = load_base(str(base), device="cpu")
    rows = [([5, 14, 15, 16, 1], [16, 15, 1]), ([7, 1], [20, 21, 22, 23, 1]), ([9, 10, 11, 1], [12, 1])]
    paths = list(linear_modules(loaded.model))
    causal = loaded.architecture == "decoder-only"

    def batch(some: list[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
        pairs = [(ids + labels, [IGNORED] * len(ids) + labels) for ids, labels in some] if causal else some
        widths = [max(len(pair[side]) for pair in pairs) for side in (0, 1)]
        return {
            "input_ids": torch.tensor([ids + [0] * (widths[0] - len(ids)) for ids, _ in pairs]),
            "attention_mask": torch.tensor([[1] * len(ids) + [0] * (widths[0] - len(ids)) for ids, _ in pairs]),
            "labels": torch.tensor([labels + [IGNORED] * (widths[1] - len(labels)) for _, labels in pairs]),
        }

    found = mean_inputs(loaded, paths, [batch(rows[:2]), batch(rows[2:])])
    seen: dict[str, list[Tensor]] = {path: [] for path in paths}

    def look(_module: object, inputs: tuple[Tensor, ...], *, path: str) -> None:
        u = inputs[0][0].double()
        seen[path].append((u[: len(rows[len(seen[path])][0])] if causal else u).mean(0))

    for path in paths:
        loaded.model.get_submodule(path).register_forward_pre_hook(partial(look, path=path))
    for row in rows:
        with torch.no_grad():
            loaded.model(**batch([row]))
    for path in paths:
        torch.testing.assert_close(found[path].double(), torch.stack(seen[path]).mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.3])
@pytest.mark.parametrize("end", ["gate", "mean"])
def test_a_constant_vector_is_refused_at_loading(
    t5_base: Path, identity: Identity, tmp_path: Path, value: float, end: str
) -> None:
    pool = factories.make_pool(t5_base, identity)
    bundle = factories.make_bundle(tmp_path / "b", pool, identity, statistics=TOLD)
    path = next(iter(bundle.spec.modules))
    bundle = edited(bundle, identity, f"{path}.{end}", value)
    model = RoutedModel.from_base(str(t5_base), device="cpu")
    with pytest.raises(Refused, match="is constant") as refused:
        model.append(bundle)
    assert refused.value.code is Code.CONSTANT_GATE
    assert model.digests == ()


def edited(bundle: Bundle, identity: Identity, name: str, value: float) -> Bundle:
    tensors = load_file(bundle.folder / GATES)
    tensors[name].fill_(value)
    save_file(tensors, bundle.folder / GATES, {"format": "pt"})
    return pack(bundle.folder, bundle.spec, identity)


def test_statistics_come_with_the_expert(t5_base: Path, identity: Identity, tmp_path: Path) -> None:
    pool = factories.make_pool(t5_base, identity)
    bundle = factories.make_bundle(tmp_path / "b", pool, identity, statistics=TOLD)
    expert = RoutedModel.from_bundles(str(t5_base), [bundle], device="cpu").generation.pool.experts[0]
    held = load_file(bundle.folder / GATES)
    assert expert.centroid is not None
    torch.testing.assert_close(expert.centroid, held["centroid"] / held["centroid"].norm())
    for path, part in expert.modules.items():
        assert torch.equal(expert.means[path], held[f"{path}.mean"])
        torch.testing.assert_close(part.gate, standardise(held[f"{path}.gate"]), rtol=1e-5, atol=1e-6)
