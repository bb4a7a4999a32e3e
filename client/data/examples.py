"""The contributor's examples: opened, checked, tokenised. They never leave this machine.

A file (JSON Lines, CSV or Parquet) holds an input and a target column, or a column of chat messages
(a list of `{"role": ..., "content": ...}`), or, for decoders, a column of plain text. Of a chat, the
last turn of the assistant is the target and everything before it the prompt, written by the
tokenizer's own chat template or, where it has none, as lines `role: content` that end in
`assistant:`. Where the template allows it, a decoder learns the assistant's earlier turns, too
(`client.data.chat`).

No sentence of a refusal ever quotes a cell.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from client.data.chat import encode_chat
from client.data.columns import DataColumns
from protocol.errors import Code, Refused
from protocol.spec import Architecture, Recipe
from router.base.tokens import ASSISTANT, IGNORED, Templated, encode_input, encode_target, write_prompt

# Read when `datasets` is first imported: it opens files here and asks nobody.
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import datasets
import numpy as np

from client.data.files import lacks, read_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SPLIT_SEED = 2402_05859  # any constant: every rerun must hold back the same rows


class Pair(NamedTuple):
    """One example as text."""

    prompt: str
    """`Templated` if a chat template wrote it."""
    target: str
    turns: tuple[dict[str, str], ...] = ()
    """The chat that a template wrote, up to the target."""


@dataclass(frozen=True)
class Examples:
    """Tokenised examples, split once and for all."""

    train: datasets.Dataset
    held_out: datasets.Dataset

    @property
    def rows(self) -> int:
        """Rows of the file."""
        return len(self.train) + len(self.held_out)


class TokenLimits(NamedTuple):
    """Longest accepted examples, in tokens."""

    input: int
    target: int
    model: int | None
    """Positions of the model, prompt and target together for a decoder; None for no limit."""


def read_examples(
    path: Path,
    columns: DataColumns,
    tokenizer: "PreTrainedTokenizerBase",
    architecture: Architecture,
    recipe: Recipe,
    *,
    positions: int | None,
    scratch: Path,
) -> Examples:
    """Open, check, tokenise and split a data file.

    Args:
        path: JSON Lines, CSV or Parquet.
        columns: Names of the columns.
        tokenizer: The base model's.
        architecture: Decides how prompt and target become one example.
        recipe: Limits of length and share of held-out rows.
        positions: Most tokens that the model takes at once; None for no limit.
        scratch: Folder for temporary files; nothing stays in it.

    Raises:
        Refused: `DATA_UNREADABLE`, `DATA_COLUMNS`, `DATA_EMPTY` or `DATA_TOO_LONG`.
    """
    rows = read_rows(path, scratch)
    extract = _extractor(rows, columns, tokenizer, path.name, architecture)
    _check_count(len(rows), path.name)
    limits = TokenLimits(recipe.max_input_tokens, recipe.max_target_tokens, positions)
    tokenised = _tokenise(rows, extract, tokenizer, architecture, limits, name=path.name)
    train, held_out = split(len(tokenised), recipe.held_out)
    return Examples(tokenised.select(train), tokenised.select(held_out))


def held_out_pairs(
    path: Path, columns: DataColumns, tokenizer: "PreTrainedTokenizerBase", recipe: Recipe, *, scratch: Path
) -> list[Pair]:
    """Read, as text, the rows that training holds back.

    Args:
        path: As in `read_examples`, and so on.
        columns: Names of the columns.
        tokenizer: The base model's.
        recipe: Share of held-out rows.
        scratch: Folder for temporary files; nothing stays in it.

    Raises:
        Refused: `DATA_UNREADABLE`, `DATA_COLUMNS` or `DATA_EMPTY`.
    """
    rows = read_rows(path, scratch)
    extract = _extractor(rows, columns, tokenizer, path.name, "decoder-only")  # which takes what others take, too
    _check_count(len(rows), path.name)
    pairs = []
    for number in split(len(rows), recipe.held_out)[1]:
        pair = extract(rows[number])
        if pair is None:
            raise lacks(number + 1, path.name)
        pairs.append(pair)
    return pairs


def _check_count(rows: int, name: str) -> None:
    if rows < 2:  # noqa: PLR2004 - one to train on, one held out
        raise Refused(
            Code.DATA_EMPTY,
            f"{name} holds {rows} rows; at least 2 are needed, since one is held out.",
            "Add examples.",
        )


def split(rows: int, held_out: float) -> tuple[list[int], list[int]]:
    """Choose the rows to train on and those to hold back, the same ones each time.

    Args:
        rows: Number of rows, at least 2.
        held_out: Share to hold back; at least one row is held back and at least one is not.
    """
    count = min(max(1, round(rows * held_out)), rows - 1)
    order = np.random.default_rng(_SPLIT_SEED).permutation(rows)
    return sorted(order[count:].tolist()), sorted(order[:count].tolist())


def _extractor(
    rows: datasets.Dataset,
    columns: DataColumns,
    tokenizer: "PreTrainedTokenizerBase",
    name: str,
    architecture: Architecture,
) -> Callable[[dict[str, Any]], Pair | None]:
    """Decide once how a row becomes a pair; the result is None for a row without both halves."""
    found = rows.features
    if columns.input in found and columns.target in found:
        for column in (columns.input, columns.target):
            if not _is_text(found[column]):
                raise Refused(
                    Code.DATA_COLUMNS, f"The column {column} of {name} holds no text.", "Write every value as a string."
                )
        return lambda row: _from_columns(row[columns.input], row[columns.target])
    if columns.messages in found:
        if not _is_chat(found[columns.messages]):
            raise Refused(
                Code.DATA_COLUMNS,
                f"The column {columns.messages} of {name} is no list of messages.",
                'Write it as [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}].',
            )
        return lambda row: _from_messages(row[columns.messages], tokenizer)
    if columns.text in found and _is_text(found[columns.text]) and architecture == "decoder-only":
        return lambda row: _from_text(row[columns.text])
    raise Refused(
        Code.DATA_COLUMNS,
        f"{name} has the columns {', '.join(sorted(found))[:200]}; expected {columns.input} and {columns.target}, "
        f"or {columns.messages}{f', or {columns.text}' if architecture == 'decoder-only' else ''}.",
        "Name them with --input-column and --target-column.",
    )


def _is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")


def _is_chat(feature: Any) -> bool:
    fields = getattr(feature, "feature", None)
    return isinstance(fields, dict) and all(_is_text(fields.get(name)) for name in ("role", "content"))


def _from_columns(prompt: str | None, target: str | None) -> Pair | None:
    if not (prompt and prompt.strip() and target and target.strip()):
        return None
    return Pair(prompt, target)


def _from_text(text: str | None) -> Pair | None:
    # The prompt is what the tokenizer begins with; all that follows is learnt.
    return Pair("", text) if text and text.strip() else None


def _from_messages(messages: Sequence[dict[str, str]] | None, tokenizer: "PreTrainedTokenizerBase") -> Pair | None:
    turns = messages or []
    last = max((place for place, turn in enumerate(turns) if turn["role"] == ASSISTANT), default=0)
    before, target = turns[:last], turns[last]["content"] if turns else None
    if not before or not target or not target.strip() or any(not turn["content"] for turn in before):
        return None
    text = write_prompt(tokenizer, before)
    return Pair(text, target, tuple(turns[: last + 1]) if isinstance(text, Templated) else ())


def _tokenise(
    rows: datasets.Dataset,
    extract: Callable[[dict[str, Any]], Pair | None],
    tokenizer: "PreTrainedTokenizerBase",
    architecture: Architecture,
    limits: TokenLimits,
    *,
    name: str,
) -> datasets.Dataset:
    lay_out = _apart if architecture == "encoder-decoder" else _joined

    def batch(columns: dict[str, list[Any]], numbers: list[int]) -> dict[str, list[list[int]]]:
        input_ids, labels = [], []
        for number, row in zip(numbers, _rows(columns), strict=True):
            pair = extract(row)
            if pair is None:
                raise lacks(number + 1, name)
            where = f"Row {number + 1} of {name}"
            prompt = encode_input(tokenizer, pair.prompt, architecture)
            target = encode_target(tokenizer, pair.target, architecture)
            ids, wanted = lay_out(prompt, target, limits, where)
            if pair.turns and architecture == "decoder-only":
                ids, wanted = encode_chat(tokenizer, pair.turns) or (ids, wanted)
                _check_length(len(ids), limits.model or len(ids), f"{where}: the chat")
            input_ids.append(ids)
            labels.append(wanted)
        return {"input_ids": input_ids, "labels": labels}

    token = datasets.List(datasets.Value("int32"))
    return rows.map(
        batch,
        batched=True,
        with_indices=True,
        remove_columns=rows.column_names,
        features=datasets.Features({"input_ids": token, "labels": token}),
        keep_in_memory=True,
        new_fingerprint="tokenised",  # else the tokenizer is pickled to compute one
    )


def _rows(columns: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    names = list(columns)
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(names, values, strict=True))


def _apart(prompt: list[int], target: list[int], limits: TokenLimits, where: str) -> tuple[list[int], list[int]]:
    """Encoder-decoder: the prompt goes to the encoder, the target is predicted."""
    _check_length(len(prompt), min(limits.input, limits.model or limits.input), f"{where}: the input")
    _check_length(len(target), min(limits.target, limits.model or limits.target), f"{where}: the target")
    return prompt, target


def _joined(prompt: list[int], target: list[int], limits: TokenLimits, where: str) -> tuple[list[int], list[int]]:
    """Decoder-only: one sequence; the loss skips the prompt, expert and gates act on all of it."""
    _check_length(len(prompt), limits.input, f"{where}: the input")
    _check_length(len(target), limits.target, f"{where}: the target")
    if limits.model is not None:
        _check_length(len(prompt) + len(target), limits.model, f"{where}: input and target together")
    return prompt + target, [IGNORED] * len(prompt) + target


def _check_length(found: int, limit: int, what: str) -> None:
    if found > limit:
        raise Refused(
            Code.DATA_TOO_LONG,
            f"{what} is {found} tokens long; at most {limit} are taken.",
            "Shorten or split the example.",
        )
