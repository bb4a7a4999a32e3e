"""Which public rows a question's fresh expert learns from, and how its answers become a row."""

from collections.abc import Sequence

import torch
from torch import Tensor

from router.methods.features.embedder import Embedder
from tests.real.bench import fresh
from tests.real.bench.questions import Half, Question
from tests.real.bench.score import Found, Scored
from tests.real.tasks.task import Row


class _Letters(Embedder):
    """Where a text lies by how often it has each of two letters."""

    def __init__(self) -> None:
        pass

    def embed(self, texts: Sequence[str]) -> Tensor:
        counted = torch.tensor([[text.count("a"), text.count("b")] for text in texts], dtype=torch.float32)
        return torch.nn.functional.normalize(counted, dim=1)


def _question(name: str, half: Half, *inputs: str) -> Question:
    return Question(name, "novel", half, "exact", tuple(Row(text, ("x",)) for text in inputs))


def test_the_nearest_rows_come_first_and_are_no_more_than_said() -> None:
    public = [Row("a" * count + "b" * (100 - count), (str(count),)) for count in range(100)]
    chosen = fresh.nearest(_Letters(), _question("q", "confirming", "aaaa", "aaab"), public)
    assert len(chosen) == fresh.NEAREST
    likeness = _Letters().embed([row.input for row in public]) @ _Letters().embed(["aaaa", "aaab"]).mean(0)
    best = sorted(range(100), key=lambda at: -likeness[at])
    assert [int(row.targets[0]) for row in chosen] == best[: fresh.NEAREST]


def test_the_tuning_half_gets_none_and_every_question_a_file_of_its_own() -> None:
    questions = [_question("A/b", "confirming", "a"), _question("a b", "held-in", "a"), _question("c", "tuning", "a")]
    assert [question.name for question in fresh.asked(questions)] == ["A/b", "a b"]
    rows = [fresh.one_row(question) for question in questions]
    assert [row.only for row in rows] == [("A/b",), ("a b",), ("c",)]
    assert len({row.name for row in rows}) == 3


def test_answers_of_all_are_one_row() -> None:
    one, two = Found([1.0], [0.5]), Found([0.0], [2.0])
    assert fresh.together([Scored("x", {"a": one}), Scored("y", {"b": two})]) == Scored(
        fresh.NAME, {"a": one, "b": two}
    )
