"""The contributor's examples: opened, checked, tokenised. They never leave this machine.

A file (JSON Lines, CSV or Parquet) holds an input and a target column, or a column of chat messages
(a list of `{"role": ..., "content": ...}`), or, for decoders, a column of plain text. Of a chat, the
last turn of the assistant is the target and everything before it the prompt, written by the
tokenizer's own chat template or, where it has none, as lines `role: content` that end in
`assistant:`. Where the template allows it, a decoder learns the assistant's earlier turns, too
(`client.data.chat`).

A row is held out, or not, by its content alone, through a hash under the workspace's own key: rows
that come, go or move change nothing for the others, and a row that stands twice falls on one side.

No sentence of a refusal ever quotes a cell.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from client.data.chat import encode_chat
from client.data.columns import DataColumns, DataSource
from protocol.errors import Code, Refused
from protocol.spec import Architecture, Recipe
from router.base.tokens import ASSISTANT, IGNORED, Templated, encode_input, encode_target, write_prompt

# Read when `datasets` is first imported.
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import datasets
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from client.data.files import Row, lacks, read_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_DIGEST_BYTES = 8


class Pair(NamedTuple):
    """One example as text."""

    prompt: str
    """`Templated` if a chat template wrote it."""
    target: str
    turns: tuple[dict[str, str], ...] = ()
    """The chat, up to the target, if it is one."""


@dataclass(frozen=True)
class Examples:
    """Tokenised examples, split once and for all."""

    train: datasets.Dataset
    held_out: datasets.Dataset

    @property
    def rows(self) -> int:
        """Rows of the files."""
        return len(self.train) + len(self.held_out)


class TokenLimits(NamedTuple):
    """Longest accepted examples, in tokens."""

    input: int
    target: int
    model: int | None
    """Positions of the model, prompt and target together for a decoder; None for no limit."""


def read_examples(
    source: DataSource,
    tokenizer: "PreTrainedTokenizerBase",
    architecture: Architecture,
    recipe: Recipe,
    *,
    positions: int | None,
) -> Examples:
    """Open, check, tokenise and split the private files.

    Args:
        source: The files.
        tokenizer: The base model's.
        architecture: Decides how prompt and target become one example.
        recipe: Limits of length and share of held-out rows.
        positions: Most tokens that the model takes at once; None for no limit.

    Raises:
        Refused: `DATA_UNREADABLE`, `DATA_COLUMNS`, `DATA_EMPTY` or `DATA_TOO_LONG`.
    """
    limits = TokenLimits(recipe.max_input_tokens, recipe.max_target_tokens, positions)
    places, encoded = [], []
    for where, pair in _pairs(source, tokenizer, architecture):
        places.append(_place(source.split_key, pair))
        encoded.append([np.asarray(part, np.int32) for part in _encode(pair, tokenizer, architecture, limits, where)])
    held = split(places, recipe.held_out)
    train, held_out = (
        _table(each for each, is_held in zip(encoded, held, strict=True) if is_held == side) for side in (False, True)
    )
    return Examples(train, held_out)


def held_out_pairs(source: DataSource, tokenizer: "PreTrainedTokenizerBase", held_out: float) -> list[Pair]:
    """Read, as text, the rows that training holds back.

    Args:
        source: The files.
        tokenizer: The base model's.
        held_out: Share that is held back; of a smaller share, the rows are among those of a larger one.

    Raises:
        Refused: `DATA_UNREADABLE`, `DATA_COLUMNS` or `DATA_EMPTY`.
    """
    # Which takes what others take, too.
    pairs = [pair for _, pair in _pairs(source, tokenizer, "decoder-only")]
    held = split([_place(source.split_key, pair) for pair in pairs], held_out)
    return [pair for pair, is_held in zip(pairs, held, strict=True) if is_held]


def split(places: list[float], share: float) -> list[bool]:
    """Say of each row whether it is held back: those below the share, or the lowest one where none is.

    A row that was trained on is never held back once other rows have come: the lowest place only falls.

    Args:
        places: Of the rows, 0 to 1, as their content has it.
        share: To hold back.

    Raises:
        Refused: `DATA_EMPTY` if there would be nothing to train on.
    """
    if len(set(places)) < 2:  # noqa: PLR2004 - one to train on, one held out
        raise Refused(
            Code.DATA_EMPTY,
            f"The data hold {len(set(places))} rows that differ; at least 2 are needed, since one is held out.",
            "Add examples.",
        )
    limit = max(share, np.nextafter(min(places), 1.0))
    held = [place < limit for place in places]
    if all(held):
        raise Refused(
            Code.DATA_EMPTY,
            f"All {len(places)} rows fall among the {share:g} that are held out, and none is left to train on.",
            "Add examples, or give a smaller --held-out.",
        )
    return held


def _place(key: bytes, pair: Pair) -> float:
    """Find where in [0, 1) the content of a row falls."""
    content = json.dumps(pair.turns or (pair.prompt, pair.target)).encode()
    digest = hashlib.blake2b(content, key=key, digest_size=_DIGEST_BYTES).digest()
    return int.from_bytes(digest) / 256**_DIGEST_BYTES


def _table(rows: Iterable[list[NDArray[np.int32]]]) -> datasets.Dataset:
    input_ids, labels = zip(*rows, strict=True)
    token = pa.list_(pa.int32())
    return datasets.Dataset(pa.table({"input_ids": pa.array(input_ids, token), "labels": pa.array(labels, token)}))


def _pairs(
    source: DataSource, tokenizer: "PreTrainedTokenizerBase", architecture: Architecture
) -> Iterator[tuple[str, Pair]]:
    """Read all rows of all files; the first row of each says which columns it has."""
    for path in source.files:
        extract: Callable[[Row], Pair | None] | None = None
        for row in read_rows(path):
            extract = extract or _extractor(row.fields, source.columns, tokenizer, path.name, architecture)
            pair = extract(row)
            if pair is None:
                raise lacks(row.where)
            yield row.where, pair
        if extract is None:
            raise Refused(Code.DATA_EMPTY, f"{path.name} holds no rows.", "Add examples.")


def _extractor(
    first: Mapping[str, Any],
    columns: DataColumns,
    tokenizer: "PreTrainedTokenizerBase",
    name: str,
    architecture: Architecture,
) -> Callable[[Row], Pair | None]:
    """Decide once a file how a row becomes a pair; the result is None for a row without both halves."""
    if columns.input in first and columns.target in first:
        return lambda row: _from_columns(*(_text(row, column) for column in (columns.input, columns.target)))
    if columns.messages in first:
        return lambda row: _from_messages(_turns(row, columns.messages), tokenizer)
    if columns.text in first and architecture == "decoder-only":
        # The prompt is what the tokenizer begins with; all that follows is learnt.
        return lambda row: Pair("", text) if (text := _text(row, columns.text)).strip() else None
    raise Refused(
        Code.DATA_COLUMNS,
        f"{name} has the columns {', '.join(sorted(first))[:200]}; expected {columns.input} and {columns.target}, "
        f"or {columns.messages}{f', or {columns.text}' if architecture == 'decoder-only' else ''}.",
        "Name them with --input-column and --target-column.",
    )


def _text(row: Row, column: str) -> str:
    """Read a cell; one that is not there is empty."""
    found = row.fields.get(column)
    if found is None:
        return ""
    return _checked(found, f"{row.where}: {column}", "Write every value as a string.")


def _checked(found: Any, what: str, hint: str) -> str:
    try:
        if isinstance(found, str):
            found.encode()  # half a surrogate pair is no text
            return found
    except UnicodeEncodeError:
        pass
    raise Refused(Code.DATA_COLUMNS, f"{what} holds no text.", hint)


def _turns(row: Row, column: str) -> list[dict[str, str]]:
    """Read a chat; one that is not there is empty."""
    found, hint = (
        row.fields.get(column),
        ('Write it as [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}].'),
    )
    if not isinstance(found, list | None) or not all(isinstance(turn, dict) for turn in found or ()):
        raise Refused(Code.DATA_COLUMNS, f"{row.where}: {column} is no list of messages.", hint)
    return [
        {
            "role": _checked(turn.get("role"), f"{row.where}: the role of message {number}", hint),
            "content": _checked(turn.get("content"), f"{row.where}: the content of message {number}", hint),
        }
        for number, turn in enumerate(found or (), 1)
    ]


def _from_columns(prompt: str, target: str) -> Pair | None:
    return Pair(prompt, target) if prompt.strip() and target.strip() else None


def _from_messages(turns: list[dict[str, str]], tokenizer: "PreTrainedTokenizerBase") -> Pair | None:
    last = max((place for place, turn in enumerate(turns) if turn["role"] == ASSISTANT), default=0)
    before = turns[:last]
    if not before or not turns[last]["content"].strip() or any(not turn["content"] for turn in before):
        return None
    return Pair(write_prompt(tokenizer, before), turns[last]["content"], tuple(turns[: last + 1]))


def _encode(
    pair: Pair, tokenizer: "PreTrainedTokenizerBase", architecture: Architecture, limits: TokenLimits, where: str
) -> tuple[list[int], list[int]]:
    """Lay an example out as tokens and labels."""
    prompt = encode_input(tokenizer, pair.prompt, architecture)
    target = encode_target(tokenizer, pair.target, architecture)
    most = limits.model or len(prompt) + len(target)
    if architecture == "encoder-decoder":  # the prompt goes to the encoder, the target is predicted
        _check_length(len(prompt), min(limits.input, most), f"{where}: the input")
        _check_length(len(target), min(limits.target, most), f"{where}: the target")
        return prompt, target
    # One sequence; the loss skips the prompt, expert and gates act on all of it.
    _check_length(len(prompt), limits.input, f"{where}: the input")
    _check_length(len(target), limits.target, f"{where}: the target")
    _check_length(len(prompt) + len(target), most, f"{where}: input and target together")
    if isinstance(pair.prompt, Templated) and (whole := encode_chat(tokenizer, pair.turns)):
        _check_length(len(whole[0]), limits.model or len(whole[0]), f"{where}: the chat")
        return whole
    return prompt + target, [IGNORED] * len(prompt) + target


def _check_length(found: int, limit: int, what: str) -> None:
    if found > limit:
        raise Refused(
            Code.DATA_TOO_LONG,
            f"{what} is {found} tokens long; at most {limit} are taken.",
            "Shorten or split the example.",
        )
