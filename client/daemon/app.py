"""The ClientApp: takes an order, asks the policy, lets the node work, and lets out what the schema names.

Everything that a campaign may learn passes `reply_to`, the only place that makes a reply.
"""

from collections.abc import Callable
from datetime import UTC, datetime

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from protocol.documents import Pool
from protocol.errors import Code, GreylagError, Refused, Unavailable
from protocol.fleet.campaign import Kind, Order, read_order
from protocol.fleet.reply import ANSWER, ARRAYS, METRICS, NUMBER_BYTES, ORDER, UPDATE, Reply, read_reply

Act = Callable[[Order], Reply]


def make_app(
    pool: Pool, act: Act, note: Callable[[str], object], keep_up: Callable[[], Pool] | None = None
) -> ClientApp:
    """Make the app of a node; what it notes for the contributor may, unlike a reply, say what went wrong.

    Args:
        pool: The pool.
        act: Does what an order asks.
        note: Told what went wrong.
        keep_up: Asks before each order whose key signs orders now; without it, that is the one that the pool names.
    """
    app = ClientApp()

    def handle(kind: Kind) -> Callable[[Message, Context], Message]:
        return lambda message, _context: reply_to(
            message, kind, lambda: act(_order(message, kind, keep_up() if keep_up else pool)), note
        )

    app.query("info")(handle("info"))
    app.train()(handle("train"))
    app.evaluate()(handle("evaluate"))
    app.train("calibrate")(handle("calibrate"))
    return app


def reply_to(message: Message, kind: str, work: Callable[[], Reply], note: Callable[[str], object]) -> Message:
    """Reply with what `work` gives, or with why it gave nothing: a code or a type, never a text."""
    try:
        reply = work()
        read_reply(kind, reply.text, reply.metrics, reply.update)
    except GreylagError as error:
        note(str(error))
        again = isinstance(error, Unavailable) or error.code is Code.WORKSPACE_BUSY
        reply = Reply("later" if again else "failed", error.code.name)
    except Exception as error:  # noqa: BLE001 - its text may quote a private row: only its type leaves
        note(f"{type(error).__name__}: {error}")
        reply = Reply("failed", Code.INTERNAL.name, "".join(c for c in type(error).__name__ if c.isalpha())[:64])
    # Flower 1.41 cannot count the bytes of an empty text, so what is empty stays out.
    text = {name: value for name, value in reply.text.items() if value}
    content = RecordDict({ANSWER: ConfigRecord(dict(text)), METRICS: MetricRecord(dict(reply.metrics))})
    if reply.update:
        numbers = len(reply.update) // NUMBER_BYTES
        array = Array(dtype="float32", shape=(numbers,), stype="little-endian", data=reply.update)
        content[ARRAYS] = ArrayRecord({UPDATE: array})
        note(f"an array of {numbers} numbers is sent, {len(reply.update)} bytes")
    return Message(content, reply_to=message)


def _order(message: Message, kind: Kind, pool: Pool) -> Order:
    records = message.content.config_records
    envelope = records[ORDER].get("envelope") if ORDER in records else None
    if not isinstance(envelope, bytes):
        raise Refused(Code.ORDER_INVALID, "The message carries no signed order.", "Tell the pool's operator.")
    order = read_order(envelope, pool, now=datetime.now(UTC))
    if order.kind != kind:
        raise Refused(Code.ORDER_INVALID, f"The message asks for {kind}, its order for {order.kind}.")
    return order
