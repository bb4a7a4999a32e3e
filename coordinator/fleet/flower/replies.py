"""Flower's grid for replies of nodes that nobody has to trust: whatever one of them sends is that node's fault alone.

Flower's own waits up to three minutes for the parts of a reply that was announced, puts together whatever they say,
and believes what they say they reply to. So a node that dies while it sends holds everybody up, a part that is not what
it claims ends the process, and an array may name one of its parts a million times.
"""

import contextlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

import httpx
from flwr.app import Array, Error, Message, Metadata
from flwr.app.message import make_message
from flwr.common.constant import ErrorCode
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest, PullObjectResponse
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.supercore.constant import SYSTEM_MESSAGE_TYPE
from flwr.supercore.inflatable.inflatable_object import (
    get_object_body,
    get_object_head_values_from_object_content,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.superlink.grid import HttpGrid

from protocol.release import MAX_CALIBRATION_BYTES

MALFORMED = ErrorCode.MOD_FAILED_PRECONDITION
"""What stands in for a reply that is none."""
MOST_PARTS = 16
"""Parts of a reply; an honest one has seven: itself, its records, and one array in one piece."""
MOST_BYTES = MAX_CALIBRATION_BYTES + (64 << 10)
"""All parts together."""


@dataclass
class _Coming:
    """A reply that was announced."""

    message: str
    parts: list[str]
    """All of them, or one more than there may be."""
    contents: dict[str, bytes] = field(default_factory=dict)


class CarefulGrid(HttpGrid):
    """Takes replies when they are whole.

    Args:
        address: The server's inner door.
        token: Of the run's task.
    """

    def __init__(self, address: str, *, token: str) -> None:
        super().__init__(address, insecure=True, token=token)
        self._coming: dict[str, _Coming] = {}

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Take the replies to some messages that have come whole by now, and say which will never be.

        Raises:
            httpx.HTTPError: The server does not answer.
        """
        wanted = set(message_ids)
        coming = self._coming = {asked: reply for asked, reply in self._coming.items() if asked in wanted}
        # What was announced once is unknown to the server afterwards.
        request = PullAppMessagesRequest(message_ids=wanted - coming.keys())
        given = self._runtime_client.PullMessages(request)
        for announced, tree in zip(given.messages_list, given.message_object_trees, strict=True):
            facts = announced.metadata  # which the server has checked, unlike the reply's own
            parts = [node.object_id for node in islice(iterate_object_tree(tree), MOST_PARTS + 1)]
            coming[facts.reply_to_message_id] = _Coming(facts.message_id, parts)
        taken = [(asked, self._take(reply)) for asked, reply in coming.items()]
        for asked, message in taken:
            if message is not None:
                message.metadata.__dict__["_reply_to_message_id"] = asked
                self._confirm(coming.pop(asked).message)
        return [message for _, message in taken if message is not None]

    def _take(self, reply: _Coming) -> Message | None:
        """Fetch what has come of a reply; None while some of it is on its way."""
        if len(reply.parts) > MOST_PARTS:
            return self._instead(MALFORMED)
        for part in reply.parts:
            if part in reply.contents:
                continue
            asked = PullObjectRequest(node=self.node, run_id=self.run.run_id, object_id=part)
            try:
                found = self._runtime_client.PullObject(asked)
            except httpx.HTTPStatusError:  # about this reply, and no other
                found = PullObjectResponse(object_found=False)
            if not found.object_found:
                return self._instead(ErrorCode.REPLY_MESSAGE_UNAVAILABLE)  # who sent it gave up
            if not found.object_available:
                return None
            reply.contents[part] = found.object_content
            if sum(map(len, reply.contents.values())) > MOST_BYTES:
                return self._instead(MALFORMED)
        try:
            return _put_together(reply)
        except Exception:  # noqa: BLE001 - bytes of a stranger's choosing fail in any way
            return self._instead(MALFORMED)

    def _confirm(self, message: str) -> None:
        """Let the server forget a reply; one that it keeps costs its disk and nothing else."""
        with contextlib.suppress(httpx.HTTPStatusError):
            self._runtime_client.ConfirmMessageReceived(
                ConfirmMessageReceivedRequest(node=self.node, run_id=self.run.run_id, message_object_id=message)
            )

    def _instead(self, code: int) -> Message:
        me = self.node.node_id
        facts = Metadata(
            run_id=self.run.run_id, message_id="", src_node_id=me, dst_node_id=me, reply_to_message_id="",
            group_id="", created_at=0.0, ttl=0.0, message_type=SYSTEM_MESSAGE_TYPE,
        )  # fmt: skip
        return make_message(facts, error=Error(code, ""))


def _put_together(reply: _Coming) -> Message:
    for content in reply.contents.values():
        kind, children, _ = get_object_head_values_from_object_content(content)
        if kind == Array.__name__:
            pieces = json.loads(get_object_body(content, Array))["arraychunk_ids"]
            if len(pieces) != len(children):
                raise ValueError("an array names a piece twice")
    message = inflate_object_from_contents(reply.message, reply.contents)
    if not isinstance(message, Message):
        raise TypeError("the reply is no message")
    return message
