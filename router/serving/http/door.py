"""What happens to a request: who asks, what, whether it is open to callers, and the answer."""

import asyncio
import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from itertools import count

import structlog
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from protocol.errors import Code, Refused
from protocol.wire.places import Places
from router.base.batching import Prompt
from router.query.limits import DEFAULT_ALLOWANCE, Allowance
from router.serving.choices import check_allowed
from router.serving.engine import Engine
from router.serving.http.answers import Answers
from router.serving.http.failures import Failure, failure_of
from router.serving.http.listening import read_whole, unless_gone
from router.serving.http.metrics import DoorMetrics
from router.serving.http.question import Question, read_inputs, understand
from router.serving.http.replies import Dialect, Envelope, Usage
from router.serving.http.reply import EventStream, HttpReply
from router.serving.http.requests import Wanted, read_body
from router.serving.http.spelling import Speller
from router.serving.users.rates import Rates
from router.serving.users.user_file import User, Users

_ANSWERED = 16
"""About how many are answered while others wait; of all these, one user may have half."""
_LOCAL = re.compile(r"(localhost|127(\.[0-9]{1,3}){3}|\[::1\])(:[0-9]+)?", re.IGNORECASE)


@dataclass(frozen=True)
class Serving:
    """What a door opens to.

    Args:
        engine: Who answers.
        users: Who may ask.
        pool: Tells what the pool is called.
        allowance: What a caller may ask for.
        trouble: Says why the model is not at the newest release; empty where it is.
        local: Whether the door listens on loopback alone, to whoever is at this machine.
    """

    engine: Engine
    users: Users
    pool: Callable[[], str]
    allowance: Allowance = DEFAULT_ALLOWANCE
    trouble: Callable[[], str] = str
    local: bool = True


class Door:
    """Answers requests.

    Args:
        serving: What it opens to.

    Attributes:
        leaving: Whether the router is shutting down.
        metrics: Its counters.
    """

    def __init__(self, serving: Serving) -> None:
        self.serving, self.leaving = serving, False
        self.metrics = DoorMetrics(serving.engine)
        self._rates, self._speller = Rates(), Speller(serving.engine.model.base.tokenizer)
        self._places, self._numbers = Places(serving.engine.load.most_waiting + _ANSWERED), count()

    def admit(self, request: Request) -> User | None:
        """Tell who asks; None for anybody, where no keys are needed.

        Raises:
            Refused: `USER_KEY`, or `REQUEST_INVALID` for a host that is not this machine.
            Unavailable: `CLOSED`.
        """
        user = self.serving.users.admit(request.headers.get("authorization"))
        structlog.contextvars.bind_contextvars(user=user and user.name)
        if user is None and self.serving.local and not _LOCAL.fullmatch(request.headers.get("host", "")):
            # A page in a browser can give its own name this machine's address, and then read what is answered.
            what = "Without keys, this router answers to its own machine alone, under the name localhost."
            raise Refused(Code.REQUEST_INVALID, what, "Ask http://localhost, or give your users keys.")
        return user

    async def answer(self, request: Request, kind: type[Wanted], dialect: Dialect) -> Response:
        """Answer one request.

        Args:
            request: It.
            kind: What its body holds.
            dialect: How the answer is written.

        Raises:
            Refused: Whatever is wrong with it.
            Misplaced: Likewise.
            Unavailable: Whatever is wrong here.
            LimitReached: The user's limits are.
            ClientDisconnect: The client hung up.
        """
        user, raw = self.admit(request), await read_whole(request)
        who = user.name if user else request.client.host if request.client else ""
        reply = partial(self._reply, partial(self._place, who))
        return await unless_gone(request, self._answer(user, raw, kind, dialect, reply))

    def fail(self, error: Exception) -> Failure:
        """Say what a client may know of an error, and count it."""
        failure = failure_of(error, leaving=self.leaving)
        self.metrics.refused(failure.code)
        return failure

    async def _answer(
        self, user: User | None, raw: bytes, kind: type[Wanted], dialect: Dialect, begin: Callable[..., HttpReply]
    ) -> Response:
        model, allowance = self.serving.engine.model, self.serving.allowance
        wanted = await asyncio.to_thread(read_body, kind, raw)
        question = understand(wanted, self.serving.pool(), allowance)
        check_allowed(model.held, question.choice, allowance)
        prompts = await asyncio.to_thread(read_inputs, model, question.inputs)
        usage = Usage(sum(len(prompt.tokens) for prompt in prompts))
        if user is not None:
            answers = len(prompts) * question.each
            tokens = usage.prompt_tokens + answers * question.sampling.max_new_tokens
            self._rates.charge(user, answers=answers, tokens=tokens)
        reply = begin(Envelope(dialect, wanted.model), question, prompts, usage)
        try:
            await reply.begin()
            if not wanted.stream:
                return JSONResponse(await reply.whole())
        except BaseException:
            reply.stop()
            raise
        counted = bool(wanted.stream_options and wanted.stream_options.include_usage)
        return EventStream(reply, reply.events(usage=counted, failed=self.fail))

    def _place(self, who: str) -> AbstractAsyncContextManager[None]:
        # One connection has one request at a time, so only what is one user's, or one address's, is counted together.
        return self._places.one(f"http:{who}:{next(self._numbers)}")

    def _reply(
        self, place: Callable[[], AbstractAsyncContextManager[None]], envelope: Envelope, question: Question,
        prompts: list[Prompt], usage: Usage,
    ) -> HttpReply:  # fmt: skip
        answers = Answers(self.serving.engine, question.asked(prompts), place)
        return HttpReply(envelope, question, answers, usage=usage, speller=self._speller, metrics=self.metrics)
