"""A federation without sockets: nodes in this process, real messages, everything that crosses recorded."""

import itertools
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.node_pb2 import NodeInfo
from flwr.superlink.grid import InMemoryGrid

from coordinator.fleet.flower.client import Run


@dataclass
class VirtualNode:
    """One node: its key, its app, and whether it is there."""

    public: str
    app: ClientApp
    up: bool = True
    dies: bool = False
    """Over every message."""
    since: str | None = None
    """When it connected, as ISO 8601."""


class LocalGrid(InMemoryGrid):
    """Carries messages to nodes of this process and back, through Flower's own serialisation.

    It takes Flower's place but for its database, in which nodes would look for messages.

    Args:
        nodes: The nodes; more may be added while it works.
        on_wire: Shown every message and reply, as bytes.
    """

    def __init__(self, nodes: list[VirtualNode], *, on_wire: Callable[[bytes], object] = len) -> None:
        self.nodes, self._on_wire, self.pull_interval = nodes, on_wire, 0.01
        self._workers = ThreadPoolExecutor(4)
        self._replies: dict[str, Future[Message]] = {}
        self._numbers = itertools.count(1)

    def as_run(self) -> Run:
        """Be the run of a campaign."""
        return Run(self, task=1, run=1, node=1)

    def close(self) -> None:
        """Let the workers go."""
        self._workers.shutdown(cancel_futures=True)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Nodes that are there."""
        return [
            NodeInfo(node_id=at + 1, public_key=node.public.encode(), last_activated_at=node.since)
            for at, node in enumerate(self.nodes)
            if node.up
        ]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Hand messages to their nodes."""
        identifiers = []
        for message in messages:
            identifier = f"message-{next(self._numbers)}"
            message.metadata.__dict__["_message_id"] = identifier
            raw = message_to_proto(message).SerializeToString()
            self._on_wire(raw)
            self._replies[identifier] = self._workers.submit(self._deliver, raw, message.metadata.dst_node_id)
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Take the replies that are ready."""
        ready = [each for each in message_ids if each in self._replies and self._replies[each].done()]
        return [self._replies.pop(each).result() for each in ready]

    def _deliver(self, raw: bytes, number: int) -> Message:
        message, node = message_from_proto(MessageProto.FromString(raw)), self.nodes[number - 1]
        if node.dies or not node.up:
            return Message(Error(ErrorCode.NODE_UNAVAILABLE, "Node Unavailable"), reply_to=message)
        context = Context(run_id=1, node_id=number, node_config={}, state=RecordDict(), run_config={})
        reply = node.app(message, context)
        sent = message_to_proto(reply).SerializeToString()
        self._on_wire(sent)
        return message_from_proto(MessageProto.FromString(sent))
