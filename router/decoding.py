"""What the model wrote, back to texts."""

from dataclasses import replace
from itertools import compress

from router.answer import Answer
from router.base import Base
from router.planning import Part
from router.record import RouteRecorder


def decode(base: Base, part: Part, row: int, read: tuple[list[int], list[int]], written: list[int]) -> Answer:
    """Turn what the model wrote for one input into an answer, with its routes where they were recorded.

    Args:
        base: The base model.
        part: The inputs that were routed like this one.
        row: Position among them.
        read: The input's row of input_ids and attention_mask.
        written: Tokens that the model wrote, padding included.
    """
    tokenizer = base.tokenizer
    ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    length = next((at + 1 for at, token in enumerate(written) if token in ends), len(written))
    text = tokenizer.decode(written[:length], skip_special_tokens=True).strip()
    answer = Answer(text, part.generation.release, part.method)
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
