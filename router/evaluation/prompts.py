"""From rows to the texts that are asked, none longer than the model takes."""

from typing import Literal, NamedTuple

from protocol.errors import Code, Refused
from router.base.batching import Prompt, read_prompts
from router.base.loading import Base
from router.base.tokens import encode_input, encode_target
from router.evaluation.rows import EvaluationRow, Task


class BatchLimits(NamedTuple):
    """How much at once, and how long."""

    batch: int = 16
    """Sequences in memory at once; each choice of a row is one."""
    new_tokens: int = 64
    """Longest answer that is written."""
    input_tokens: int | None = None
    """Inputs are cut to so many tokens: an encoder keeps the beginning, a decoder the end. None cuts nothing."""

    def of(self, task: Task) -> "BatchLimits":
        """Return those of a task, which may say how long its answers are."""
        return self if task.new_tokens is None else self._replace(new_tokens=task.new_tokens)


class Prompts(NamedTuple):
    """What is asked, row by row."""

    prompts: list[Prompt]
    cut: int
    """Rows that were too long."""

    @property
    def by_length(self) -> list[int]:
        """Positions, the shortest first: of like length, so that little of a batch is padding."""
        return sorted(range(len(self.prompts)), key=lambda at: len(self.prompts[at].tokens))


def write_prompts(base: Base, task: Task, limits: BatchLimits) -> Prompts:
    """Write and tokenise the rows of a task as the model is to read them.

    Raises:
        Refused: `DATA_TOO_LONG` for a row that goes beyond the model's positions.
    """
    prompts, cut = read_prompts(base, [row.turns or row.input for row in task.rows]), 0
    keep: Literal["begin", "end"] = "end" if base.architecture == "decoder-only" else "begin"
    for at, row in enumerate(task.rows):
        if limits.input_tokens is not None and len(prompts[at].tokens) > limits.input_tokens:
            shorter = cut_to(base, prompts[at].text, limits.input_tokens, keep=keep)
            prompts[at : at + 1], cut = read_prompts(base, [shorter]), cut + 1
        _check_length(base, row, len(prompts[at].tokens), limits)
    return Prompts(prompts, cut)


def cut_to(base: Base, text: str, longest: int, *, keep: Literal["begin", "end"]) -> str:
    """Shorten a text to so many tokens, so that methods that read it first, and the model, read the same.

    The special tokens that stand around the text count; `keep` says which end of it stays.
    """
    around = len(encode_input(base.tokenizer, text, base.architecture)) - len(_spans(base, text))
    room = max(longest - around, 1)
    for kept in range(room, 0, -1):  # a text that is cut may fall into other tokens, and more of them
        if len(spans := _spans(base, text)) <= room:
            break
        text = type(text)(text[spans[-kept][0] :] if keep == "end" else text[: spans[kept - 1][1]])
    return text


def _spans(base: Base, text: str) -> list[tuple[int, int]]:
    """Return where in the text its tokens begin and end."""
    return list(base.tokenizer(str(text), add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"])


def _check_length(base: Base, row: EvaluationRow, length: int, limits: BatchLimits) -> None:
    if (positions := base.positions) is None:
        return
    said = [len(encode_target(base.tokenizer, choice, base.architecture)) for choice in row.choices]
    answer = max(said, default=limits.new_tokens)
    needed = length + answer if base.architecture == "decoder-only" else max(length, answer)
    if needed > positions:
        raise Refused(
            Code.DATA_TOO_LONG,
            f"Row {row.number} of the tasks has {length} tokens and needs up to {answer} for the answer; the model "
            f"takes {positions}.",
            "Cut inputs with --max-input-tokens, ask for shorter answers with --max-new-tokens, or shorten the row.",
        )
