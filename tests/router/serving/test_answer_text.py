"""What is told of an answer while its tokens come."""

import itertools
from typing import cast

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from router.serving.batches.answer_text import AnswerText


@pytest.fixture(scope="module")
def by_bytes() -> PreTrainedTokenizerFast:
    """A tokenizer of which each token is one byte."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: at for at, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def told(tokenizer: PreTrainedTokenizerFast, text: str, *stop: str) -> tuple[list[str], bool]:
    """Tell a text token by token, up to where it stops."""
    tokens = cast("list[int]", tokenizer(text)["input_ids"])
    answer, pieces = AnswerText(tokenizer, stop), []
    for length in itertools.count(1):
        pieces.append(answer.grow(tokens[:length]))
        if answer.stopped or length == len(tokens):
            return pieces, answer.stopped
    raise AssertionError


def test_a_character_waits_until_it_is_whole(by_bytes: PreTrainedTokenizerFast) -> None:
    assert told(by_bytes, "aé€b") == (["a", "", "é", "", "", "€", "b"], False)


def test_space_around_an_answer_is_not_told(by_bytes: PreTrainedTokenizerFast) -> None:
    assert told(by_bytes, " \na  b ") == (["", "", "a", "", "", "  b", ""], False)


def test_what_might_begin_a_text_to_stop_at_waits(by_bytes: PreTrainedTokenizerFast) -> None:
    assert told(by_bytes, "ab<e<en>", "<end>") == (["a", "b", "", "", "<e", "", "", "<en>"], False)
    assert told(by_bytes, "ab<end>c", "<end>") == (["a", "b", "", "", "", "", ""], True)
    assert told(by_bytes, "aab", "aaa", "ab") == (["", "", "a"], True)


def test_the_rest_is_what_was_held_back(by_bytes: PreTrainedTokenizerFast) -> None:
    answer = AnswerText(by_bytes, ["<end>"])
    tokens = cast("list[int]", by_bytes("a <e")["input_ids"])
    assert answer.grow(tokens) == "a"
    assert answer.rest("a <e") == " <e"
    assert answer.rest("other") == ""
