"""How much each user may ask in a span of time; counted in memory, so that a restart begins anew."""

import math
import time
from functools import lru_cache

from limits import RateLimitItem
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from protocol.errors import Code, Refused, Unavailable
from router.serving.users.user_file import User, read_limits


class LimitReached(Exception):  # noqa: N818 - it is the user's limit, not a fault
    """A request came too early.

    Args:
        error: What to tell the user.
        retry_s: When it is worth to try again, in seconds.
    """

    def __init__(self, error: Unavailable, retry_s: int) -> None:
        super().__init__(str(error))
        self.error, self.retry_s = error, retry_s


class Rates:
    """Counts what users ask against their limits."""

    def __init__(self) -> None:
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())

    def charge(self, user: User, *, answers: int, tokens: int) -> None:
        """Count a request before it is answered; one that is refused counts for nothing.

        Args:
            user: Whose it is.
            answers: That it asks for.
            tokens: Of its inputs and of its answers, as long as they may become.

        Raises:
            Refused: `REQUEST_INVALID` for more than a limit ever allows.
            LimitReached: For more than is left at this moment.
        """
        costs = [(limit, "answers", answers) for limit in _limits(user.requests)]
        costs += [(limit, "tokens", tokens) for limit in _limits(user.tokens)]
        for limit, of, cost in costs:
            if cost > limit.amount:
                what = f"The request may come to {cost} {of}; yours are {limit}."
                raise Refused(Code.REQUEST_INVALID, what, "Ask for less at once.")
            if not self._limiter.test(limit, user.id, of, cost=cost):
                what = f"You have had your {of}, {limit}."
                wait_s = self._limiter.get_window_stats(limit, user.id, of).reset_time - time.time()
                error = Unavailable(Code.LIMIT_REACHED, what, "Try again later, or ask the router's operator for more.")
                raise LimitReached(error, max(1, math.ceil(wait_s)))
        for limit, of, cost in costs:
            self._limiter.hit(limit, user.id, of, cost=cost)


@lru_cache(maxsize=1024)
def _limits(text: str) -> tuple[RateLimitItem, ...]:
    return tuple(read_limits(text))
