"""`make demo-real`: a whole federation over a pre-trained base and real tasks, as `make demo` over a world of words.

Experts that were trained are found again, and an interrupted run goes on. All is read from packages that every machine
can have. Rows are drawn by seed, and none is chosen by how it is answered.
"""

from collections.abc import Iterable

from deploy.demo.play import play
from deploy.demo.processes import perform
from deploy.demo.story import Contributor, Example, Founding, Question, Story
from protocol.errors import Code, Refused
from tests.real.base import PACKAGED, real_base
from tests.real.packages import is_here
from tests.real.tasks import every, rows
from tests.real.tasks.task import Part, Row

BASE = "smollm2"
CONTRIBUTORS = {
    "negation": "negation", "questions": "question-formation", "cities": "country-of-city", "feelings": "sentiment",
    "hospital": "diagnosis", "assistant": "intent",
}  # fmt: skip
"""Who has private rows of which task."""
PAIR, BOTH = ("negation", "questions"), "negated-question"
"""Whose experts the requests of a task need that nobody trains on."""
PUBLIC = ("capital", "people-of", "syllables", "emoji", "formula", "first-name")
"""Tasks whose requests are public text: nobody contributes them, and none is of BIG-bench, which asks not to be
spread."""
RECIPE = (
    "--layers", "15-29", "--rank", 8, "--alpha", 16, "--learning-rate", 2e-3, "--warmup-ratio", 0.2,
    "--expert-steps", 48, "--gate-steps", 16, "--batch-size", 8, "--eval-every", 24, "--held-out", 0.08,
    "--max-input-tokens", 160, "--max-target-tokens", 48, "--statistics-rows", 160,
)  # fmt: skip
EXAMPLES = 420
"""Rows in a contributor's private file."""
ASKED = 24
PUBLIC_TEXTS = 384
PROBES = 4
SEED = 0
LONGEST = 360
"""Characters of a request that is short enough."""
ANSWER = "\nAnswer:"
"""Ends a request; an answer begins with a space, so that a tokenizer sees text as it is written."""


def story() -> Story:
    """Tell of six contributors over the packaged base.

    Raises:
        Refused: `DATA_UNREADABLE` if a package is missing.
    """
    wanted = [PACKAGED[BASE], "gguf"]
    wanted += [source for name in (*CONTRIBUTORS.values(), BOTH, *PUBLIC) for source in every()[name].sources]
    if missing := [name for name in dict.fromkeys(wanted) if not is_here(name)]:
        raise Refused(
            Code.DATA_UNREADABLE,
            f"The demo reads packages that are not here: {', '.join(missing)}.",
            "Run make real, which says what it could not get.",
        )
    public = [_request(row) for name in PUBLIC for row in _rows(name, "train", PUBLIC_TEXTS // len(PUBLIC))]
    founding = Founding(
        real_base(BASE), RECIPE, tuple(public[:: len(public) // PROBES][:PROBES]), ("means",), tuple(public)
    )
    contributors = {
        name: Contributor(
            [Example(_request(row), f" {row.targets[0]}") for row in _rows(task, "train", EXAMPLES)],
            _questions(_rows(task, "held-in", ASKED)),
        )
        for name, task in CONTRIBUTORS.items()
    }
    return Story(founding, contributors, {PAIR: _questions(_rows(BOTH, "tuning", ASKED))}, max_new_tokens=16, drawn=6)


def _rows(name: str, part: Part, count: int) -> list[Row]:
    return [row for row in rows(every()[name], part, SEED) if len(row.input) <= LONGEST][:count]


def _request(row: Row) -> str:
    return f"{row.input}{ANSWER}"


def _questions(found: Iterable[Row]) -> list[Question]:
    return [Question(_request(row), row.targets) for row in found]


def main() -> None:
    """Run it."""
    perform("demo-real", lambda folder: play(story(), folder), resume=True)


if __name__ == "__main__":
    main()
