"""`make demo`: a whole federation on one machine, from private data to a routed answer."""

from collections.abc import Iterable
from functools import partial

from deploy.demo import world
from deploy.demo.play import play
from deploy.demo.processes import perform
from deploy.demo.story import Contributor, Example, Question, Story
from deploy.demo.world import WORDS

EXAMPLES = 512
"""Rows in a contributor's private file."""
TRAIN_SEED = 1
HELD_OUT_SEED = 2
PER_CONTRIBUTOR = 64
PER_PAIR = 32
DRAWN = 16


def story() -> Story:
    """Tell of six contributors in a world of words."""
    contributors = {
        name: Contributor(
            world.train(name, EXAMPLES, TRAIN_SEED), _questions(world.held_out(name, PER_CONTRIBUTOR, HELD_OUT_SEED))
        )
        for name in world.CONTRIBUTORS
    }
    pairs = {pair: _questions(world.composed(pair, PER_PAIR, HELD_OUT_SEED)) for pair in world.composable()}
    return Story(WORDS, contributors, pairs, max_new_tokens=8, drawn=DRAWN)


def _questions(examples: Iterable[Example]) -> list[Question]:
    return [Question(one.input, (one.target,)) for one in examples]


if __name__ == "__main__":
    perform("demo", partial(play, story()))
