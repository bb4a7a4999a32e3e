"""How good a written answer is.

Exact match asks for the very text, white space around it aside. Normalised match and token F1 read answers as the
evaluation of SQuAD does (P. Rajpurkar and others, arXiv 1606.05250): in lower case, without punctuation, without a, an
and the, white space made single. Token F1 is the harmonic mean of precision and recall over words, counted with
repeats. Of several targets the best one counts.

ROUGE-L (C.-Y. Lin, "ROUGE", 2004) is the F1 of the longest common subsequence of words, words being runs of a to z and
0 to 9 in lower case. The package rouge-score, which the paper's code uses by way of Hugging Face's evaluate, gives the
same; it would bring nltk for fifteen lines.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_WORD = re.compile("[a-z0-9]+")
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def exact(answer: str, target: str) -> float:
    """Return 1 for the same text, else 0."""
    return float(answer.strip() == target.strip())


def normalised(answer: str, target: str) -> float:
    """Return 1 for the same text once both are normalised, else 0."""
    return float(_normal(answer) == _normal(target))


def f1(answer: str, target: str) -> float:
    """Return the F1 of the words of the normalised texts, in [0, 1]."""
    ours, theirs = _normal(answer).split(), _normal(target).split()
    if not ours or not theirs:
        return float(ours == theirs)
    common = (Counter(ours) & Counter(theirs)).total()
    return 2 * common / (len(ours) + len(theirs))


def rouge_l(answer: str, target: str) -> float:
    """Return the F1 of the longest common subsequence of words, in [0, 1]."""
    ours, theirs = _WORD.findall(answer.lower()), _WORD.findall(target.lower())
    lengths = [0] * (len(theirs) + 1)  # of the longest one so far, by words of the target
    for word in ours:
        before = 0
        for at, other in enumerate(theirs, 1):
            before, lengths[at] = lengths[at], before + 1 if word == other else max(lengths[at], lengths[at - 1])
    return 2 * lengths[-1] / (len(ours) + len(theirs)) if ours and theirs else 0.0


METRICS: dict[str, Callable[[str, str], float]] = {
    "exact": exact,
    "normalised": normalised,
    "f1": f1,
    "rouge-l": rouge_l,
}
"""Measures of what a model writes, by name."""
ACCURACY = "accuracy"
"""The measure of what a model chooses."""


def measured(answer: str, targets: Sequence[str]) -> dict[str, float]:
    """Measure an answer in every way, against the target that it fits best."""
    return {name: max(metric(answer, target) for target in targets) for name, metric in METRICS.items()}


def _normal(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())
