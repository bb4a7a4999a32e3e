"""What the model writes to a batch of inputs, the likeliest token each time."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import compress

import torch
from torch import Tensor

from router.base.batching import Prompt, prompt_batch
from router.base.loading import Base
from router.layer.routed_linear import routing
from router.model.planner import Part, Planned
from router.model.recorder import RouteRecorder
from router.query.answer import Answer, Answered


def write(
    base: Base, planned: Planned, inputs: Sequence[Prompt], max_new_tokens: int, stop: Sequence[str] = ()
) -> Answered:
    """Answer a batch of inputs; answers end before the first text of `stop`, and where the model's positions end."""
    batch = prompt_batch(base, [inputs[at] for at in planned.order])
    read = batch["input_ids"].shape[1] if base.architecture == "decoder-only" else 1
    if base.positions is not None:
        max_new_tokens = min(max_new_tokens, base.positions - read)
    stopping = {"stopping_criteria": [_ended(base, read, stop)]} if stop else {}
    with torch.inference_mode(), routing(planned.plan):
        # transformers' generate settings of the checkpoint may sample; an answer should be repeatable.
        out = base.model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, **stopping)
    written = out[:, read:]
    answers: dict[int, Answer] = {}
    for part in planned.parts:
        for row, at in enumerate(part.inputs):
            ids, mask = (batch[name][len(answers)].tolist() for name in ("input_ids", "attention_mask"))
            answers[at] = to_answer(base, part, row, (ids, mask), written[len(answers)].tolist(), stop)
    return Answered(planned.names, tuple(answers[at] for at in range(len(inputs))), planned.digests)


def _ended(base: Base, read: int, stop: Sequence[str]) -> Callable[..., Tensor]:
    """Make what tells generation, given tokens [b, s], which rows [b] have written what ends them."""

    def ended(tokens: Tensor, *_: object, **__: object) -> Tensor:
        texts = base.tokenizer.batch_decode(tokens[:, read:], skip_special_tokens=True)
        return torch.tensor([any(end in text for end in stop) for text in texts], device=tokens.device)

    return ended


def to_answer(
    base: Base, part: Part, row: int, read: tuple[list[int], list[int]], written: list[int], stop: Sequence[str]
) -> Answer:
    """Turn what the model wrote to one row of a part into an answer, with its routes where they were recorded.

    What it read is the row's input_ids and attention_mask; what it has written includes padding.
    """
    tokenizer = base.tokenizer
    ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    length = next((at + 1 for at, token in enumerate(written) if token in ends), len(written))
    text = before(tokenizer.decode(written[:length], skip_special_tokens=True), stop)
    answer = Answer(text.strip(), part.generation.release, part.method)
    recorder = part.plan.recorder
    if not isinstance(recorder, RouteRecorder):
        return answer
    ids, mask = read
    causal = base.architecture == "decoder-only"
    return replace(
        answer,
        input_tokens=tuple(tokenizer.convert_ids_to_tokens(list(compress(ids, mask)))),
        output_tokens=tuple(tokenizer.convert_ids_to_tokens(written[:length])),
        routes=tuple(recorder.routes(row, [bool(kept) for kept in mask], length, causal=causal)),
    )


def before(text: str, stop: Sequence[str]) -> str:
    """Cut a text before what it was to stop at."""
    for end in stop:
        text = text.split(end, 1)[0]
    return text
