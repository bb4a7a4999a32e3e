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


@pytest.mark.parametrize(
    ("answer", "target"),
    [
        ("the cat sat on the mat", "the cat is on a mat"),
        ("a b c d e f", "f e d c b a"),
        ("b a b a b", "a b b"),
        ("Don't stop-now 3.5", "dont stop now 3 5"),
        ("", "x"),
        ("x", "..."),
        ("same words", "same words"),
    ],
)
def test_rouge_l_is_that_of_rouge_score(answer: str, target: str) -> None:
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="comes with the extra harness")
    expected = rouge_scorer.RougeScorer(["rougeL"]).score(target, answer)["rougeL"].fmeasure
    assert measured(answer, [target])["rouge-l"] == pytest.approx(expected)
