"""Data files: what is read, and each refusal with its code."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from client.data.columns import DataColumns, DataSource
from client.data.examples import Examples, read_examples
from protocol.errors import Code, Refused
from protocol.spec import Architecture, Recipe

ROW = {"input": "reverse a b", "target": "b a"}
OTHER = {"input": "reverse b a", "target": "a b"}
CHAT = {
    "messages": [
        {"role": "user", "content": "copy a"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "copy b"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "thanks"},
    ]
}
OTHER_CHAT = {"messages": [{"role": "user", "content": "copy e"}, {"role": "assistant", "content": "f"}]}
SECRET = "zanzibar"
KEY = bytes(32)


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
    source = DataSource((path,), columns or DataColumns(), KEY)
    return read_examples(source, tokenizer, architecture, Recipe(**recipe), positions=positions)


def row_of(examples: Examples, begins: list[int]) -> dict[str, list[int]]:
    """The one example that begins with some tokens, on whichever side it is."""
    rows = [*examples.train, *examples.held_out]
    (found,) = (row for row in rows if row["input_ids"][: len(begins)] == begins)
    return found


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
        ("rows.jsonl", lines(ROW, OTHER, ROW)),
        ("rows.json", json.dumps([ROW, OTHER, ROW], indent=2)),
        ("rows.csv", "input,target\nreverse a b,b a\nreverse b a,a b\nreverse a b,b a\n"),
        ("rows.csv", 'target;input\r\nb a;reverse a b\r\n"a b";"reverse b a"\r\n\r\nb a;reverse a b'),
        ("rows.tsv", "input\ttarget\nreverse a b\tb a\nreverse b a\ta b\nreverse a b\tb a\n"),
        ("rows.jsonl", MARK + lines(ROW, OTHER, ROW)),
        ("rows.csv", MARK + "input,target\nreverse a b,b a\nreverse b a,a b\nreverse a b,b a\n"),
    ],
)
def test_every_format_gives_the_same_rows_and_the_same_split(
    read: Read, name: str, content: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    datasets.Dataset.from_list([ROW, OTHER, ROW]).to_parquet(tmp_path / "rows.parquet")
    expected = read_path(tmp_path / "rows.parquet", tokenizer)
    examples = read(name, content)
    assert examples.rows == 3
    assert list(examples.train) == list(expected.train)
    assert list(examples.held_out) == list(expected.held_out)
    assert row_of(examples, [6, 15]) == {"input_ids": [6, 15, 14, 1], "labels": [14, 15, 1]}


def test_cells_of_a_csv_file_stay_text(read: Read, tokenizer: PreTrainedTokenizerBase) -> None:
    examples = read("rows.csv", "input,target\n007,NA\na,b\n")
    assert row_of(examples, [tokenizer.unk_token_id])["labels"] == [tokenizer.unk_token_id, 1]


def test_a_decoder_sees_one_sequence_and_the_loss_skips_the_prompt(
    read: Read, decoder: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text(lines(ROW, OTHER))
    row = row_of(read_path(tmp_path / "rows.jsonl", decoder, architecture="decoder-only"), [3, 6, 14])
    assert row == {"input_ids": [3, 6, 14, 15, 15, 14, 1], "labels": [-100, -100, -100, -100, 15, 14, 1]}


def test_columns_can_have_other_names(read: Read) -> None:
    rows = [{"question": "a", "answer": answer} for answer in "bc"]
    assert read("rows.jsonl", lines(*rows), columns=DataColumns("question", "answer")).rows == 2


def test_the_last_turn_of_the_assistant_is_the_target(read: Read, tokenizer: PreTrainedTokenizerBase) -> None:
    expected = tokenizer("user: copy a\nassistant: a\nuser: copy b\nassistant:")["input_ids"]
    row = row_of(read("chat.jsonl", lines(CHAT, OTHER_CHAT)), expected)
    assert row["labels"] == tokenizer("b")["input_ids"]


def test_a_chat_template_writes_the_prompt(tmp_path: Path, decoder: PreTrainedTokenizerBase) -> None:
    decoder.chat_template = (
        "{% for message in messages %}say {{ message['content'] }} ; {% endfor %}"
        "{% if add_generation_prompt %}now{% endif %}"
    )
    (tmp_path / "chat.jsonl").write_text(lines(CHAT, OTHER_CHAT))
    prompt = decoder("say copy a ; say a ; say copy b ; now", add_special_tokens=False)["input_ids"]
    row = row_of(read_path(tmp_path / "chat.jsonl", decoder, architecture="decoder-only"), prompt)
    assert row["input_ids"] == [*prompt, 15, 1]
    assert row["labels"] == [-100] * len(prompt) + [15, 1]


MARKED = (
    "{% for message in messages %}{{ message['role'] }} : {{ message['content'] }} </s>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


def test_a_decoder_learns_every_turn_of_the_assistant(tmp_path: Path, decoder: PreTrainedTokenizerBase) -> None:
    decoder.chat_template = MARKED
    (tmp_path / "chat.jsonl").write_text(lines(CHAT, OTHER_CHAT))
    spoken = "user : copy a </s>\nassistant : a </s>\nuser : copy b </s>\nassistant : b </s>"
    whole = decoder(spoken, add_special_tokens=False)["input_ids"]
    row = row_of(read_path(tmp_path / "chat.jsonl", decoder, architecture="decoder-only"), whole)
    assert row["input_ids"] == whole
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
    assert (error.code, "Line 2" in error.message) == (Code.DATA_EMPTY, True)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("rows.jsonl", lines(ROW) + '{"input": "zanzibar"', "Line 2 of rows.jsonl is no whole JSON value."),
        ("rows.jsonl", lines(ROW, ["zanzibar"]), "Line 2 of rows.jsonl is no JSON object."),
        ("rows.jsonl", "null\nnull\n", "Line 1 of rows.jsonl is no JSON object."),
        ("rows.jsonl", lines(ROW) + "[" * 100_000, "Line 2 of rows.jsonl is no whole JSON value."),
        ("rows.json", json.dumps([ROW, "zanzibar"]), "Row 2 of rows.json is no JSON object."),
        ("rows.json", "[{", "rows.json is no whole JSON value."),
        ("rows.csv", 'input,target\n"a\nb",c\nc,"zanzibar\nd,e\nf,g\n', "begins at line 4 of rows.csv"),
        ("rows.csv", 'input,target\n"zan"zibar,b\n', "begins at line 2 of rows.csv"),
        ("rows.csv", "input,target\nhello,bonjour\nzanzibar\n", "Line 3 of rows.csv has 1 cells; the header has 2."),
        ("rows.csv", "input,target\na,b\nzanzibar, b,c\n", "Line 3 of rows.csv has 3 cells; the header has 2."),
        ("rows.parquet", "zanzibar", "rows.parquet is not valid Parquet."),
        ("rows.docx", "zanzibar", "rows.docx has the ending '.docx'"),
    ],
)
def test_data_unreadable(read: Read, name: str, content: str, words: str) -> None:
    error = refusal(lambda: read(name, content))
    assert error.code is Code.DATA_UNREADABLE
    assert words in error.message
    assert error.hint


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


def test_a_folder_is_no_file(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    error = refusal(lambda: read_path(tmp_path, tokenizer))
    assert (error.code, "is a folder" in error.message) == (Code.DATA_UNREADABLE, True)


def test_data_that_are_not_there_are_unreadable(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    error = refusal(lambda: read_path(tmp_path / "gone.jsonl", tokenizer))
    assert error.code is Code.DATA_UNREADABLE
    assert "gone.jsonl" in error.message


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "a", "completion": SECRET}, "has the columns completion, prompt; expected input and target"),
        ({"input": "a", "target": 3}, "Line 2 of rows.jsonl: target holds no text"),
        ({"input": "a", "target": [SECRET]}, "Line 2 of rows.jsonl: target holds no text"),
        ({"input": "a", "target": SECRET + "\ud800"}, "Line 2 of rows.jsonl: target holds no text"),
    ],
)
def test_data_columns(read: Read, row: dict[str, Any], words: str) -> None:
    good = [ROW] if "target" in row else []
    error = refusal(lambda: read("rows.jsonl", lines(*good, row, row)))
    assert error.code is Code.DATA_COLUMNS
    assert words in error.message


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        (SECRET, "messages is no list of messages"),
        ("", "messages is no list of messages"),
        (0, "messages is no list of messages"),
        (False, "messages is no list of messages"),
        ({}, "messages is no list of messages"),
        ([SECRET], "messages is no list of messages"),
        ([{"from": "a", "value": SECRET}], "the role of message 1 holds no text"),
        (
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": [{"type": "text", "text": SECRET}]}],
            "the content of message 2 holds no text",
        ),
    ],
)
def test_a_chat_that_is_none_is_named(read: Read, messages: Any, words: str) -> None:
    error = refusal(lambda: read("chat.jsonl", lines(CHAT, {"messages": messages})))
    assert (error.code, error.message) == (Code.DATA_COLUMNS, f"Line 2 of chat.jsonl: {words}.")


def test_an_empty_cell_of_a_csv_file_is_no_chat(read: Read) -> None:
    error = refusal(lambda: read("chat.csv", 'messages\n""\n""\n'))
    assert (error.code, "Write it as [" in error.hint) == (Code.DATA_COLUMNS, True)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        (lines(ROW, ROW), "hold 1 rows that differ; at least 2"),
        (lines(ROW, {"input": SECRET, "target": "  "}), "Line 2 of rows.jsonl"),
        (lines(ROW, {"input": SECRET}), "Line 2 of rows.jsonl"),
        (lines(CHAT, CHAT, {"messages": [{"role": "user", "content": SECRET}]}), "Line 3 of rows.jsonl"),
        (lines(CHAT, {"messages": []}), "Line 2 of rows.jsonl"),
        (lines(CHAT, {"messages": None}), "Line 2 of rows.jsonl"),
        (lines(CHAT, {"messages": [{"role": "assistant", "content": SECRET}]}), "Line 2 of rows.jsonl"),
    ],
)
def test_data_empty(read: Read, content: str, words: str) -> None:
    error = refusal(lambda: read("rows.jsonl", content))
    assert error.code is Code.DATA_EMPTY
    assert words in error.message


def test_a_header_alone_holds_no_rows(read: Read) -> None:
    error = refusal(lambda: read("rows.csv", "input,target\n"))
    assert (error.code, error.message) == (Code.DATA_EMPTY, "rows.csv holds no rows.")


LONG = {"input": f"{SECRET} " * 9, "target": f"{SECRET} " * 9}


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"max_input_tokens": 9}, "Line 2 of rows.jsonl: the input is 10 tokens long; at most 9"),
        ({"max_target_tokens": 9}, "Line 2 of rows.jsonl: the target is 10 tokens long; at most 9"),
        ({"positions": 9}, "Line 2 of rows.jsonl: the input is 10 tokens long; at most 9"),
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
