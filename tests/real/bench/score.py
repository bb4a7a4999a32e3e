"""Scores of one row of the table on every question, kept question by question as they are found.

Three metrics, as a question says: exact match of a right answer (`tests.lab.exact` tells why one forward pass is
enough), rank classification by the mean log-likelihood of each choice (arXiv 2402.05859, section 4), and bits a byte of
the target. Beside each row's score stands the loss of its right answer in nats a token, which tells of differences that
a score of yes and no does not.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from protocol.errors import Refused
from router.base.batching import encode_pairs
from router.base.likelihood import Likelihood
from router.model.routed_model import RoutedModel
from router.pool.pool import ExpertPool
from router.query.request import RoutingChoice
from tests.lab.contenders import Bundles, Contender
from tests.lab.evaluate import LEFT_OUT, holding
from tests.real.bench.packed import can_pack, packed
from tests.real.bench.questions import Question
from tests.real.tasks.task import Row

AT_ONCE = 12
"""Inputs that a forward pass takes."""
MOST_ANSWERS = 3
"""Right answers of a row that are tried."""


@dataclass(frozen=True)
class Asked(Contender):
    """One row of the table."""

    shots: int = 0
    """Examples that stand in each prompt."""
    only: tuple[str, ...] = ()
    """Names of the questions that it is asked; empty for all."""


@dataclass(frozen=True)
class Found:
    """What came of one question, row by row."""

    values: list[float]
    """1 or 0; bits a byte where the metric is that."""
    nats: list[float]
    """Loss of the right answer, a token; of several the smallest."""


@dataclass(frozen=True)
class Scored:
    """What came of one row of the table."""

    name: str
    found: dict[str, Found] = field(default_factory=dict)
    """By question."""
    skipped: str = ""
    """Why nothing was found."""


def score(
    model: RoutedModel,
    questions: Sequence[Question],
    asked: Asked,
    pools: Mapping[Bundles, Callable[[], ExpertPool]],
    folder: Path,
) -> Scored:
    """Ask one row of the table every question, but for what lies in the folder.

    Args:
        model: The base with its experts.
        questions: What is asked.
        asked: The row.
        pools: Other forms of the experts, by what a row runs on.
        folder: Where scores are kept.
    """
    path = folder / f"{re.sub('[^a-z0-9.:=-]+', '_', asked.name)}.jsonl"
    found, put = read(path), [question for question in questions if question.name in (asked.only or (question.name,))]
    missing = [question for question in put if question.name not in found]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        pool = None if asked.bundles == "experts" else pools[asked.bundles]()
        with holding(model, pool), path.open("a") as file:
            for question in missing:
                try:
                    result = judge(model, question, asked.choice, asked.shots)
                except Refused as error:
                    if error.code not in LEFT_OUT:
                        raise
                    return Scored(asked.name, skipped=error.message)
                found[question.name] = result
                file.write(json.dumps({"question": question.name, **vars(result)}) + "\n")
                file.flush()
    return Scored(asked.name, {question.name: found[question.name] for question in put})


def read(path: Path) -> dict[str, Found]:
    """Read what was found before; a last line that a kill cut off counts for nothing."""
    found = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        with suppress(json.JSONDecodeError):
            fields = json.loads(line)
            found[fields["question"]] = Found(fields["values"], fields["nats"])
    return found


def judge(model: RoutedModel, question: Question, choice: RoutingChoice, shots: int = 0) -> Found:
    """Score every row of a question.

    Rows of like length are asked together: else the model's head would work for the padding of short ones.
    """
    tried = [row.choices or row.targets[:MOST_ANSWERS] for row in question.rows]
    prompts = [_prompt(question, row, shots) for row in question.rows]
    by_length = sorted(range(len(prompts)), key=lambda at: len(prompts[at]))
    told: dict[int, list[Likelihood]] = {}
    for start in range(0, len(by_length), AT_ONCE):
        places = by_length[start : start + AT_ONCE]
        found = _likely(model, [prompts[at] for at in places], [tried[at] for at in places], choice)
        told |= dict(zip(places, found, strict=True))
    each = [(row, tried[at], told[at]) for at, row in enumerate(question.rows)]
    return Found(
        [_value(question, row, answers, likely) for row, answers, likely in each],
        [
            min(-one.mean for answer, one in zip(answers, likely, strict=True) if answer in row.targets)
            for row, answers, likely in each
        ],
    )


def _likely(
    model: RoutedModel, prompts: Sequence[str], tried: Sequence[Sequence[str]], choice: RoutingChoice
) -> list[list[Likelihood]]:
    """Score every answer to every prompt; where the base allows it, all answers to one at once."""
    if can_pack(model):
        return packed(model, prompts, tried, choice)
    inputs = [prompt for prompt, answers in zip(prompts, tried, strict=True) for _ in answers]
    targets = [answer for answers in tried for answer in answers]
    found = iter(model.likelihoods(inputs, encode_pairs(model.base, inputs, targets), choice))
    return [[next(found) for _ in answers] for answers in tried]


def _value(question: Question, row: Row, answers: Sequence[str], told: Sequence[Likelihood]) -> float:
    match question.metric:
        case "choices":
            return float(answers[max(range(len(answers)), key=lambda at: told[at].mean)] in row.targets)
        case "exact":
            return float(any(each.greedy for each in told))
        case "bits":
            return -told[0].total / math.log(2) / len(answers[0].encode())


def _prompt(question: Question, row: Row, shots: int) -> str:
    examples = [f"{each.input}{each.targets[0]}" for each in question.shots[:shots]]
    return "\n\n".join([*examples, row.input])
