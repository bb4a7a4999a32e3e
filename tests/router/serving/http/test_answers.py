"""What the official client gets of the door, held against the model itself."""

import math
from typing import Any, cast

import pytest
from openai import OpenAI
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from router.base.batching import TokenPair
from router.model.routed_model import RoutedModel
from router.query.request import RoutingChoice

ASKED, LENGTH = "copy it : a b c", 8
CHAT: Any = [{"role": "system", "content": "say it"}, {"role": "user", "content": "a b c"}]


def expected(model: RoutedModel, choice: RoutingChoice, asked: Any = ASKED) -> str:
    (text,) = model.generate([asked], choice, max_new_tokens=LENGTH)
    return text


def complete(client: OpenAI, model: str = "notes", prompt: Any = ASKED, **more: Any) -> Completion:
    return client.completions.create(model=model, prompt=prompt, max_tokens=LENGTH, **more)


def chat(client: OpenAI, **more: Any) -> ChatCompletion:
    return client.chat.completions.create(model="notes", messages=CHAT, max_tokens=LENGTH, **more)


def chat_stream(client: OpenAI, **more: Any) -> list[ChatCompletionChunk]:
    return list(client.chat.completions.create(model="notes", messages=CHAT, max_tokens=LENGTH, stream=True, **more))


@pytest.mark.parametrize(
    ("name", "choice"),
    [
        ("notes", RoutingChoice()),
        ("notes@7", RoutingChoice(release=7)),
        ("notes/expert:ada/rotate", RoutingChoice("expert:ada/rotate")),
        ("notes@7/expert:say", RoutingChoice("expert:say", release=7)),
        ("notes/method:base", RoutingChoice("base")),
    ],
)
def test_a_models_name_chooses_who_answers(
    client: OpenAI, model: RoutedModel, name: str, choice: RoutingChoice
) -> None:
    answer = complete(client, name)
    (only,) = answer.choices
    assert only.text.strip() == expected(model, choice)
    assert (answer.model, only.finish_reason) == (name, "length")
    assert answer.usage
    assert (answer.usage.completion_tokens, answer.usage.prompt_tokens) == (LENGTH, 7)  # and the begin mark
    assert cast("Any", only).greylag == {"release": choice.release or 8, "method": choice.method or "phatgoose"}


def test_what_is_listed_can_be_looked_up_and_asked(client: OpenAI) -> None:
    names = [each.id for each in client.models.list()]
    assert names[:6] == [
        "notes", "notes@8", "notes@7", "notes/expert:ada/copy", "notes/expert:ada/say", "notes/expert:ada/rotate",
    ]  # fmt: skip
    assert {"notes/method:base", "notes/method:phatgoose"} <= set(names)
    for name in names[:4]:
        assert client.models.retrieve(name).owned_by == "notes"
        assert complete(client, name).choices[0].text


def test_a_chat_is_written_by_the_bases_template_and_streams_what_comes_whole(
    client: OpenAI, model: RoutedModel
) -> None:
    whole = chat(client).choices[0].message
    assert whole.content
    assert (whole.role, whole.content.strip()) == ("assistant", expected(model, RoutingChoice(), CHAT))
    chunks = chat_stream(client, stream_options={"include_usage": True})
    assert [choice.delta.content or "" for chunk in chunks for choice in chunk.choices].count("") <= 2
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == whole.content
    assert (chunks[0].choices[0].delta.role, chunks[-2].choices[0].finish_reason) == ("assistant", "length")
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert chunks[-1].usage
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], LENGTH)
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert cast("Any", chunks[-2].choices[0]).greylag["release"] == 8
    parts = [{"type": "text", "text": "a b"}, {"type": "text", "text": " c"}]
    developer: Any = [{"role": "developer", "content": "say it"}, {"role": "user", "content": parts}]
    said = client.chat.completions.create(model="notes", messages=developer, max_completion_tokens=LENGTH)
    assert said.choices[0].message.content == whole.content


def test_extras_choose_and_explain(client: OpenAI, model: RoutedModel) -> None:
    extras = {"method": "phatgoose", "k": 1, "temperature": 2.0, "deny": ["copy"], "explain": True}
    (only,) = complete(client, extra_body={"greylag": extras}).choices
    choice = RoutingChoice("phatgoose", k=1, temperature=2.0, deny=("copy",))
    assert only.text.strip() == expected(model, choice)
    told = cast("Any", only).greylag
    answered = model.answer([ASKED], choice, max_new_tokens=LENGTH, explain=True)
    (answer,) = answered.answers
    shares = {each["name"]: each["share"] for each in told["experts"]}
    assert set(shares) == {"ada/say", "ada/rotate"}
    assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
    assert shares["ada/say"] == pytest.approx(answer_share(answer.routes, answered.experts), abs=1e-5)
    spoken = [token["token"] for token in told["tokens"] if token["of"] == "input"]
    assert spoken == list(answer.input_tokens)
    assert len(told["tokens"]) == len(spoken) + LENGTH - 1  # nobody read the last one
    assert all(
        sum(each["share"] for each in token["experts"]) == pytest.approx(1, abs=1e-5) for token in told["tokens"]
    )
    (only,) = complete(client, extra_body={"greylag": {"allow": ["ada/say"], "explain": "shares"}}).choices
    assert cast("Any", only).greylag == {
        "release": 8, "method": "phatgoose", "experts": [{"name": "ada/say", "share": 1.0}],
    }  # fmt: skip


def answer_share(routes: Any, experts: tuple[str, ...]) -> float:
    """Count by hand what one expert was given."""
    mine = experts.index("ada/say")
    given = [weight for route in routes for weight in route.weights[route.experts == mine]]
    return float(sum(given) / sum(route.weights.sum() for route in routes))


def test_several_inputs_several_times_and_each_answer_drawn_by_a_seed_of_its_own(client: OpenAI) -> None:
    drawn: dict[str, Any] = {"n": 3, "temperature": 1.5, "seed": 11}
    first, again = (complete(client, prompt=[ASKED, "say d"], **drawn) for _ in range(2))
    texts = [choice.text for choice in first.choices]
    assert [choice.index for choice in first.choices] == list(range(6))
    assert len(set(texts)) > 4
    assert texts == [choice.text for choice in again.choices]
    alone = complete(client, temperature=1.5, seed=12)  # the second answer's seed
    assert alone.choices[0].text == texts[1]
    assert first.usage
    assert (first.usage.prompt_tokens, first.usage.completion_tokens) == (7 + 3, 6 * LENGTH)
    streamed = ["", "", ""]
    for chunk in client.completions.create(model="notes", prompt=ASKED, max_tokens=LENGTH, stream=True, **drawn):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == texts[:3]


def test_tokens_are_taken_for_text(client: OpenAI, model: RoutedModel) -> None:
    (prompt,) = model.read([ASKED])
    text = complete(client).choices[0].text
    assert complete(client, prompt=prompt.tokens).choices[0].text == text
    assert [choice.text for choice in complete(client, prompt=[prompt.tokens] * 2).choices] == [text] * 2


def test_an_answer_ends_before_what_it_is_to_stop_at(client: OpenAI) -> None:
    words = complete(client).choices[0].text.split()
    stop = next(word for word in words if word != words[0])
    (only,) = complete(client, stop=[f" {stop}"]).choices
    assert (only.text.split(), only.finish_reason) == (words[: words.index(stop)], "stop")
    chunks = client.completions.create(model="notes", prompt=ASKED, max_tokens=LENGTH, stop=f" {stop}", stream=True)
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == only.text


def test_log_probabilities_in_both_dialects(client: OpenAI, model: RoutedModel) -> None:
    (only,) = complete(client, logprobs=3).choices
    told = only.logprobs
    assert told
    assert told.tokens
    assert told.token_logprobs
    assert told.top_logprobs
    assert told.text_offset
    assert "".join(told.tokens).strip() == only.text.strip()
    assert [only.text[at:].lstrip().split()[0] for at in told.text_offset] == [token.strip() for token in told.tokens]
    for token, logprob, top in zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True):
        assert len(top) == 3
        assert logprob == pytest.approx(top.get(token, logprob))
        assert logprob <= max(top.values()) + 1e-6
    assert math.isclose(-sum(told.token_logprobs[:3]) / 3, first_loss(model, only.text, 3), abs_tol=1e-4)
    entries = chat(client, logprobs=True, top_logprobs=2).choices[0].logprobs
    assert entries
    assert entries.content
    # Those likeliest may be tokens that the checkpoint suppresses.
    assert all(
        len(each.top_logprobs) == 2 and each.logprob <= each.top_logprobs[0].logprob + 1e-6 for each in entries.content
    )
    assert bytes(entries.content[0].bytes or []).decode() == entries.content[0].token
    streamed = [choice.logprobs for chunk in chat_stream(client, logprobs=True) for choice in chunk.choices]
    flat = [each for logprobs in streamed if logprobs for each in logprobs.content or []]
    assert [each.token for each in flat] == [each.token for each in entries.content]
    assert [each.logprob for each in flat] == pytest.approx([each.logprob for each in entries.content], abs=1e-5)
    assert {len(each.top_logprobs) for each in flat} == {0}


def first_loss(model: RoutedModel, text: str, tokens: int) -> float:
    """Score the first tokens of a text by the model's other road."""
    (prompt,) = model.read([ASKED])
    ids = model.base.tokenizer(text, add_special_tokens=False)["input_ids"][:tokens]
    (scored,) = model.likelihoods([prompt], [TokenPair(prompt.tokens, ids)])
    return -scored.mean
