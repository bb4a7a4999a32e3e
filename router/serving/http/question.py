"""From a request's body to what the engine is asked."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

from protocol.errors import Code, Refused
from router.base.batching import Prompt
from router.model.routed_model import Asking, RoutedModel
from router.query.limits import DEFAULT_NEW_TOKENS, MAX_SQUARED_TOKENS, Allowance
from router.query.request import Input, RoutingChoice, Turn
from router.serving.engine import Asked, Sampling
from router.serving.http.model_name import read_model
from router.serving.http.requests import MAX_ANSWERS, ChatRequest, CompletionRequest, Extras, Message, Wanted

_SEEDS = 1 << 63
Given = Input | tuple[int, ...]
"""A text, a chat, or tokens."""


@dataclass(frozen=True)
class Question:
    """A request, read; every input is answered `each` times."""

    inputs: tuple[Given, ...]
    choice: RoutingChoice
    sampling: Sampling
    each: int = 1
    explain: bool | Literal["shares"] = False

    def asked(self, prompts: Sequence[Prompt]) -> list[Asked]:
        """Say what the engine is asked, given the inputs in tokens: answers of one input stand together."""
        return [
            Asked(prompt, self.choice, self._sampling(number), explain=bool(self.explain))
            for prompt in prompts
            for number in range(self.each)
        ]

    def _sampling(self, number: int) -> Sampling:
        """Draw each answer to an input by another seed, or with one they would all be the same."""
        seed = self.sampling.seed
        if seed is None or not number:
            return self.sampling
        return replace(self.sampling, seed=(seed + number + _SEEDS) % (2 * _SEEDS) - _SEEDS)


def understand(wanted: Wanted, pool: str, allowance: Allowance) -> Question:
    """Make of a body what is asked.

    Args:
        wanted: The body.
        pool: What the pool is called.
        allowance: What a caller may ask for.

    Raises:
        Refused: `POOL_UNKNOWN` or `REQUEST_INVALID`.
    """
    inputs = _inputs(wanted)
    each = wanted.n or 1
    if not 1 <= len(inputs) * each <= MAX_ANSWERS:
        what = f"The request asks for {len(inputs) * each} answers; 1 to {MAX_ANSWERS} are given at once."
        raise Refused(Code.REQUEST_INVALID, what, "Split the request.")
    choice = _choice(wanted.model, wanted.greylag, pool)
    return Question(inputs, choice, _sampling(wanted, allowance), each, wanted.greylag.explain)


def read_inputs(model: RoutedModel, inputs: Sequence[Given]) -> list[Prompt]:
    """Turn inputs into tokens, as `RoutedModel.read` does.

    Raises:
        Refused: `REQUEST_INVALID`, or `DATA_TOO_LONG`.
    """
    if not model.base.tokenizer.chat_template and any(not isinstance(each, str | tuple) for each in inputs):
        what = "The pool's base has no chat template, so nobody can chat with it."
        raise Refused(Code.REQUEST_INVALID, what, "Ask /v1/completions.")
    read = [_prompt(model, each) if isinstance(each, tuple) else each for each in inputs]
    prompts = model.read(cast("Asking", read), math.isqrt(MAX_SQUARED_TOKENS))
    for prompt in prompts:
        if len(prompt.tokens) ** 2 > MAX_SQUARED_TOKENS:
            what = f"An input is {len(prompt.tokens)} tokens long."
            raise Refused(Code.REQUEST_INVALID, what, f"Send at most {math.isqrt(MAX_SQUARED_TOKENS)} tokens.")
    return prompts


def _prompt(model: RoutedModel, tokens: tuple[int, ...]) -> Prompt:
    known = min(len(model.base.tokenizer), model.base.model.get_input_embeddings().num_embeddings)
    if unknown := [token for token in tokens if token >= known]:
        what = f"{unknown[0]} is no token of the base's, which has {known}."
        raise Refused(Code.REQUEST_INVALID, what, "Send text, and the router makes tokens of it.")
    return Prompt(model.base.tokenizer.decode(tokens), list(tokens))


def _inputs(wanted: Wanted) -> tuple[Given, ...]:
    match wanted:
        case ChatRequest():
            return ([_turn(message) for message in wanted.messages],)
        case CompletionRequest(prompt=str(text)):
            return (text,)
        case CompletionRequest(prompt=tuple(prompts)) if prompts and isinstance(prompts[0], int):
            return (prompts,)
        case CompletionRequest(prompt=prompts):
            return cast("tuple[Given, ...]", prompts)
    raise ValueError(wanted)


def _turn(message: Message) -> Turn:
    text = message.content if isinstance(message.content, str) else "".join(part.text for part in message.content)
    # What OpenAI calls a developer's word since 2024, templates know as the system's.
    return Turn(role="system" if message.role == "developer" else message.role, content=text)


def _choice(name: str, extras: Extras, pool: str) -> RoutingChoice:
    named = read_model(name, pool)
    if named.method and extras.method and named.method != extras.method:
        what = f"The model says {named.method:.100}, and greylag.method {extras.method:.100}."
        raise Refused(Code.REQUEST_INVALID, what, "Name one method.")
    return RoutingChoice(
        named.method or extras.method, extras.k, extras.temperature, extras.allow, extras.deny, named.release
    )


def _sampling(wanted: Wanted, allowance: Allowance) -> Sampling:
    most, logprobs = wanted.max_tokens, None
    match wanted:
        case ChatRequest():
            most = wanted.max_completion_tokens if wanted.max_completion_tokens is not None else most
            if wanted.top_logprobs and not wanted.logprobs:
                raise Refused(Code.REQUEST_INVALID, "top_logprobs goes with logprobs.", "Set logprobs to true, too.")
            logprobs = (wanted.top_logprobs or 0) if wanted.logprobs else None
        case CompletionRequest():
            logprobs = wanted.logprobs
    if most is None:
        most = min(DEFAULT_NEW_TOKENS, allowance.new_tokens)
    if most > allowance.new_tokens:
        what = f"{most} new tokens are asked for; at most {allowance.new_tokens} are given."
        raise Refused(Code.REQUEST_INVALID, what, "Ask for fewer.")
    stop = (wanted.stop,) if isinstance(wanted.stop, str) else wanted.stop or ()
    return Sampling(
        most, wanted.temperature or 0.0, 1.0 if wanted.top_p is None else wanted.top_p, wanted.seed, stop, logprobs
    )
