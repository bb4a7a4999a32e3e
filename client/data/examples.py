"""The contributor's examples: opened, checked, tokenised. They never leave this machine.

A file (JSON Lines, CSV or Parquet) holds an input and a target column, or a column of chat messages
(a list of `{"role": ..., "content": ...}`), or, for decoders, a column of plain text. Of a chat, the
last turn of the assistant is the target and everything before it the prompt, written by the
tokenizer's own chat template or, where it has none, as lines `role: content` that end in
`assistant:`. Where the template allows it, a decoder learns the assistant's earlier turns, too.

A row is held out, or not, by its content alone, through a hash under the workspace's own key: rows
that come, go or move change nothing for the others, and a row that stands twice falls on one side.
Where the share would hold none of few rows, the one with the lowest hash is held out, which others
may take the place of: so what trains notes which rows it took, and `evaluate` takes none of these.

No sentence of a refusal ever quotes a cell.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from client.data.columns import SEEN, DataColumns, DataSource
from client.data.files import Row, read_rows
from protocol.errors import Code, Refused
from protocol.files.atomic import write_whole
from protocol.spec import Architecture, Recipe
from router.base.tokens import ASSISTANT, IGNORED, Templated, encode_input, encode_target, write_chat, write_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_DIGEST_BYTES = 8
_PARTS = ("role", "content")
"""Of a message."""


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
    places: NDArray[np.float64]
    """Where the rows to train on fall, 0 to 1."""

    @property
    def rows(self) -> int:
        """Rows of the files."""
        return len(self.train) + len(self.held_out)

    def note(self, folder: Path) -> None:
        """Add the rows to train on to those that a folder has noted as seen."""
        write_whole(folder / SEEN, np.union1d(_noted([folder]), self.places).tobytes())


def read_examples(
    source: DataSource,
    tokenizer: "PreTrainedTokenizerBase",
    architecture: Architecture,
    recipe: Recipe,
    *,
    positions: int | None,
) -> Examples:
    """Open, check, tokenise and split the private files; no example is longer than `positions` (None: no limit).

    Raises:
        Refused: `DATA_UNREADABLE`, `DATA_COLUMNS`, `DATA_EMPTY` or `DATA_TOO_LONG`.
    """
    places, encoded = [], []
    for where, pair in _pairs(source, tokenizer, architecture):
        tokens = _encode(pair, tokenizer, architecture, recipe, where, positions)
        places.append(_place(source.split_key, pair))
        encoded.append([np.asarray(part, np.int32) for part in tokens])
    boundary = boundary_of(places, recipe.held_out)
    train, held_out = (
        _table(row for row, place in zip(encoded, places, strict=True) if (place < boundary) == out)
        for out in (False, True)
    )
    return Examples(train, held_out, np.array([place for place in places if place >= boundary]))


def held_out_pairs(
    source: DataSource, tokenizer: "PreTrainedTokenizerBase", share: float, notes: Iterable[Path], limit: float
) -> list[Pair]:
    """Read, as text, the rows that a share holds back of those that no folder has noted (`Examples.note`).

    Rows whose place is `limit` or above may have been trained on without a note.

    Raises:
        Refused: `DATA_UNREADABLE`, `DATA_COLUMNS` or `DATA_EMPTY`.
    """
    # Which takes what others take, too.
    pairs = [pair for _, pair in _pairs(source, tokenizer, "decoder-only")]
    places = [_place(source.split_key, pair) for pair in pairs]
    _check_several(places)
    fresh = np.setdiff1d([place for place in places if place < limit], _noted(notes))
    if not len(fresh):
        what = "Every row of the data may have been trained on here, and that counts for good."
        raise Refused(Code.DATA_EMPTY, what, "Add examples that are new.")
    held = set(fresh[fresh < max(share, np.nextafter(fresh[0], 1.0))].tolist())
    return [pair for pair, place in zip(pairs, places, strict=True) if place in held]


def boundary_of(places: list[float], share: float) -> float:
    """Say below which place, 0 to 1, rows are held back: the share, or just above the lowest place if that is more.

    A row that was trained on is never held back because others have come: the lowest place only falls.

    Raises:
        Refused: `DATA_EMPTY` if there would be nothing to train on.
    """
    _check_several(places)
    boundary = max(share, float(np.nextafter(min(places), 1.0)))
    if max(places) < boundary:
        raise Refused(
            Code.DATA_EMPTY,
            f"All {len(places)} rows fall among the {share:g} that are held out, and none is left to train on.",
            "Add examples, or give a smaller --held-out.",
        )
    return boundary


def _check_several(places: list[float]) -> None:
    if len(set(places)) < 2:  # noqa: PLR2004 - one to train on, one held out
        what = f"The data hold {len(set(places))} rows that differ; at least 2 are needed, since one is held out."
        raise Refused(Code.DATA_EMPTY, what, "Add examples.")


def _noted(folders: Iterable[Path]) -> NDArray[np.float64]:
    files = (folder / SEEN for folder in folders)
    return np.frombuffer(b"".join(file.read_bytes() for file in files if file.is_file()))


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
                what = f"{row.where} lacks an input or a target."
                raise Refused(Code.DATA_EMPTY, what, "Fill the row in or remove it.")
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
        return lambda row: _from_columns(_text(row, columns.input), _text(row, columns.target))
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
    return "" if found is None else _checked(found, f"{row.where}: {column}", "Write every value as a string.")


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
    found = [] if (cell := row.fields.get(column)) is None else cell
    hint = 'Write it as [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}].'
    if not isinstance(found, list) or not all(isinstance(turn, dict) for turn in found):
        raise Refused(Code.DATA_COLUMNS, f"{row.where}: {column} is no list of messages.", hint)
    return [
        {part: _checked(turn.get(part), f"{row.where}: the {part} of message {number}", hint) for part in _PARTS}
        for number, turn in enumerate(found, 1)
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
    pair: Pair,
    tokenizer: "PreTrainedTokenizerBase",
    architecture: Architecture,
    recipe: Recipe,
    where: str,
    positions: int | None,
) -> tuple[list[int], list[int]]:
    """Lay an example out as tokens and labels."""
    prompt = encode_input(tokenizer, pair.prompt, architecture)
    target = encode_target(tokenizer, pair.target, architecture)
    most = positions or len(prompt) + len(target)
    _check_length(len(prompt), min(recipe.max_input_tokens, most), f"{where}: the input")
    _check_length(len(target), min(recipe.max_target_tokens, most), f"{where}: the target")
    if architecture == "encoder-decoder":  # the prompt goes to the encoder, the target is predicted
        return prompt, target
    # One sequence; the loss skips the prompt, expert and gates act on all of it.
    _check_length(len(prompt) + len(target), most, f"{where}: input and target together")
    if isinstance(pair.prompt, Templated) and (whole := encode_chat(tokenizer, pair.turns)):
        _check_length(len(whole[0]), positions or len(whole[0]), f"{where}: the chat")
        return whole
    return prompt + target, [IGNORED] * len(prompt) + target


def encode_chat(
    tokenizer: "PreTrainedTokenizerBase", turns: Sequence[dict[str, str]]
) -> tuple[list[int], list[int]] | None:
    """Turn a chat into tokens and labels; only the assistant's turns, with what ends them, have labels.

    Prompts and turns are tokenised apart, as they are when the model answers.

    Returns:
        Tokens and as many labels; None if the template writes a turn otherwise once others follow, so that what the
        model would have been asked is no beginning of the chat.
    """
    whole = write_chat(tokenizer, turns, prompt=False)
    tokens, labels, end = list[int](), list[int](), 0
    for place, turn in enumerate(turns):
        if turn["role"] != ASSISTANT:
            continue
        asked = write_chat(tokenizer, turns[:place], prompt=True)
        # The white space after an end mark belongs to what comes next.
        said = write_chat(tokenizer, turns[: place + 1], prompt=False).rstrip()
        if not (whole.startswith(asked) and whole.startswith(said) and said.startswith(asked) and len(asked) >= end):
            return None
        before = tokenizer(whole[end : len(asked)], add_special_tokens=False)["input_ids"]
        answer = tokenizer(whole[len(asked) : len(said)], add_special_tokens=False)["input_ids"]
        tokens += [*before, *answer]
        labels += [*([IGNORED] * len(before)), *answer]
        end = len(said)
    closing = tokenizer.eos_token_id
    if closing is not None and tokens[-1] != closing:
        return [*tokens, closing], [*labels, closing]
    return tokens, labels


def _check_length(found: int, limit: int, what: str) -> None:
    if found > limit:
        raise Refused(
            Code.DATA_TOO_LONG,
            f"{what} is {found} tokens long; at most {limit} are taken.",
            "Shorten or split the example.",
        )
