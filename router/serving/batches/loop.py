"""The thread that runs the model: lets requests in, steps, and lets them out."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Hashable
from contextlib import suppress
from typing import Protocol
from weakref import WeakValueDictionary

import structlog
import torch

from protocol.errors import Code, GreylagError, Refused, Unavailable
from router.base.device_map import is_offloaded
from router.layer.routed_linear import RoutingPlan
from router.model.planner import plan
from router.model.routed_model import RoutedModel
from router.serving.batches.paged import ends, penalty
from router.serving.batches.preparation import Preparation, failed, prepare
from router.serving.batches.room import PAGE_TOKENS, pages
from router.serving.batches.seat import Seat, Told
from router.serving.engine import Asked, Ended, Load, Written

JOIN_S = 60.0
"""How long the step in progress may take to end, in seconds."""
_log = structlog.get_logger(__name__)


class Batch(Protocol):
    """Those who are answered at a time, and how the model is run for them."""

    @property
    def starts(self) -> int:
        """Tokens that stand before an answer beside the prompt's, in what a penalty looks at."""

    def add(self, seat: Seat) -> None:
        """Let a planned request in."""

    def remove(self, seat: Seat) -> None:
        """Take a request out, whether it is over or not."""

    def step(self) -> None:
        """Run the model, and give tokens."""

    def clear(self) -> None:
        """Take everybody out, after a step that failed."""


class BatchEngine:
    """Answers requests in a batch, in the order in which they came.

    Args:
        model: The routed model.
        open_batch: Makes the batch, in the thread that runs the model.
        room: Pages of keys and values for all who are answered at a time.
        seats: Requests that are answered at a time.
        waiting: Requests that may wait.
        gather_s: How long a batch that was empty waits for others after the first request, in seconds.
    """

    def __init__(
        self,
        model: RoutedModel,
        open_batch: Callable[[], Batch],
        *,
        room: int,
        seats: int,
        waiting: int,
        gather_s: float = 0.0,
    ) -> None:
        self.model = model
        self._open_batch, self._gather_s = open_batch, gather_s
        self._room, self._most, self._most_waiting = room, seats, waiting
        self._ends = ends(model.base)
        self._changed = threading.Condition()
        self._queue: deque[Seat] = deque()
        self._running: dict[Seat, int] = {}
        """Those who are answered, and how many pages each has."""
        self._plans: WeakValueDictionary[Hashable, RoutingPlan] = WeakValueDictionary()
        self._preparation = Preparation(model, self._back)
        self._alone = is_offloaded(model.base.model)
        self._thread: threading.Thread | None = None
        self._open = threading.Event()
        self._error: GreylagError | None = None
        self._closed = self._ending = False
        self._trouble = ""

    @property
    def load(self) -> Load:
        """How busy it is."""
        waiting = len(self._queue) + len(self._preparation.waiting)
        return Load(waiting, len(self._running), self._most_waiting, self._trouble)

    def start(self) -> None:
        """Begin to answer, once.

        Raises:
            ValueError: It has begun before.
            Unavailable: `MEMORY_FULL`, or `INTERNAL`.
        """
        if self._thread is not None:
            raise ValueError("the engine was started before")
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()
        self._open.wait()
        if self._error is not None:
            raise self._error

    def stop(self, drain_s: float = 0.0) -> None:
        """Take nothing new, wait so many seconds for whoever was let in or waits, and end the rest (`BUSY`)."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(self._idle, drain_s)
            self._ending = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(JOIN_S)
        self._end_all(_stopping())

    async def ask(self, asked: Asked) -> AsyncGenerator[Written | Ended, None]:
        """Answer a request token by token; to close the iterator takes the request out of the batch.

        Raises:
            Refused: As `router.model.planner.plan`, or `DATA_TOO_LONG`.
            Unavailable: `BUSY` where too many wait, or where the engine stops; `INTERNAL` where it failed;
                `MEMORY_FULL`.
        """
        loop, told = asyncio.get_running_loop(), asyncio.Queue[Told]()

        def tell(what: Told) -> None:
            with suppress(RuntimeError):  # the loop is closed, and nobody listens
                loop.call_soon_threadsafe(told.put_nowait, what)

        seat = Seat(asked, tell)
        self._enter(seat)
        try:
            while True:
                what = await told.get()
                if isinstance(what, GreylagError):
                    raise what
                yield what
                if isinstance(what, Ended):
                    return
        finally:
            self._leave(seat)

    def _enter(self, seat: Seat) -> None:
        with self._changed:
            if self._trouble:
                raise failed()
            if self._closed:
                raise _stopping()
            if self.load.waiting >= self._most_waiting:
                raise Unavailable(Code.BUSY, "Too many requests wait for an answer.", "Try again in a minute.")
            self._queue.append(seat)
            self._changed.notify_all()

    def _leave(self, seat: Seat) -> None:
        with self._changed:
            seat.gone = True
            with suppress(ValueError):
                self._queue.remove(seat)
            self._changed.notify_all()

    def _back(self, seats: list[Seat]) -> None:
        """Take requests back that were being prepared: those who came first come first."""
        with self._changed:
            if not (self._ending or self._trouble):
                self._queue.extendleft(reversed(seats))
                self._changed.notify_all()
                return
        for seat in seats:
            seat.fail(failed() if self._trouble else _stopping())

    # What follows runs in the engine's own thread.

    def _run(self) -> None:
        device = self.model.base.model.device
        try:
            if device.type == "cuda":
                torch.cuda.set_device(device)  # a thread begins with the first one
            batch = self._open_batch()
            self._open.set()
            while self._wait():
                self._let_out(batch)
                self._let_in(batch)
                self._step(batch)
        except Exception as error:  # noqa: BLE001 - whatever it is, whoever waits has to hear of it
            _log.exception("the engine failed")
            with self._changed:
                self._trouble = "The router failed, and answers nothing until it is started anew; its log says why."
            self._error = error if isinstance(error, GreylagError) else failed()
            self._end_all(self._error)
        else:
            self._end_all(_stopping())
        finally:
            self._open.set()

    def _wait(self) -> bool:
        """Wait for something to do; returns whether to go on."""
        with self._changed:
            if not self._running:
                self._changed.wait_for(lambda: self._queue or self._ending)
                if self._gather_s:
                    self._changed.wait_for(lambda: len(self._queue) >= self._most or self._ending, self._gather_s)
            return not self._ending

    def _let_out(self, batch: Batch) -> None:
        for seat in [seat for seat in self._running if seat.over or seat.gone]:
            batch.remove(seat)
            self._forget(seat)

    def _let_in(self, batch: Batch) -> None:
        while len(self._running) < self._most:
            with self._changed:
                if not self._queue:
                    return
                seat = self._queue[0]
                needed = pages(len(seat.asked.prompt.tokens) + self._limit(seat))
                if not seat.gone and sum(self._running.values()) + needed > self._room:
                    return  # it is its turn, though others may need less
                self._queue.popleft()
            if not (seat.gone or seat.over):
                self._admit(seat, needed, batch)

    def _admit(self, seat: Seat, needed: int, batch: Batch) -> None:
        """Plan a request and let it in, or have its method prepared first."""
        try:
            if not self._prepared(seat):
                return
            self._plan(seat, batch.starts or len(seat.asked.prompt.tokens))
        except GreylagError as error:
            seat.fail(error)
        except torch.OutOfMemoryError:
            seat.fail(_no_memory())
        except Exception:  # noqa: BLE001 - nobody else's answer depends on it
            _log.exception("a request could not be planned", method=seat.asked.choice.method)
            seat.fail(failed())
        else:
            self._running[seat] = needed
            batch.add(seat)

    def _prepared(self, seat: Seat) -> bool:
        """Tell whether a request can be planned at once; if not, it is over, or comes back."""
        choice, model = seat.asked.choice, self.model
        if self._limit(seat) < 1:
            seat.fail(self._too_long(seat))
        elif not model.prepared(choice) and seat.prepared_for is not model.held.find(choice.release):
            if not self._alone:
                self._preparation.begin(seat)
                return False
            prepare(model, seat)
        return not seat.over

    def _plan(self, seat: Seat, started: int) -> None:
        """Plan a request of which so many tokens stand before those that are written."""
        model, asked, limit = self.model, seat.asked, self._limit(seat)
        planned = plan(model.features, model.held, [asked.prompt], [asked.choice])
        planned = planned.recorded() if asked.explain else planned
        wanted = penalty(model.base, asked.prompt.tokens, started, limit)
        seat.begin(model.base, planned, limit, self._ends, wanted)
        if (alike := seat.alike) is not None:
            # One plan, so that a module routes them together.
            seat.plan = self._plans.setdefault(alike, seat.plan)

    def _limit(self, seat: Seat) -> int:
        """Tell how many tokens a request may be given."""
        base, read = self.model.base, len(seat.asked.prompt.tokens)
        limit = min(seat.asked.sampling.max_new_tokens, self._room * PAGE_TOKENS - read)
        if base.positions is None:
            return limit
        return min(limit, base.positions - (read if base.architecture == "decoder-only" else 1))

    def _too_long(self, seat: Seat) -> Refused:
        read = len(seat.asked.prompt.tokens)
        most = self._room * PAGE_TOKENS - 1
        if self.model.base.positions is not None:
            most = min(most, self.model.base.positions - 1)
        return Refused(
            Code.DATA_TOO_LONG, f"The request is {read} tokens long; this router takes at most {most}.", "Shorten it."
        )

    def _step(self, batch: Batch) -> None:
        if not self._running:
            return
        try:
            batch.step()
        except (GreylagError, torch.OutOfMemoryError) as error:
            _log.warning("a step failed", message=str(error), requests=len(self._running))
            self._give_up(error)
            batch.clear()
        self._let_out(batch)

    def _give_up(self, error: Exception) -> None:
        """End everybody who is in a step that failed: nobody knows how far it came. Whoever comes next is answered."""
        seats, told = list(self._running), error if isinstance(error, GreylagError) else _no_memory()
        for seat in seats:
            self._forget(seat)
        if isinstance(error, Refused) and len(seats) > 1:
            # A base with experts of its own mixes up whose tokens it hands them: one request at a time, then.
            self._most, told = 1, Unavailable(Code.BUSY, "The answer was interrupted.", "Try again.")
            with self._changed:
                self._queue.extendleft(seat for seat in reversed(seats) if not seat.written)
            seats = [seat for seat in seats if seat.written]
        for seat in seats:
            seat.fail(told)

    def _forget(self, seat: Seat) -> None:
        with self._changed:
            self._running.pop(seat, None)  # gone where `stop` had no patience left
            self._changed.notify_all()

    def _idle(self) -> bool:
        return not (self._queue or self._running or self._preparation.waiting) or bool(self._trouble)

    def _end_all(self, error: GreylagError) -> None:
        with self._changed:
            seats = [*self._running, *self._queue, *self._preparation.waiting]
            self._running.clear()
            self._queue.clear()
            self._changed.notify_all()
        for seat in seats:
            seat.fail(error)


def _stopping() -> Unavailable:
    return Unavailable(Code.BUSY, "The router stops.", "Try again in a minute.")


def _no_memory() -> Unavailable:
    return Unavailable(
        Code.MEMORY_FULL, "The device has too little memory for the requests.", "Try again, or ask for shorter answers."
    )
