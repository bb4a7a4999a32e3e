"""Which rows are held out: decided by their content alone, so that no row that was trained on is ever judged by."""

import json
import random
from itertools import product
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from client.data.columns import DataColumns, DataSource
from client.data.examples import boundary_of, held_out_pairs, read_examples
from protocol.errors import Code, Refused
from protocol.spec import Recipe

Rows = list[dict[str, str]]
ROWS: Rows = [{"input": f"say {number}", "target": str(number)} for number in range(1000)]


@pytest.fixture(scope="module")
def tokenizer(t5_base: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(t5_base)


def held_out(
    path: Path, rows: Rows, tokenizer: PreTrainedTokenizerFast, key: bytes = b"a", share: float = 0.1
) -> set[str]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = held_out_pairs(DataSource((path,), DataColumns(), key), tokenizer, share, ())
    assert len(pairs) == len({pair.prompt for pair in pairs})
    return {pair.prompt for pair in pairs}


def test_a_file_that_grows_is_shuffled_and_shrinks_moves_no_row(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = tmp_path / "rows.jsonl"
    before = held_out(path, ROWS, tokenizer)
    assert 60 <= len(before) <= 140
    new: Rows = [{"input": f"more {number}", "target": "x"} for number in range(10)]
    grown = [*new, *ROWS]
    random.Random(0).shuffle(grown)
    after = held_out(path, grown, tokenizer)
    assert after - {row["input"] for row in new} == before
    assert held_out(path, ROWS[500:], tokenizer) == before & {row["input"] for row in ROWS[500:]}


def test_the_split_is_the_workspaces_own(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    one, other = (held_out(tmp_path / "rows.jsonl", ROWS, tokenizer, key) for key in (b"a", b"b"))
    assert len(one & other) < 40


def test_a_smaller_share_is_part_of_a_larger_one(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    small, large = (held_out(tmp_path / "rows.jsonl", ROWS, tokenizer, share=share) for share in (0.05, 0.3))
    assert small < large


def test_what_is_trained_on_and_what_is_judged_by_are_apart(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"input": "reverse " + " ".join(each), "target": each[0]} for each in product("abcdef", repeat=3)]
    judged = {tuple(tokenizer(text)["input_ids"]) for text in held_out(path, rows, tokenizer)}
    source = DataSource((path, path), DataColumns(), b"a")  # each row twice: both fall on one side
    examples = read_examples(source, tokenizer, "encoder-decoder", Recipe(), positions=None)
    assert examples.rows == 2 * 216
    assert sorted(map(tuple, examples.held_out["input_ids"])) == sorted([*judged, *judged])
    assert judged.isdisjoint(map(tuple, examples.train["input_ids"]))


def test_one_row_at_least_is_held_out_and_growth_never_takes_a_trained_one() -> None:
    draw = random.Random(1)
    for _ in range(200):
        places = [0.5 + draw.random() / 2 for _ in range(2)]
        while len(places) < 6:
            boundary = boundary_of(places, 0.1)
            assert min(places) < boundary
            trained = {place for place in places if place >= boundary}
            places.append(draw.random())
            assert min(trained) >= boundary_of(places, 0.1)


@pytest.mark.parametrize(
    ("places", "share", "words"),
    [([0.2, 0.2], 0.1, "hold 1 rows that differ"), ([0.2, 0.4], 0.9, "none is left to train on")],
)
def test_rows_for_one_side_alone_are_refused(places: list[float], share: float, words: str) -> None:
    with pytest.raises(Refused, match=words) as refused:
        boundary_of(places, share)
    assert refused.value.code is Code.DATA_EMPTY
