"""A routed model for lm-evaluation-harness, so that any of its tasks runs on a release: `--model greylag`.

The harness reads the entry point `lm_eval.models` from the release after 0.4.13 on. Up to then something must import
this module before its command line looks for models: `greylag-router lm-eval` does, and is the stock command otherwise;
so does a task that names it.

Scores follow the harness's own rules, which differ from `router.evaluation` in one point: a continuation has no end
token.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import Collator, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from protocol.errors import Code, Refused
from router.base.batching import Prompt, TokenPair
from router.base.memory import memory_watched
from router.base.tokens import Templated, encode_input, write_chat
from router.evaluation.prompts import cut_to
from router.methods import find_method
from router.model.opening import load_model
from router.model.routed_model import RoutedModel
from router.query.request import RoutingChoice

_NO_POSITIONS = 2048
"""Longest input of a model that names no limit, as the harness takes for its own models."""
_GREEDY = {"do_sample", "max_gen_toks", "num_beams", "temperature", "top_k", "top_p", "until"}
"""Settings of generation that mean nothing, or what they always mean, where the likeliest token is taken."""

Scored = tuple[tuple[str, str], list[int], list[int]]
"""Context and continuation, as text and as the tokens of each."""


@register_model("greylag")
class GreylagLM(TemplateLM):
    """What the harness asks of a model, answered by a release.

    Its settings are those of `greylag-router ask`, and the harness's own: `batch_size` sequences in memory at once,
    inputs of `max_length` tokens at most (default: the model's positions), answers of `max_gen_toks` where tasks do
    not say.
    """

    def __init__(
        self,
        *,
        workspace: str = ".",
        saved: str | None = None,
        base: str | None = None,
        embedding: str | None = None,
        quantise: str | None = None,
        device: str | None = None,
        method: str | None = None,
        k: int | None = None,
        temperature: float | None = None,
        release: int | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,  # noqa: ARG002 - for batches whose size the harness finds out
        max_length: int | None = None,
        max_gen_toks: int = 256,
    ) -> None:
        super().__init__()
        if method is not None:
            find_method(method)  # before the model wakes
        self._choice = RoutingChoice(method=method, k=k, temperature=temperature, release=release)
        try:
            self._at_once = int(batch_size)
        except ValueError as error:
            raise Refused(
                Code.REQUEST_INVALID,
                f"The batch size is {batch_size!r:.20}; expected a number.",
                "Give --batch_size 8.",
            ) from error
        settings = {"base": base, "embedding": embedding, "device": device, "quantise": quantise}
        self.model: RoutedModel = load_model(
            Path(workspace), Path(saved) if saved else None, [release], settings, logging.getLogger(__name__).warning
        )
        self.tokenizer = self.model.base.tokenizer
        self.backend = "causal" if self.model.base.architecture == "decoder-only" else "seq2seq"
        self._longest = max_length or self.model.base.positions or _NO_POSITIONS
        self._new_tokens = max_gen_toks

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before the first token of a text that has no context."""
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else int(begin)

    @property
    def tokenizer_name(self) -> str:
        """Tells caches of the harness apart."""
        return str(self.model.base.source).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Write a chat as the tokenizer's template does."""
        return write_chat(self.tokenizer, chat_history, prompt=add_generation_prompt)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Turn text into tokens; those of a context as training turns inputs into tokens."""
        if add_special_tokens is False:
            return list(self.tokenizer(string, add_special_tokens=False)["input_ids"])
        return encode_input(self.tokenizer, self._as_written(string), self.model.base.architecture)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Score whole texts, each in as few pieces as the model's length allows."""
        pieces: list[tuple[int, Scored]] = []
        for at, (text,) in enumerate(request.args for request in requests):
            tokens = self.tok_encode(text)
            windows = get_rolling_token_windows(tokens, self.prefix_token_id, self._longest, context_len=1)
            pieces += [(at, ((text, text), *make_disjoint_window(window))) for window in windows]
        totals = [0.0] * len(requests)
        scored = self._loglikelihood_tokens([piece for _, piece in pieces], disable_tqdm=disable_tqdm)
        for (at, _), (total, _) in zip(pieces, scored, strict=True):
            totals[at] += total
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Let the model write, up to a text that ends the answer."""

        def length(asked: tuple[str, dict[str, Any]]) -> int:
            return -len(asked[0])

        def settings(asked: tuple[str, dict[str, Any]]) -> dict[str, Any]:
            found = dict(normalize_gen_kwargs(asked[1], self._new_tokens))
            other = sorted(found.keys() - _GREEDY)
            if other or found.get("do_sample") or found.get("num_beams", 1) != 1:
                raise Refused(
                    Code.REQUEST_INVALID,
                    f"A task wants answers drawn or searched for ({', '.join(other) or 'do_sample, num_beams'}); here "
                    "the likeliest token is taken each time.",
                    "Overrule it with --gen_kwargs do_sample=False, or choose another task.",
                )
            return found

        # Requests that are generated alike stand together, those of like length next to each other.
        ordered = Collator([request.args for request in requests], length, settings, "gen_kwargs")
        said, bar = list[str](), tqdm(total=len(requests), disable=disable_tqdm, desc="generate_until")
        for batch in ordered.get_batched(self._at_once):
            new_tokens, until = (settings(batch[0])[name] for name in ("max_gen_toks", "until"))
            contexts = [self._shortened(context, new_tokens) for context, _ in batch]
            with memory_watched():
                answers = self.model.generate(contexts, self._choice, max_new_tokens=new_tokens, stop=until)
            for asked, answer in zip(batch, answers, strict=True):
                self.cache_hook.add_partial("generate_until", asked, answer)
            said += answers
            bar.update(len(batch))
        bar.close()
        return list(ordered.get_original(said))

    def _loglikelihood_tokens(
        self, requests: Sequence[Scored], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        ordered = Collator(requests, lambda asked: -len(asked[1]) - len(asked[2]))
        found = list[tuple[float, bool]]()
        bar = tqdm(total=len(requests), disable=disable_tqdm, desc="loglikelihood")
        for batch in ordered.get_batched(self._at_once):
            pairs = [self._pair(context, continuation) for _, context, continuation in batch]
            # A method that reads the request first reads the context, or what there is instead.
            prompts = [
                Prompt(context or continuation, pair.target if context in ("", continuation) else pair.input)
                for ((context, continuation), _, _), pair in zip(batch, pairs, strict=True)
            ]
            with memory_watched():
                scored = self.model.likelihoods(prompts, pairs, self._choice)
            for (asked, _, _), each in zip(batch, scored, strict=True):
                found.append((each.total, each.greedy))
                self.cache_hook.add_partial("loglikelihood", asked, found[-1])
            bar.update(len(batch))
        bar.close()
        return list(ordered.get_original(found))

    def _pair(self, context: list[int], continuation: list[int]) -> TokenPair:
        """Cut what is too long on the left, as the harness does."""
        if self.backend != "causal":
            return TokenPair(context[-self._longest :], continuation)
        kept = (context + continuation)[-self._longest - 1 :]
        cut = max(len(kept) - len(continuation), 1)
        return TokenPair(kept[:cut], kept[cut:])

    def _shortened(self, context: str, new_tokens: int) -> str:
        """Cut a context on the left so that there is room for the answer."""
        room = self._longest - (new_tokens if self.backend == "causal" else 0)
        if room <= 0:
            raise Refused(
                Code.REQUEST_INVALID,
                f"An answer of {new_tokens} tokens leaves no room for an input; the model takes {self._longest}.",
                "Ask for shorter answers with --gen_kwargs max_gen_toks=64.",
            )
        return cut_to(self.model.base, self._as_written(context), room, keep="end")

    def _as_written(self, text: str) -> str:
        """Take a text that begins with the begin token for one that a template wrote."""
        begin = self.tokenizer.bos_token
        return Templated(text) if begin and text.startswith(begin) else text
