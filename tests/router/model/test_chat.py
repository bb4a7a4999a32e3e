"""Chats are asked as experts were trained on them: by the tokenizer's own template."""

import asyncio
import json
from pathlib import Path

import pytest

from client.data.examples import encode_chat
from protocol.errors import Code, Refused
from protocol.signing import Identity
from protocol.spec import Means, Statistics
from protocol.v1.query_pb2 import AskRequest
from router.model.routed_model import RoutedModel
from router.query.client import choice_to_wire, input_to_wire
from router.query.request import Input, RoutingChoice, Turn
from router.serving.batches.opening import open_engine
from router.serving.query_service import QueryService
from tests import factories
from tests.router.verbs import call, pulled_node

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} {{ eos_token }} {% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)
INPUTS = ["reverse it : a b", "say z", "please now it"]
CHAT: list[Turn] = [
    {"role": "user", "content": "say a"},
    {"role": "assistant", "content": "a"},
    {"role": "user", "content": "now copy it"},
]


@pytest.fixture(scope="module")
def base(llama_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder whose tokenizer has a chat template."""
    folder = factories.make_llama(tmp_path_factory.mktemp("chat") / "base")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def model(base: Path, tmp_path_factory: pytest.TempPathFactory) -> RoutedModel:
    identity, folder = Identity.generate(), tmp_path_factory.mktemp("experts")
    pool = factories.make_pool(base, identity)
    bundles = [factories.make_bundle(folder / name, pool, identity, name=name, seed=len(name)) for name in ("a", "bb")]
    return RoutedModel.from_bundles(str(base), bundles, device="cpu")


def plain(turn: Turn) -> dict[str, str]:
    return {"role": turn["role"], "content": turn["content"]}


def test_a_chat_is_read_as_it_was_trained_on(model: RoutedModel) -> None:
    (prompt,) = model.read([CHAT])
    trained = encode_chat(model.base.tokenizer, [*map(plain, CHAT), {"role": "assistant", "content": "a"}])
    assert trained is not None
    assert trained[0][: len(prompt.tokens)] == prompt.tokens
    assert model.read([prompt.text])[0].tokens != model.read(["say a"])[0].tokens


def test_one_input_is_one_request(model: RoutedModel) -> None:
    both: list[Input] = [CHAT, "hello"]
    assert len(model.generate("hello", max_new_tokens=2)) == 1
    assert model.generate("hello", max_new_tokens=2) == model.generate(["hello"], max_new_tokens=2)
    assert model.generate(CHAT, max_new_tokens=2) == model.generate(both, max_new_tokens=2)[:1]
    assert model.losses(CHAT, ["a"]) == pytest.approx(model.losses(both, ["a", "a"])[:1], rel=1e-5)
    assert model.losses("hello", ["a"]) == model.losses(["hello"], ["a"])


@pytest.mark.parametrize("chat", [[], [{"role": "user", "content": " "}], CHAT[:2]])
def test_a_chat_that_asks_nothing_is_refused(model: RoutedModel, chat: list[Turn]) -> None:
    asked: list[Input] = ["hello", chat]
    with pytest.raises(Refused) as refused:
        model.generate(asked)
    assert refused.value.code is Code.REQUEST_INVALID


def test_every_verb_that_asks_takes_a_chat(base: Path, tmp_path: Path) -> None:
    node = pulled_node(base, tmp_path)
    (tmp_path / "asked.jsonl").write_text(json.dumps({"messages": CHAT}))
    (tmp_path / "tasks.jsonl").write_text(json.dumps({"task": "chat", "messages": CHAT, "oracle": "copy"}))
    options = ("-w", node, "--device", "cpu", "--max-new-tokens", 2, "--json")
    answers = [
        json.loads(call(*verb, *options).stdout)["answers"][0]
        for verb in (
            ("ask", "--explain", "--requests", tmp_path / "asked.jsonl"),
            ("trace", "--tasks", tmp_path / "tasks.jsonl"),
        )
    ]
    assert answers[0]["input_tokens"] == answers[1]["input_tokens"]
    assert answers[0]["input_tokens"][-1] == ":"
    said = call("export", "--out", tmp_path / "lora", "--requests", tmp_path / "asked.jsonl", *options)
    assert json.loads(said.stdout)["modules"]


def test_an_input_is_tokenised_once_on_its_way_to_an_answer(
    base: Path, tmp_path: Path, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.methods.features.background.TEXTS", 40)
    pool, means = factories.make_pool(base, identity), Statistics(means=Means())
    bundles = [factories.make_bundle(tmp_path / n, pool, identity, name=n, statistics=means) for n in ("a", "b")]
    model = RoutedModel.from_bundles(str(base), bundles, device="cpu")
    tokenizer, read = model.base.tokenizer, list[str]()
    model.generate(INPUTS, RoutingChoice("nnls-token"), max_new_tokens=1)  # with it public text, once a base
    model.prepare(RoutingChoice("nnls-token"))  # which reads a word of its own
    call = type(tokenizer).__call__

    def counted(self: object, text: str | None = None, **options: object) -> object:
        read.append(str(text))
        return call(tokenizer, text, **options)

    monkeypatch.setattr(type(tokenizer), "__call__", counted)
    model.answer(INPUTS, RoutingChoice("nnls-token"), max_new_tokens=2, explain=True)
    assert read == INPUTS
    engine, asked = open_engine(model, waiting=8, memory_share=0.02), [input_to_wire(text) for text in INPUTS]
    service = QueryService(engine)
    engine.start()
    request = AskRequest(inputs=asked, choices=[choice_to_wire(RoutingChoice("nnls-token"))], max_new_tokens=2)

    async def ask() -> None:
        assert [part async for part in service.Ask(request, None)]  # type: ignore[arg-type] # it needs no context

    asyncio.run(ask())
    engine.stop()
    assert read == INPUTS * 2
