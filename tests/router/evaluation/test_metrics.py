"""What is written, measured; worked out by hand."""

import pytest

from router.evaluation.metrics import measured


@pytest.mark.parametrize(
    ("answer", "targets", "expected"),
    [
        ("the cat", ["the cat"], (1, 1, 1)),
        (" the cat\n", ["the cat"], (1, 1, 1)),
        ("The  cat!", ["a cat"], (0, 1, 1)),
        ("cat sat", ["the cat sat down"], (0, 0, 0.8)),  # 2 of 2 and 2 of 3 words
        ("cat cat", ["cat"], (0, 0, 2 / 3)),  # repeats count once each
        ("dog", ["cat", "dog"], (1, 1, 1)),
        ("dog", ["cat"], (0, 0, 0)),
        ("", ["cat"], (0, 0, 0)),
        ("the", ["a"], (0, 1, 1)),  # nothing left of either
        ("the", ["cat"], (0, 0, 0)),
        ("antheap", ["heap"], (0, 0, 0)),  # an article inside a word stays
    ],
)
def test_answers_are_measured(answer: str, targets: list[str], expected: tuple[float, float, float]) -> None:
    found = measured(answer, targets)
    assert [found["exact"], found["normalised"], found["f1"]] == pytest.approx(expected)
