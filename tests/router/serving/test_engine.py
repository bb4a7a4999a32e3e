"""Requests of every kind, side by side, each answered as if it were alone."""

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from protocol.errors import Code, GreylagError
from protocol.signing import Identity
from protocol.spec import Centroid, Means, Statistics
from router.layer.routed_linear import routing
from router.model.planner import plan
from router.model.routed_model import RoutedModel
from router.query.request import RoutingChoice
from router.serving.batches import opening, paged
from router.serving.batches.opening import open_engine
from router.serving.batches.room import PAGE_TOKENS
from router.serving.engine import Asked, Ended, Engine, Sampling, Written
from tests import factories
from tests.router.serving.asking import LONGEST_S, ask_all, ask_one, ended, heard, refusals, text, tokens

INPUTS = [
    "please reverse it : a b c d e f g h i j k l m n o p q r s t u v w x y z",  # read in two steps
    "say d",
    "copy it : x y z w v",
    "a b c d e f g h",
    "say x y",
    "say x y",
    "rotate it : a b c",
    "now say it : e f",
    "cipher it : g",
]
CHOICES = [
    RoutingChoice("phatgoose"),
    RoutingChoice("expert:e3"),
    RoutingChoice("base"),
    RoutingChoice("phatgoose", k=1, deny=("e0",)),
    RoutingChoice("merged", release=7),
    RoutingChoice("phatgoose"),
    RoutingChoice("nnls-request"),
    RoutingChoice("nnls-token", k=1),
    RoutingChoice("retrieval"),
]
LENGTH = 12


@pytest.fixture(scope="module", params=["llama", "qwen2", "gpt2", "t5", "padded gpt2"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(kind: str, tmp_path_factory: pytest.TempPathFactory) -> RoutedModel:
    name = kind.rsplit(maxsplit=1)[-1]
    folder = tmp_path_factory.mktemp(name)
    base: Path = getattr(factories, f"make_{name}")(folder / "base")
    identity = Identity.generate()
    pool, told = factories.make_pool(base, identity), Statistics(means=Means(), centroid=Centroid(width=32))
    made = [
        factories.make_bundle(folder / f"e{n}", pool, identity, name=f"e{n}", alpha=16.0, seed=n, statistics=told)
        for n in range(5)
    ]
    model = RoutedModel.from_bundles(str(base), made[:4], device="cpu")
    model.generation = replace(model.generation, release=7)
    newest = replace(model.generation, release=8, pool=model.generation.pool.add(model.load(made[4])))
    model.held = model.held.followed_by(newest)
    # Answers of random models are short, and full of what no text shows.
    wanted, tokenizer = model.base.model.generation_config, model.base.tokenizer
    wanted.min_new_tokens = LENGTH
    wanted.suppress_tokens = [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id]
    return model


@pytest.fixture(scope="module")
def engine(model: RoutedModel, kind: str) -> Iterator[Engine]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paged, "CHUNK_TOKENS", 16)
        if kind.startswith("padded"):
            patch.setattr(opening, "can_pack", lambda _: False)  # as for a base that attends in a way of its own
        engine = open_engine(model, waiting=20, memory_share=0.1, seats=8)
        engine.start()
        yield engine
        engine.stop()
        assert engine.load.trouble == ""


def alone(model: RoutedModel, asked: Asked) -> list[int]:
    """Tokens that the model writes to a request when it is the only one, without the end token."""
    base, sampling = model.base, asked.sampling
    planned = plan(model.features, model.held, [asked.prompt], [asked.choice])
    with torch.inference_mode(), routing(planned.plan):
        out = base.model.generate(
            torch.tensor([asked.prompt.tokens]), max_new_tokens=sampling.max_new_tokens, do_sample=False
        )
    written = out[0, len(asked.prompt.tokens) if base.architecture == "decoder-only" else 1 :].tolist()
    return [token for token in written if token != base.tokenizer.eos_token_id]


def test_each_is_answered_in_one_batch_as_it_is_alone(model: RoutedModel, engine: Engine) -> None:
    prompts = model.read(INPUTS)
    asked = [
        Asked(prompt, choice, Sampling(max_new_tokens=LENGTH + at % 4), explain=at % 2 == 0)
        for at, (prompt, choice) in enumerate(zip(prompts, CHOICES, strict=True))
    ]
    expected = [
        model.answer([each.prompt], each.choice, max_new_tokens=each.sampling.max_new_tokens, explain=each.explain)
        for each in asked
    ]
    told = ask_all(engine, asked)
    assert len({tuple(tokens(each)) for each in told}) == len(CHOICES)  # the choices matter
    for each, alike, mine in zip(asked, expected, told, strict=True):
        assert tokens(mine) == alone(model, each)
        (answer,), (other,) = ended(mine).answered.answers, alike.answers
        assert answer.text == other.text == text(mine)
        assert (answer.release, answer.method) == (other.release, other.method)
        assert ended(mine).answered.experts == alike.experts
        assert (ended(mine).reason == "length") == (len(tokens(mine)) == each.sampling.max_new_tokens)
        assert ended(mine).input_tokens == len(each.prompt.tokens)
        assert ended(mine).output_tokens == len(tokens(mine)) + (ended(mine).reason == "stop")
        assert (answer.input_tokens, answer.output_tokens) == (other.input_tokens, other.output_tokens)
        assert bool(answer.routes) == (each.explain and each.choice.method != "base")
        assert [route.module for route in answer.routes] == [route.module for route in other.routes]
        for route, known in zip(answer.routes, other.routes, strict=True):
            assert (route.experts == known.experts).all()
            assert route.weights == pytest.approx(known.weights, abs=1e-4)


def test_what_one_choice_read_never_answers_for_another(model: RoutedModel, engine: Engine) -> None:
    (prompt,) = model.read([" ".join(2 * INPUTS[:1])])  # longer than a page, which might be shared
    assert len(prompt.tokens) > PAGE_TOKENS + 8
    choices = [
        RoutingChoice("phatgoose"),
        RoutingChoice("expert:e3"),
        RoutingChoice("base"),
        RoutingChoice("expert:e2"),
    ]
    asked = [Asked(prompt, choice, Sampling(max_new_tokens=LENGTH)) for choice in choices]
    expected = [alone(model, each) for each in asked]
    assert len(set(map(tuple, expected))) == len(choices)
    assert [tokens(told) for told in ask_all(engine, asked)] == expected
    # And none that comes after, when their pages are free again.
    assert [tokens(ask_one(engine, each)) for each in reversed(asked)] == expected[::-1]


def test_a_seed_writes_the_same_whoever_else_is_answered(model: RoutedModel, engine: Engine) -> None:
    prompts = model.read(INPUTS)
    mine = Asked(prompts[1], sampling=Sampling(max_new_tokens=LENGTH, temperature=1.0, top_p=0.9, seed=5))
    other = replace(mine, sampling=replace(mine.sampling, seed=6))
    others = [
        Asked(prompt, choice, Sampling(max_new_tokens=LENGTH, temperature=1.5))
        for prompt, choice in zip(prompts, CHOICES, strict=True)
    ]
    expected = tokens(ask_one(engine, mine))
    beside = ask_all(engine, [*others[:3], mine, *others[3:], other])
    assert tokens(beside[3]) == expected
    assert tokens(beside[-1]) != expected


def test_an_answer_ends_before_a_text_that_spans_tokens(model: RoutedModel, engine: Engine) -> None:
    (prompt,) = model.read(INPUTS[2:3])
    asked = Asked(prompt, CHOICES[0], Sampling(max_new_tokens=LENGTH))
    whole = ask_one(engine, asked)
    stop = whole[3].text[-1] + whole[4].text
    told = ask_one(engine, replace(asked, sampling=replace(asked.sampling, stop=(stop, "never"))))
    (expected,) = model.generate([prompt], CHOICES[0], max_new_tokens=LENGTH, stop=[stop])
    assert text(told) == ended(told).answered.answers[0].text == expected == text(whole).split(stop)[0].strip()
    assert (ended(told).reason, ended(whole).reason) == ("stop", "length")
    assert ended(told).output_tokens < LENGTH


def test_log_probabilities_are_those_of_a_plain_forward_pass(model: RoutedModel, engine: Engine) -> None:
    (prompt,), base = model.read(INPUTS[:1]), model.base
    asked = Asked(prompt, CHOICES[0], Sampling(max_new_tokens=LENGTH, top_logprobs=3))
    told = ask_one(engine, asked)
    written = tokens(told)
    planned = plan(model.features, model.held, [prompt], [asked.choice])
    with torch.inference_mode(), routing(planned.plan):
        if base.architecture == "decoder-only":
            logits = base.model(torch.tensor([prompt.tokens + written])).logits[0, len(prompt.tokens) - 1 :]
        else:
            logits = base.model(torch.tensor([prompt.tokens]), decoder_input_ids=torch.tensor([[0, *written]])).logits[
                0
            ]
    expected = logits.log_softmax(-1)
    for at, each in enumerate(each for each in told if isinstance(each, Written)):
        assert each.logprob == pytest.approx(float(expected[at, each.token]), abs=1e-4)
        assert [share for _, share in each.top] == pytest.approx(expected[at].topk(3).values.tolist(), abs=1e-4)


def test_whoever_goes_leaves_the_batch_and_others_go_on(model: RoutedModel, engine: Engine) -> None:
    prompts = model.read(INPUTS)
    stays, goes = (Asked(prompt, CHOICES[0], Sampling(max_new_tokens=40)) for prompt in prompts[:2])
    expected = tokens(ask_one(engine, stays))

    async def both() -> list[int]:
        staying = asyncio.create_task(heard(engine, stays))
        async with aclosing(engine.ask(goes)) as told:
            assert isinstance(await anext(told), Written)
        found = tokens(await asyncio.wait_for(staying, LONGEST_S))
        for _ in range(100):
            if not engine.load.running:
                return found
            await asyncio.sleep(0.05)
        raise AssertionError

    assert asyncio.run(both()) == expected
    assert (engine.load.waiting, engine.load.running, engine.load.most_waiting) == (0, 0, 20)


def test_a_release_that_comes_changes_nothing_of_what_is_being_written(model: RoutedModel, engine: Engine) -> None:
    (prompt,) = model.read(INPUTS[1:2])
    asked = Asked(prompt, sampling=Sampling(max_new_tokens=40))
    expected, before = ask_one(engine, asked), model.held
    less = before.newest.pool.remove(before.newest.pool.experts[4].digest).remove(before.newest.pool.experts[3].digest)

    async def overtaken() -> list[Written | Ended]:
        found: list[Written | Ended] = []
        async with aclosing(engine.ask(asked)) as told:
            async for each in told:
                found.append(each)
                if len(found) == 1:
                    model.held = before.followed_by(replace(before.newest, release=9, pool=less))
        return found

    try:
        found = asyncio.run(asyncio.wait_for(overtaken(), LONGEST_S))
        assert [each for each in found if isinstance(each, Written)] == expected[:-1]
        assert (ended(found).answered.answers[0].release, ended(expected).answered.answers[0].release) == (8, 8)
        # The next one is answered without the expert that was yanked.
        after = ask_one(engine, asked)
        assert ended(after).answered.answers[0].release == 9
        assert tokens(after) == alone(model, asked)
        assert tokens(after) != tokens(expected)
        (refused,) = refusals(engine, [replace(asked, choice=RoutingChoice("expert:e3"))])
        assert isinstance(refused, GreylagError)
        assert refused.code is Code.EXPERT_UNKNOWN
    finally:
        model.held = before


def test_one_refusal_stops_nobody_else(model: RoutedModel, engine: Engine) -> None:
    prompts = model.read(INPUTS[:4])
    wrong = [RoutingChoice("magic"), RoutingChoice(release=3), RoutingChoice("expert:e9"), CHOICES[0]]
    asked = [
        Asked(prompt, choice, Sampling(max_new_tokens=LENGTH)) for prompt, choice in zip(prompts, wrong, strict=True)
    ]
    *refused, told = refusals(engine, asked)
    assert [each.code for each in refused if isinstance(each, GreylagError)] == [
        Code.METHOD_UNKNOWN, Code.RELEASE_UNKNOWN, Code.EXPERT_UNKNOWN,
    ]  # fmt: skip
    assert isinstance(told, list)
    assert tokens(told) == alone(model, asked[3])
