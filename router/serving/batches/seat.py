"""One request, from its place in the queue to its last token."""

from collections.abc import Callable, Hashable

from protocol.errors import GreylagError
from router.base.loading import Base
from router.layer.routed_linear import RoutingPlan
from router.methods import READ_FIRST, find_method
from router.model.decode import to_answer
from router.model.planner import Planned
from router.model.releases import Generation
from router.query.answer import Answered
from router.serving.batches.answer_text import AnswerText
from router.serving.batches.draw import Dice, Drawn, Penalty
from router.serving.engine import Asked, Ended, Written

Told = Written | Ended | GreylagError
"""What somebody who asked hears; after `Ended` or an error nothing more."""


class Seat:
    """What is known of a request while it waits, and once it is planned while it is answered.

    Args:
        asked: The request.
        tell: Takes what is told of it, from the thread that runs the model.

    Attributes:
        asked: The request.
        gone: Whether nobody listens any more; set from any thread.
        over: Whether the last thing was told.
        prepared_for: The generation that its method was prepared for, where that was tried.
        written: Tokens, the end token among them.
        read: Input ids and mask as the model was given them, padding included.
    """

    def __init__(self, asked: Asked, tell: Callable[[Told], None]) -> None:
        self.asked, self._tell = asked, tell
        self.gone = self.over = False
        self.prepared_for: Generation | None = None
        self.written: list[int] = []
        self.read = (asked.prompt.tokens, [1] * len(asked.prompt.tokens))

    def begin(self, base: Base, planned: Planned, limit: int, ends: frozenset[int], penalty: Penalty | None) -> None:
        """Take what a request needs to be answered.

        Args:
            base: The base model.
            planned: How it is routed, alone.
            limit: Most tokens that it may be given.
            ends: Tokens that end an answer.
            penalty: What the checkpoint wants done to scores.
        """
        self._base, self._planned, self.limit, self._ends = base, planned, limit, ends
        self.plan: RoutingPlan = planned.parts[0].plan
        self.dice = Dice(self.asked.sampling, penalty)
        self._text = AnswerText(base.tokenizer, self.asked.sampling.stop)

    @property
    def alike(self) -> Hashable:
        """What requests have in common that may share one plan; None for one that nobody shares."""
        (part,) = self._planned.parts
        if self.asked.explain or find_method(part.method) in READ_FIRST:
            return None
        return part.method, part.asked.pool, part.asked.k, part.asked.temperature

    def take(self, drawn: Drawn) -> None:
        """Take the next token, and tell of it."""
        self.written.append(drawn.token)
        if drawn.token in self._ends:
            self._end("stop")
            return
        self._tell(Written(drawn.token, self._text.grow(self.written), drawn.logprob, drawn.top))
        if self._text.stopped:
            self._end("stop")
        elif len(self.written) >= self.limit:
            self._end("length")

    def fail(self, error: GreylagError) -> None:
        """Tell that the request is not answered, or not to its end."""
        if not self.over:
            self.over = True
            self._tell(error)

    def _end(self, reason: str) -> None:
        (part,) = self._planned.parts
        answer = to_answer(self._base, part, 0, self.read, self.written, self.asked.sampling.stop)
        self.over = True
        self._tell(
            Ended(
                reason,
                self._text.rest(answer.text),
                Answered(self._planned.names, (answer,), self._planned.digests),
                len(self.asked.prompt.tokens),
                len(self.written),
            )
        )
