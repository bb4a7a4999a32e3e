"""The one file that knows transformers' continuous batching from inside; written for transformers 5.23.

Public there: `init_continuous_batching`, `ContinuousBatchingConfig`, and of the manager `add_request`, `cancel_request`
and `get_result`. Not public, and used here, since the manager's own thread can neither plan a request nor draw as that
request asks: the manager's `_create_batch_processor`; the processor's `prepare_next_batch`, `_generation_step`,
`update_batch`, `fail_all_requests`, `inputs_and_outputs.requests_in_batch` and `.compute_stream`; of a model
`_supports_logits_to_keep`, `_prepare_special_tokens` and `_get_logits_processor`.
"""

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.modeling_outputs import CausalLMOutput

from protocol.errors import Code, Unavailable
from router.base.loading import Base
from router.serving.batches.draw import Penalty
from router.serving.batches.room import CHUNK_TOKENS, PAGE_TOKENS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ATTENTION = ("sdpa", "flash_attention_2", "flash_attention_3")
"""Ways to attend that serve a packed batch and, at the same time, whoever else runs the model."""
_LAYERS = ("full_attention", "sliding_attention")
_SPARE_PAGES = 8
"""Pages that one kind of layers may hold and leave unused while another needs them."""


class Segment(NamedTuple):
    """What a packed batch holds of one request."""

    name: str
    tokens: int
    due: bool
    """Whether the request is given a token; not while its prompt is being read in parts."""


Run = Callable[[Sequence[Segment], Callable[[], Tensor]], Sequence[int]]
"""Given who is in the batch, and what runs the model and returns scores [b, o] of those who are due, their tokens."""


def can_pack(base: Base) -> bool:
    """Tell whether a base can be asked in packed batches."""
    config = base.model.config.get_text_config()
    layers = getattr(config, "layer_types", None) or ["full_attention"]
    return (
        base.architecture == "decoder-only"
        and len({parameter.device for parameter in base.model.parameters()}) == 1
        and config._attn_implementation in _ATTENTION  # noqa: SLF001 - transformers names it so
        and all(layer in _LAYERS for layer in layers)
    )


def ends(base: Base) -> frozenset[int]:
    """List the tokens that end an answer."""
    told = base.model.generation_config.eos_token_id
    told = told if isinstance(told, list) else [told]
    return frozenset(
        int(token) for token in (*told, base.tokenizer.eos_token_id, base.tokenizer.pad_token_id) if token is not None
    )


def penalty(base: Base, prompt: Sequence[int], started: int, limit: int) -> Penalty | None:
    """Make what a checkpoint wants done to scores wherever it writes, as `generate` does it; None where nothing.

    Args:
        base: The base model.
        prompt: The request's tokens.
        started: Tokens that stand before the first one that is written.
        limit: Most tokens that are written.
    """
    model: Any = base.model
    config = copy.deepcopy(model.generation_config)
    config.do_sample = False  # a request says itself how it draws
    config.max_length = started + limit  # some have a token that is to be the last
    model._prepare_special_tokens(config, device=model.device)  # noqa: SLF001 - see above
    read = torch.tensor([list(prompt)], device=model.device)
    found = model._get_logits_processor(  # noqa: SLF001 - see above
        config,
        input_ids_seq_length=started,
        encoder_input_ids=read,
        device=model.device,
        model_kwargs={},
    )
    return found or None


class PagedBatch:
    """A batch whose keys and values lie in pages, and in which requests come and go between two steps.

    Args:
        model: A decoder.
        run: Runs the model for a step, and draws.
        pages: Pages of keys and values.
        seats: Requests at a time.

    Raises:
        Unavailable: `MEMORY_FULL`.
    """

    def __init__(self, model: "PreTrainedModel", run: Run, *, pages: int, seats: int) -> None:
        kinds = len(set(getattr(model.config.get_text_config(), "layer_types", None) or ()))
        config = ContinuousBatchingConfig(
            page_size=PAGE_TOKENS,
            num_blocks=pages + max(kinds - 1, 0) * _SPARE_PAGES,
            max_batch_tokens=max(CHUNK_TOKENS, seats),
            max_requests_per_batch=seats,
            max_memory_percent=1.0,  # how much, was settled by whoever counted the pages
            # Blocks are known there by their tokens alone: what one routing wrote would answer for another.
            allow_block_sharing=False,
            safety_margin=0.0,  # whoever is let in has all pages that he will need
            # Plans are other ones at each step, which neither a graph nor a second stream can follow.
            use_async_batching=False,
            use_cuda_graph=False,
            auto_switch_to_flash=False,  # it might fetch kernels
        )
        sampling = GenerationConfig(do_sample=False, eos_token_id=-1, max_new_tokens=None)
        try:
            self._manager = model.init_continuous_batching(sampling, config)
            self._processor = self._manager._create_batch_processor()  # noqa: SLF001 - see above
            # No stream of its own: what others have begun, a release that is loaded or a plan, is done before a step.
            self._processor.inputs_and_outputs.compute_stream = None
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise Unavailable(
                Code.MEMORY_FULL,
                "There is too little memory for the requests that are to be answered at once.",
                "Give them a smaller share of it, or let fewer in at a time.",
            ) from error
        self._forward = _Forward(model, run, self._segments)

    def add(self, name: str, tokens: Sequence[int]) -> None:
        """Let a request in by its prompt; it is given tokens until it is taken out."""
        self._manager.add_request(list(tokens), request_id=name, eos_token_id=-1)

    def remove(self, name: str) -> None:
        """Take a request out before the next step."""
        self._manager.cancel_request(name)

    def step(self) -> None:
        """Run the model once over whatever is there."""
        if self._processor.prepare_next_batch():
            self._processor._generation_step(self._forward)  # noqa: SLF001 - see above
            self._processor.update_batch()
        self._forget()

    def clear(self) -> None:
        """Take everybody out, after a step that failed."""
        self._processor.fail_all_requests(RuntimeError("the step failed"))
        self._forget()

    def _forget(self) -> None:
        """Drop what is told of requests that are over: whoever asked was told in `run`."""
        while self._manager.get_result(timeout=0) is not None:
            pass

    def _segments(self) -> list[Segment]:
        batch = self._processor.inputs_and_outputs.requests_in_batch
        return [Segment(each.state.request_id, each.query_length, each.has_new_token) for each in batch]


class _Forward:
    """Stands where the model is called, and hands back scores of which the largest are the tokens that were drawn."""

    def __init__(self, model: "PreTrainedModel", run: Run, segments: Callable[[], list[Segment]]) -> None:
        self._model, self._run, self._segments = model, run, segments
        self._keeps: bool = model._supports_logits_to_keep()  # noqa: SLF001 - see above

    def _supports_logits_to_keep(self) -> bool:
        return True  # a model that does not is helped below

    def __call__(self, **batch: Any) -> CausalLMOutput:
        """Run the model on a packed batch."""
        segments = self._segments()
        due = sum(each.due for each in segments)
        # Given it, transformers writes it into the model's configuration for as long as the model runs, where whoever
        # runs the model beside us reads it: a later token would be seen by an earlier one. The mask says it all here.
        batch.pop("is_causal")
        if not self._keeps:
            batch.pop("logits_to_keep")
        found: list[Tensor] = []

        def scores() -> Tensor:
            logits = self._model(**batch).logits[0]
            found.append(logits if self._keeps else logits[batch["logits_indices"]])
            return found[0][:due]

        tokens = self._run(segments, scores)
        chosen = torch.zeros_like(found[0], dtype=torch.float32)
        chosen[torch.arange(due), torch.tensor(tokens, dtype=torch.long)] = 1.0
        return CausalLMOutput(logits=chosen.unsqueeze(0))
