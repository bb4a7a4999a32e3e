"""Data files: what is read, and each refusal with its code."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from client.data.columns import DataColumns
from client.data.examples import Examples, read_examples, split
from protocol.errors import Code, Refused
from protocol.spec import Architecture, Recipe

ROW = {"input": "reverse a b", "target": "b a"}
CHAT = {
    "messages": [
        {"role": "user", "content": "copy a"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "copy b"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "thanks"},
    ]
}
SECRET = "zanzibar"


@pytest.fixture
def tokenizer(t5_base: Path) -> PreTrainedTokenizerBase:
    return PreTrainedTokenizerFast.from_pretrained(t5_base)


@pytest.fixture
def decoder(llama_base: Path) -> PreTrainedTokenizerBase:
    return PreTrainedTokenizerFast.from_pretrained(llama_base)


Read = Callable[..., Examples]
MARK = "\ufeff"
"""With which spreadsheets begin what they save as UTF-8."""


@pytest.fixture
def read(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> Read:
    def call(name: str, content: str | bytes, **changes: Any) -> Examples:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_path(path, tokenizer, **changes)

    return call


def read_path(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    architecture: Architecture = "encoder-decoder",
    columns: DataColumns | None = None,
    positions: int | None = None,
    **recipe: Any,
) -> Examples:
    scratch = path.parent / "scratch"
    try:
        return read_examples(
            path,
            columns or DataColumns(),
            tokenizer,
            architecture,
            Recipe(**recipe),
            positions=positions,
            scratch=scratch,
        )
    finally:
        assert not scratch.exists() or not list(scratch.iterdir())


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def refusal(call: Callable[[], object]) -> Refused:
    with pytest.raises(Refused) as refused:
        call()
    assert SECRET not in str(refused.value)
    return refused.value


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", lines(ROW, ROW, ROW)),
        ("rows.json", json.dumps([ROW, ROW, ROW])),
        ("rows.csv", "input,target\n" + "reverse a b,b a\n" * 3),
        ("rows.tsv", "input\ttarget\n" + "reverse a b\tb a\n" * 3),
        ("rows.jsonl", (MARK + lines(ROW, ROW, ROW))),
        ("rows.csv", MARK + "input,target\n" + "reverse a b,b a\n" * 3),
    ],
)
def test_every_format_gives_the_same_tokens(read: Read, name: str, content: str) -> None:
    examples = read(name, content)
    assert examples.rows == 3
    assert examples.train[0] == {"input_ids": [6, 14, 15, 1], "labels": [15, 14, 1]}


def test_parquet_gives_the_same_tokens(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    datasets.Dataset.from_list([ROW] * 3).to_parquet(tmp_path / "rows.parquet")
    assert read_path(tmp_path / "rows.parquet", tokenizer).train[0]["labels"] == [15, 14, 1]


def test_cells_of_a_csv_file_stay_text(read: Read, tokenizer: PreTrainedTokenizerBase) -> None:
    examples = read("rows.csv", "input,target\n007,NA\n007,NA\n")
    assert examples.train[0]["labels"] == [tokenizer.unk_token_id, 1]


def test_a_decoder_sees_one_sequence_and_the_loss_skips_the_prompt(
    read: Read, decoder: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text(lines(ROW, ROW))
    row = read_path(tmp_path / "rows.jsonl", decoder, architecture="decoder-only").train[0]
    assert row == {"input_ids": [3, 6, 14, 15, 15, 14, 1], "labels": [-100, -100, -100, -100, 15, 14, 1]}


def test_columns_can_have_other_names(read: Read) -> None:
    row = {"question": "a", "answer": "b"}
    assert read("rows.jsonl", lines(row, row), columns=DataColumns("question", "answer")).rows == 2


def test_the_last_turn_of_the_assistant_is_the_target(read: Read, tokenizer: PreTrainedTokenizerBase) -> None:
    row = read("chat.jsonl", lines(CHAT, CHAT)).train[0]
    expected = "user: copy a\nassistant: a\nuser: copy b\nassistant:"
    assert row["input_ids"] == tokenizer(expected)["input_ids"]
    assert row["labels"] == tokenizer("b")["input_ids"]


def test_a_chat_template_writes_the_prompt(tmp_path: Path, decoder: PreTrainedTokenizerBase) -> None:
    decoder.chat_template = (
        "{% for message in messages %}say {{ message['content'] }} ; {% endfor %}"
        "{% if add_generation_prompt %}now{% endif %}"
    )
    (tmp_path / "chat.jsonl").write_text(lines(CHAT, CHAT))
    row = read_path(tmp_path / "chat.jsonl", decoder, architecture="decoder-only").train[0]
    prompt = decoder("say copy a ; say a ; say copy b ; now", add_special_tokens=False)["input_ids"]
    assert row["input_ids"] == [*prompt, 15, 1]
    assert row["labels"] == [-100] * len(prompt) + [15, 1]


MARKED = (
    "{% for message in messages %}{{ message['role'] }} : {{ message['content'] }} </s>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


def test_a_decoder_learns_every_turn_of_the_assistant(tmp_path: Path, decoder: PreTrainedTokenizerBase) -> None:
    decoder.chat_template = MARKED
    (tmp_path / "chat.jsonl").write_text(lines(CHAT, CHAT))
    row = read_path(tmp_path / "chat.jsonl", decoder, architecture="decoder-only").train[0]
    spoken = "user : copy a </s>\nassistant : a </s>\nuser : copy b </s>\nassistant : b </s>"
    assert row["input_ids"] == decoder(spoken, add_special_tokens=False)["input_ids"]
    learnt = [token for token in row["labels"] if token != -100]
    assert learnt == decoder("a </s> b </s>", add_special_tokens=False)["input_ids"]
    assert all(label in (-100, token) for token, label in zip(row["input_ids"], row["labels"], strict=True))
    # The prompt of each turn is what a router is asked.
    for turn, place in (("a", 2), ("b", 4)):
        asked = decoder.apply_chat_template(CHAT["messages"][: place - 1], add_generation_prompt=True, tokenize=False)
        tokens = decoder(asked, add_special_tokens=False)["input_ids"]
        assert row["input_ids"][: len(tokens)] == tokens
        assert row["input_ids"][len(tokens)] == row["labels"][len(tokens)] == decoder.convert_tokens_to_ids(turn)


def test_a_chat_must_fit_the_model(tmp_path: Path, decoder: PreTrainedTokenizerBase) -> None:
    decoder.chat_template = MARKED
    (tmp_path / "chat.jsonl").write_text(lines(CHAT, CHAT))
    error = refusal(lambda: read_path(tmp_path / "chat.jsonl", decoder, architecture="decoder-only", positions=9))
    assert error.code is Code.DATA_TOO_LONG


def test_a_decoder_learns_all_of_a_plain_text(tmp_path: Path, decoder: PreTrainedTokenizerBase) -> None:
    (tmp_path / "rows.jsonl").write_text(lines({"text": "say a b"}, {"text": "say b a"}))
    row = read_path(tmp_path / "rows.jsonl", decoder, architecture="decoder-only").train[0]
    assert row["input_ids"][0] == decoder.bos_token_id
    assert row["labels"] == [-100, *row["input_ids"][1:]]
    assert row["labels"][-1] == decoder.eos_token_id


def test_plain_text_is_nothing_for_an_encoder(read: Read) -> None:
    assert refusal(lambda: read("rows.jsonl", lines({"text": SECRET}, {"text": SECRET}))).code is Code.DATA_COLUMNS


def test_an_empty_text_is_an_empty_row(tmp_path: Path, decoder: PreTrainedTokenizerBase) -> None:
    (tmp_path / "rows.jsonl").write_text(lines({"text": "a"}, {"text": " "}))
    error = refusal(lambda: read_path(tmp_path / "rows.jsonl", decoder, architecture="decoder-only"))
    assert (error.code, "Row 2" in error.message) == (Code.DATA_EMPTY, True)


def test_the_same_rows_are_held_out_each_time() -> None:
    train, held_out = split(50, 0.2)
    assert (train, held_out) == split(50, 0.2)
    assert len(held_out) == 10
    assert sorted(train + held_out) == list(range(50))


@pytest.mark.parametrize(("rows", "share", "count"), [(2, 0.01, 1), (2, 0.99, 1), (3, 0.99, 2), (100, 0.1, 10)])
def test_at_least_one_row_is_on_either_side(rows: int, share: float, count: int) -> None:
    train, held_out = split(rows, share)
    assert len(held_out) == count
    assert len(train) == rows - count


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", '{"input": "zanzibar"'),
        ("rows.jsonl", '{"input": "zanzibar", "target": "b"}\n{"input": "a", "target": 4}\n'),
        ("rows.csv", 'input,target\n"zanzibar'),
        ("rows.parquet", "zanzibar"),
        ("rows.docx", "zanzibar"),
    ],
)
def test_data_unreadable(read: Read, name: str, content: str | bytes) -> None:
    assert refusal(lambda: read(name, content)).code is Code.DATA_UNREADABLE


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", lines(ROW) + f'{{"input": "grün", "target": "{SECRET}"}}\n'),
        ("rows.csv", f"input,target\ngrün,{SECRET}\n"),
    ],
)
def test_text_is_utf_8(read: Read, name: str, content: str) -> None:
    error = refusal(lambda: read(name, content.encode("latin-1")))
    assert error.code is Code.DATA_UNREADABLE
    assert error.message == f"Line 2 of {name} is not UTF-8 text."


def test_data_that_are_not_there_are_unreadable(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    error = refusal(lambda: read_path(tmp_path / "gone.jsonl", tokenizer))
    assert error.code is Code.DATA_UNREADABLE
    assert "gone.jsonl" in error.message


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "a", "completion": SECRET}, "has the columns completion, prompt; expected input and target"),
        ({"input": "a", "target": 3}, "column target of rows.jsonl holds no text"),
        ({"messages": SECRET}, "column messages of rows.jsonl is no list of messages"),
        ({"messages": [{"from": "a", "value": SECRET}]}, "is no list of messages"),
    ],
)
def test_data_columns(read: Read, row: dict[str, Any], words: str) -> None:
    error = refusal(lambda: read("rows.jsonl", lines(row, row)))
    assert error.code is Code.DATA_COLUMNS
    assert words in error.message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        ("null\nnull\n", "Row 1 of rows.jsonl"),
        (lines(ROW), "holds 1 rows; at least 2"),
        (lines(ROW, {"input": SECRET, "target": "  "}), "Row 2 of rows.jsonl"),
        (lines(ROW, {"input": SECRET}), "Row 2 of rows.jsonl"),
        (lines(CHAT, CHAT, {"messages": [{"role": "user", "content": SECRET}]}), "Row 3 of rows.jsonl"),
        (lines(CHAT, {"messages": []}), "Row 2 of rows.jsonl"),
        (lines(CHAT, {"messages": [{"role": "assistant", "content": SECRET}]}), "Row 2 of rows.jsonl"),
    ],
)
def test_data_empty(read: Read, content: str, words: str) -> None:
    error = refusal(lambda: read("rows.jsonl", content))
    assert error.code is Code.DATA_EMPTY
    assert words in error.message


LONG = {"input": f"{SECRET} " * 9, "target": f"{SECRET} " * 9}


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"max_input_tokens": 9}, "Row 2 of rows.jsonl: the input is 10 tokens long; at most 9"),
        ({"max_target_tokens": 9}, "Row 2 of rows.jsonl: the target is 10 tokens long; at most 9"),
        ({"positions": 9}, "Row 2 of rows.jsonl: the input is 10 tokens long; at most 9"),
    ],
)
def test_data_too_long(read: Read, limits: dict[str, Any], words: str) -> None:
    error = refusal(lambda: read("rows.jsonl", lines(ROW, LONG), **limits))
    assert error.code is Code.DATA_TOO_LONG
    assert words in error.message


def test_a_decoder_needs_room_for_input_and_target_together(tmp_path: Path, decoder: PreTrainedTokenizerBase) -> None:
    (tmp_path / "rows.jsonl").write_text(lines(ROW, LONG))
    error = refusal(lambda: read_path(tmp_path / "rows.jsonl", decoder, architecture="decoder-only", positions=19))
    assert "input and target together is 20 tokens long; at most 19" in error.message
    assert read_path(tmp_path / "rows.jsonl", decoder, architecture="decoder-only", positions=20).rows == 2


def test_a_cell_too_many_moves_no_other(read: Read) -> None:
    error = refusal(lambda: read("rows.csv", f"input,target\nhello,bonjour\n{SECRET}, world,bonjour\n"))
    assert error.code is Code.DATA_UNREADABLE
    assert "Line 3 of rows.csv has 3 cells; the header has 2." in error.message
    assert SECRET not in str(error)
