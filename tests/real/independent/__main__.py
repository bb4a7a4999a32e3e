"""Methods of the bench worked out again by code that shares nothing with the product, and held against its scores.

    python -m tests.real.independent                # what `make bench-real` made last
    python -m tests.real.independent --base BASE --bundles POOL/0 --suite SUITE.json --scores POOL/scores-...

`phatgoose`, `nnls-request` and `nnls-cautious`, from the paper, the documentation and the bundles' files alone. Every
row is read by itself, where the bench reads batches. A row agrees if the loss of its right answer is the same within
`TOLERANCE` nats a token, and its value is, too; a value of yes and no that is decided by less than the tolerance counts
as even, and need not be the same. Each row is a line of stdout, the last line one JSON document. Exit status 1 if a row
disagrees.
"""

import argparse
import hashlib
import json
import math
import random
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tests.real.independent.model import Base, Likelihood, Mixtures, Pool, read_expert

TOLERANCE = 2e-3
"""Nats a token; of a metric of bits, as much of the value."""
METHODS = ("phatgoose", "nnls-request", "nnls-cautious")
_MOST_ANSWERS = 3


class Outcome(NamedTuple):
    """What a row scores."""

    value: float
    nats: float
    margin: float
    """How far a value of yes or no is from being the other one."""


def judge(metric: str, row: Mapping[str, Any], told: Sequence[Likelihood], answers: Sequence[str]) -> Outcome:
    """Score a row by its answers' likelihoods: rank classification, exact match or bits a byte."""
    right = [each for each, answer in zip(told, answers, strict=True) if answer in row["targets"]]
    nats = min(-each.mean for each in right)
    if metric == "bits":
        return Outcome(-told[0].total / math.log(2) / len(answers[0].encode()), nats, math.inf)
    if metric == "exact":
        margin = max(each.ahead for each in told)
    else:
        wrong = [each.mean for each, answer in zip(told, answers, strict=True) if answer not in row["targets"]]
        margin = max(each.mean for each in right) - max(wrong, default=-math.inf)
    return Outcome(float(margin > 0), nats, abs(margin))


class Picked(NamedTuple):
    """A row of a question."""

    question: Mapping[str, Any]
    at: int


def pick(questions: Sequence[Mapping[str, Any]], count: int) -> list[Picked]:
    """Take so many rows, from each family in turn, and within it from questions and rows as a seed shuffles them."""
    by_family: dict[str, list[Picked]] = defaultdict(list)
    for question in questions:
        by_family[question["family"]] += [Picked(question, at) for at in range(len(question["rows"]))]
    for found in by_family.values():
        random.Random(0).shuffle(found)
    taken: list[Picked] = []
    while by_family and len(taken) < count:
        for family in list(by_family):
            taken.append(by_family[family].pop())
            if not by_family[family]:
                del by_family[family]
    return taken[:count]


def check(base: Base, pool: Pool, suite: Mapping[str, Any], scores: Path, count: int) -> dict[str, Any]:
    """Work rows out again, say of each how it compares, and sum up by method."""
    kept = {method: read_scores(scores / f"{method}.jsonl") for method in METHODS}
    questions = [q for q in suite["questions"] if all(q["name"] in found for found in kept.values())]
    mixtures = Mixtures(base, pool, [" ".join(row["input"].split()) for row in suite["public"]])
    phatgoose = pool.gated()
    compared: dict[str, list[tuple[str, float]]] = {method: [] for method in METHODS}
    for question, at in pick(questions, count):
        row = question["rows"][at]
        prompt, answers = base.prompt(row["input"]), row["choices"] or row["targets"][:_MOST_ANSWERS]
        tokens = [base.answer(answer) for answer in answers]
        for method in METHODS:
            weigh = phatgoose if method == "phatgoose" else pool.fixed(mixtures.weights(method, prompt))
            with base.hooked(pool.paths, partial(pool.add, weigh)):
                found = judge(question["metric"], row, base.likelihood(prompt, tokens), answers)
            line = kept[method][question["name"]]
            value, nats = line["values"][at], line["nats"][at]
            apart = abs(found.nats - nats)
            verdict = compare(found, value, nats)
            compared[method].append((verdict, apart))
            sys.stdout.write(
                f"{verdict}: {method}, {question['family']}, {question['name']} {at}: value {value:.4g} and "
                f"{found.value:.4g}, nats {nats:.5f} and {found.nats:.5f}\n"
            )
    return {method: _summed(each) for method, each in compared.items()}


def compare(found: Outcome, value: float, nats: float) -> str:
    """Say whether a row agrees, is even or disagrees."""
    if not abs(found.nats - nats) <= TOLERANCE:
        return "disagrees"
    if abs(found.value - value) <= TOLERANCE * max(1.0, abs(value)):
        return "agrees"
    return "even" if found.margin <= TOLERANCE else "disagrees"


def _summed(compared: Sequence[tuple[str, float]]) -> dict[str, Any]:
    apart = sorted(each for _, each in compared)
    counts: dict[str, Any] = {
        word: sum(verdict == word for verdict, _ in compared) for word in ("agrees", "even", "disagrees")
    }
    return counts | {"median_apart": apart[len(apart) // 2], "most_apart": apart[-1]}


def read_scores(path: Path) -> dict[str, Any]:
    """Read one method's scores, by question."""
    return {line["question"]: line for line in map(json.loads, path.read_text().splitlines())}


def latest(bench: Path) -> Path:
    """Find the newest folder of scores that has all methods.

    Raises:
        RuntimeError: There is none.
    """
    every = (path.parent for path in bench.glob(f"pool-*/scores-*/{METHODS[0]}.jsonl"))
    whole = [folder for folder in every if all((folder / f"{method}.jsonl").is_file() for method in METHODS)]
    if not whole:
        raise RuntimeError(f"{bench} has no scores of {', '.join(METHODS)}; run make bench-real first.")
    return max(whole, key=lambda folder: folder.stat().st_mtime)


def suite_of(scores: Path, bench: Path) -> Path:
    """Find the suite that a folder of scores names by its digest: scores-DIGEST-SEED.

    Raises:
        RuntimeError: There is none.
    """
    digest = scores.name.split("-")[1]
    for file in bench.glob("suite-*.json"):
        if hashlib.sha256(file.read_bytes()).hexdigest().startswith(digest):
            return file
    raise RuntimeError(f"{bench} has no suite {digest}.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Check; what is not named is what `make bench-real` made last."""
    parser = argparse.ArgumentParser(prog="python -m tests.real.independent", description=__doc__)
    parser.add_argument("--bench", type=Path, default=Path("build/real/bench"), help="folder of make bench-real")
    parser.add_argument("--scores", type=Path, help="folder with a file of scores a method")
    parser.add_argument("--suite", type=Path, help="file of rows and public text")
    parser.add_argument("--bundles", type=Path, help="folder with one a contributor")
    parser.add_argument("--base", help="folder of the base model; without it, the packaged one of the bundles")
    parser.add_argument("--rows", type=int, default=200)
    given = parser.parse_args(arguments)
    scores = given.scores or latest(given.bench)
    content = (given.suite or suite_of(scores, given.bench)).read_bytes()
    suite = json.loads(content)
    bundles = given.bundles or scores.parent / str(suite["seed"])
    names = [each["name"] for each in (*suite["known"], *suite["further"])]
    pool = Pool([read_expert(bundles / name, name) for name in names])
    config = next((bundles / names[0]).glob("bundles/*/adapter_config.json"))
    named = given.base or str(given.bench.parent / "bases" / json.loads(config.read_bytes())["base_model_name_or_path"])
    found = check(Base(named), pool, suite, scores, given.rows)
    agree = not any(each["disagrees"] for each in found.values())
    document = {
        "schema": 1, "suite": hashlib.sha256(content).hexdigest()[:16], "experts": len(names),
        "tolerance": TOLERANCE, "methods": found, "agree": agree,
    }  # fmt: skip
    sys.stdout.write(json.dumps(document) + "\n")
    return int(not agree)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (RuntimeError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
