"""Virtual contributors: a node's own app over answers that cost nothing."""

import pkgutil
import random
from array import array
from collections.abc import Callable, Collection
from functools import partial

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from protocol.documents import Pool
from protocol.fleet.campaign import CLIENT_APP, Order
from protocol.fleet.reply import Reply

NUMBER = "partition-id"
"""Which of the virtual nodes a node is, by Flower's own name for it."""


class VirtualApp(ClientApp):
    """Answers for every virtual node as a contributor's daemon does, but for the hours of work.

    Args:
        pool: Its key must have signed whatever is obeyed.
        dying: Numbers of nodes that die over every message.
        seed: Of the figures that the nodes tell.
    """

    def __init__(self, pool: Pool, dying: Collection[int], seed: int) -> None:
        super().__init__()
        self._pool, self._dying, self._seed = pool, frozenset(dying), seed

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer one message for the node that the context names."""
        number = int(context.node_config[NUMBER])
        if number in self._dying:
            return Message(Error(ErrorCode.NODE_UNAVAILABLE, "Node Unavailable"), reply_to=message)
        # Found by the name that campaigns give it: a coordinator's code knows nothing of the client's.
        make_app: Callable[..., ClientApp] = pkgutil.resolve_name(CLIENT_APP)
        return make_app(self._pool, partial(answer, f"{self._seed}-{number}"), str)(message, context)


def answer(seed: str, order: Order) -> Reply:
    """Draw an answer to an order, as the schema of its kind wants it."""
    draw = random.Random(f"{seed}-{order.number}")  # noqa: S311 - no secret
    base = draw.uniform(2.0, 3.0)
    if order.kind == "train":
        metrics = {"loss": round(base, 4), "seconds": round(draw.uniform(60, 3600), 1)}
        return Reply(words={"bundle": f"{draw.getrandbits(256):064x}"}, metrics=metrics)
    if order.kind == "evaluate":
        losses = {"loss_base": base, "loss_candidate": base - draw.gauss(0.1, 0.05)}
        return Reply(words={"rows": "100 to 1,000"}, metrics={name: round(loss, 4) for name, loss in losses.items()})
    if order.calibrating is not None:
        numbers = array("f", (draw.gauss(0, 0.1) for _ in range(order.calibrating.numbers)))
        return Reply(words={"round": str(order.calibrating.number)}, metrics={"seconds": 1.0}, update=numbers.tobytes())
    return Reply(words={"device": "cpu", "rows": "100 to 1,000"}, metrics={"memory_gb": round(draw.uniform(4, 64), 1)})
