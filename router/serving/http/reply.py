"""What the engine tells of a request, put together for its client: whole, or as a stream of events."""

import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from router.serving.engine import Ended, Written
from router.serving.http.answers import Answers, Told
from router.serving.http.explained import explained
from router.serving.http.failures import Failure
from router.serving.http.metrics import DoorMetrics
from router.serving.http.question import Question
from router.serving.http.replies import Envelope, Json, Usage, choice
from router.serving.http.spelling import Speller, Spelt


class _Transcript:
    """One answer, as far as it is written."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.spelt: list[Spelt] = []
        self.ended: Ended | None = None
        self.letters = 0

    def add(self, text: str) -> None:
        self.texts.append(text)
        self.letters += len(text)


class HttpReply:
    """Puts a request's answers together as they come.

    Args:
        envelope: What all that is sent begins with.
        question: What was asked.
        answers: What comes.
        usage: Tokens of the inputs.
        speller: Spells tokens.
        metrics: Counts.
    """

    def __init__(
        self,
        envelope: Envelope,
        question: Question,
        answers: Answers,
        *,
        usage: Usage,
        speller: Speller,
        metrics: DoorMetrics,
    ) -> None:
        self._envelope, self._question, self._answers = envelope, question, answers
        self._usage, self._speller, self._metrics = usage, speller, metrics
        self._transcripts = [_Transcript() for _ in range(len(question.inputs) * question.each)]
        self._first: list[Told] = []
        self._since = time.monotonic()

    async def begin(self) -> None:
        """Wait for the first part: until then, a refusal is still one of the whole request.

        Raises:
            Refused: As `Answers`.
            Unavailable: Likewise.
        """
        self._first.append(await anext(self._answers))
        self._metrics.began(self._since)

    async def whole(self) -> Json:
        """Wait for the end, and write all of it."""
        async for _ in self._pieces():
            pass
        choices = []
        for index, each in enumerate(self._transcripts):
            logprobs = self._envelope.dialect.logprobs(each.spelt) if self._wants_logprobs else None
            said = self._envelope.dialect.answer("".join(each.texts), logprobs)
            choices.append(choice(index, said, each.ended and each.ended.reason, **self._explained(each)))
        return self._envelope.whole(choices, self._usage)

    async def events(self, *, usage: bool, failed: Callable[[Exception], Failure]) -> AsyncIterator[str]:
        """Write server-sent events, a refusal that comes late among them.

        Args:
            usage: Whether the last of them is to count tokens.
            failed: Says what the client may know of an error.
        """
        more: Json = {"usage": None} if usage else {}
        try:
            openings = enumerate([self._envelope.dialect.opening()] * len(self._transcripts))
            for said in [choice(index, opening) for index, opening in openings if opening is not None]:
                yield _event(self._envelope.piece([said]) | more)
            async for piece in self._pieces():
                yield _event(self._envelope.piece([piece]) | more)
        except Exception as error:  # noqa: BLE001 - the status is long sent, so an event must say it
            yield _event(failed(error).body)
            return
        if usage:
            yield _event(self._envelope.piece([]) | {"usage": self._usage.document()})
        yield "data: [DONE]\n\n"

    def stop(self) -> None:
        """Take back what is not answered yet."""
        self._answers.stop()

    @property
    def _wants_logprobs(self) -> bool:
        return self._question.sampling.top_logprobs is not None

    async def _pieces(self) -> AsyncIterator[Json]:
        for index, part in self._first:
            if (piece := self._piece(index, part)) is not None:
                yield piece
        async for index, part in self._answers:
            if (piece := self._piece(index, part)) is not None:
                yield piece
        read, written = self._usage.prompt_tokens, self._usage.completion_tokens
        self._metrics.ended(self._since, read=read, written=written)

    def _piece(self, index: int, part: Written | Ended) -> Json | None:
        """Take a part in; returns what a stream is to say of it, if anything."""
        transcript, dialect = self._transcripts[index], self._envelope.dialect
        offset, logprobs = transcript.letters, None
        transcript.add(part.text)
        if isinstance(part, Ended):
            transcript.ended = part
            self._usage.completion_tokens += part.output_tokens
            return choice(index, dialect.piece_of(part.text, None), part.reason, **self._explained(transcript))
        if self._wants_logprobs:
            transcript.spelt.append(spelt := self._speller.spelt(part, offset))
            logprobs = dialect.logprobs([spelt])
        return choice(index, dialect.piece_of(part.text, logprobs)) if part.text or logprobs else None

    def _explained(self, transcript: _Transcript) -> dict[str, Json]:
        if transcript.ended is None:
            return {}
        return {"greylag": explained(transcript.ended.answered, explain=self._question.explain)}


class EventStream(StreamingResponse):
    """A reply in events, of which nothing is asked any more once it is over, for whatever reason.

    Args:
        reply: What is sent.
        events: Its events.
    """

    media_type = "text/event-stream"

    def __init__(self, reply: HttpReply, events: AsyncIterator[str]) -> None:
        super().__init__(events, headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._reply = reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            # Here and not in the events, which may end before they have begun.
            self._reply.stop()


def _event(document: dict[str, Any]) -> str:
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n"
