"""Routing is held against the expert that is best at a question alone."""

from pathlib import Path

from tests.real.bench.beside import beside
from tests.real.bench.questions import Question
from tests.real.bench.score import Found, Scored
from tests.real.bench.test_lower import make_model
from tests.real.tasks.task import Row

QUESTIONS = [
    Question("one", "novel", "confirming", "exact", (Row("reverse a b", ("b a",)), Row("copy a", ("a",)))),
    Question("two", "bbh", "confirming", "choices", (Row("copy b", ("b",), ("a", "b")),)),
    Question("text", "cell", "confirming", "bits", (Row("a b", ("c d",)),)),
]


def _scored(name: str, *values: float) -> Scored:
    return Scored(name, {q.name: Found([each], [1.0]) for q, each in zip(QUESTIONS, values, strict=True)})


def test_the_distance_is_from_the_best_expert_of_each_question(tmp_path: Path) -> None:
    rows = [_scored("phatgoose", 1, 0, 0), _scored("expert:a", 1, 0, 0), _scored("expert:b", 0, 1, 9)]
    model = make_model(tmp_path)
    found = beside(model, QUESTIONS, {row.name: row for row in rows}, tmp_path / "maps")
    assert set(found) == {"phatgoose"}
    assert [score for _, score in found["phatgoose"].points] == [100.0, 0.0]
    assert all(distance > 0 for distance, _ in found["phatgoose"].points)
    assert (tmp_path / "maps" / "phatgoose.png").read_bytes().startswith(b"\x89PNG")

    again = beside(model, QUESTIONS, {"phatgoose": rows[0], "expert:b": rows[2]}, tmp_path / "maps")
    assert again["phatgoose"].points != found["phatgoose"].points, "another oracle is elsewhere"
    assert beside(model, QUESTIONS, {"phatgoose": rows[0]}, tmp_path / "none") == {}
