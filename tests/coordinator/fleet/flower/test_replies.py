"""What a contributor's node may send in place of a reply, over Flower's own server: it is that node's fault alone."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.message_pb2 import ObjectTree, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_id,
    get_object_tree,
)
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.superlink.grid import HttpGrid
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from coordinator.fleet.flower import client, replies
from coordinator.fleet.flower.gateway import Guard, inside
from protocol.fleet.node_key import NodeKey
from protocol.fleet.reply import ANSWER, ARRAYS, METRICS, UPDATE, Reply
from tests.stock import FLOWERS_OWN, SECRET, make_link, served

pytestmark = FLOWERS_OWN
GOOD = {ANSWER: ConfigRecord({"state": "done", "round": "1"}), METRICS: MetricRecord({"seconds": 1.0})}
PIECE, COPIES = b"\0" * 1000, 10_000


class RawNode:
    """Speaks with the server as a SuperNode does, and says what it likes."""

    def __init__(self, port: int, key: NodeKey) -> None:
        private = key._key
        self.fleet = FleetHttpClient.from_server_address(
            server_address=f"127.0.0.1:{port}", insecure=True, root_certificates=None,
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="node"),
                NodeAuthHttpInterceptor(private, private.public_key()),
            ],
        )  # fmt: skip
        wanted = ActivateNodeRequest(public_key=key.public.encode(), heartbeat_interval=60)
        self.node = Node(node_id=self.fleet.ActivateNode(wanted).node_id)

    def close(self) -> None:
        self.fleet.close()

    def pull(self) -> Message:
        (asked,) = self.fleet.PullMessages(PullMessagesRequest(node=self.node)).messages_list
        return message_from_proto(asked)

    def announce(self, reply: Message, tree: ObjectTree, root: str) -> str:
        """Say of which parts a reply is made; returns what they are sent with."""
        reply.metadata.__dict__["_message_id"] = root
        announced = message_to_proto(remove_content_from_message(reply))
        wanted = PushMessagesRequest(node=self.node, messages_list=[announced], message_object_trees=[tree])
        return self.fleet.PushMessages(wanted).session_id

    def send(self, reply: Message, parts: dict[str, bytes], session: str) -> None:
        for name, content in parts.items():
            self.fleet.PushObject(
                PushObjectRequest(
                    node=self.node, run_id=reply.metadata.run_id, object_id=name, object_content=content,
                    session_id=session,
                )
            )  # fmt: skip


def deflated(reply: Message) -> dict[str, bytes]:
    return {name: each.deflate() for name, each in get_all_nested_objects(reply).items()}


def answer(node: RawNode, asked: Message, content: Mapping[str, object]) -> None:
    """Reply as an honest node does."""
    reply = Message(RecordDict(content), reply_to=asked)  # type: ignore[arg-type]
    parts, tree = deflated(reply), get_object_tree(reply)
    node.send(reply, parts, node.announce(reply, tree, reply.object_id))


def instead(node: RawNode, asked: Message, *contents: bytes) -> None:
    """Reply with parts of one's own making, the last of which stands for the reply."""
    reply = Message(RecordDict(GOOD), reply_to=asked)  # type: ignore[arg-type]
    parts = {get_object_id(content): content for content in contents}
    *others, root = parts
    tree = ObjectTree(object_id=root, children=[ObjectTree(object_id=each) for each in others])
    node.send(reply, parts, node.announce(reply, tree, root))


Send = Callable[[RawNode, Message], None]


def no_message(node: RawNode, asked: Message) -> None:
    instead(node, asked, GOOD[METRICS].deflate())


def garbage(node: RawNode, asked: Message) -> None:
    body = b"\xff" * 50
    instead(node, asked, b"Message  50\0" + body)


def another_address(node: RawNode, asked: Message) -> None:
    """The inner metadata name another message than the outer ones, which the server has checked."""
    reply = Message(RecordDict(GOOD), reply_to=asked)  # type: ignore[arg-type]
    reply.metadata.__dict__["_reply_to_message_id"] = "f" * 64
    parts, tree, root = deflated(reply), get_object_tree(reply), reply.object_id
    reply.metadata.__dict__["_reply_to_message_id"] = asked.metadata.message_id
    node.send(reply, parts, node.announce(reply, tree, root))


def many_parts(node: RawNode, asked: Message) -> None:
    records = {f"r{at}": MetricRecord({"a": float(at)}) for at in range(replies.MOST_PARTS)}
    answer(node, asked, {**GOOD, **records})


def large(node: RawNode, asked: Message) -> None:
    answer(node, asked, {**GOOD, "row": ConfigRecord({"row": "x" * replies.MOST_BYTES})})


class Bomb(Array):
    """Names its one piece ten thousand times."""

    def deflate(self) -> bytes:
        about = {"dtype": "float32", "shape": [1], "stype": "x", "arraychunk_ids": [0] * COPIES}
        body = json.dumps(about).encode()
        return f"Array {','.join(self.children or {})} {len(body)}".encode() + b"\0" + body


def blown_up(node: RawNode, asked: Message) -> None:
    array = Array("float32", (250,), "x", PIECE)
    reply = Message(RecordDict({**GOOD, ARRAYS: ArrayRecord({UPDATE: array})}), reply_to=asked)  # type: ignore[dict-item]
    reply.content.array_records[ARRAYS][UPDATE].__class__ = Bomb  # Flower copies what it is given
    parts, tree = deflated(reply), get_object_tree(reply)
    node.send(reply, parts, node.announce(reply, tree, reply.object_id))


def metrics(**values: object) -> Send:
    return lambda node, asked: answer(node, asked, {**GOOD, METRICS: MetricRecord(values)})  # type: ignore[arg-type]


def words(**values: object) -> Send:
    return lambda node, asked: answer(node, asked, {**GOOD, ANSWER: ConfigRecord(values)})  # type: ignore[arg-type]


CASES = {
    "no message": no_message,
    "garbage": garbage,
    "many parts": many_parts,
    "large": large,
    "blown up": blown_up,
    "not a number": metrics(seconds=float("nan")),
    "infinity": metrics(seconds=float("inf")),
    "a list": metrics(seconds=[1.0] * 1000),
    "another number": metrics(age_of_patient=47),
    "a long word": words(state="done", round="1" * 100_000),
    "another word": words(state="done", row="PRIVATE"),
    "bytes": words(state="done", round=b"1"),
}


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    app, fleet = make_link(tmp_path)
    within = inside(SECRET)
    with served(Guard(app, lambda scope: within(scope) or scope["path"] in fleet)) as port:
        yield port


class Street:
    """A server, and nodes that were let in and asked."""

    def __init__(self, port: int, names: Iterable[str]) -> None:
        self.superlink = client.Superlink(port, SECRET)
        self.nodes: dict[str, RawNode] = {}
        for name in names:
            key = NodeKey.generate()
            self.superlink.register(key.public, name)
            self.nodes[name] = RawNode(port, key)
        self.run = self.superlink.begin()
        self.asked = {
            name: client.ask(self.run, node.node.node_id, "calibrate", b"{}", ttl_s=300)
            for name, node in self.nodes.items()
        }

    def hear(self, *names: str) -> dict[str, Reply]:
        return client.hear(self.run, "calibrate", [self.asked[name] for name in names])

    def close(self) -> None:
        client.finish(self.run)
        self.superlink.close()
        for node in self.nodes.values():
            node.close()


def test_whatever_a_node_sends_is_its_own_fault_and_others_are_heard(port: int) -> None:
    with closing(Street(port, ("good", "elsewhere", *CASES))) as street:
        for name, send in CASES.items():
            send(street.nodes[name], street.nodes[name].pull())
        answer(street.nodes["good"], street.nodes["good"].pull(), GOOD)
        another_address(street.nodes["elsewhere"], street.nodes["elsewhere"].pull())
        heard = street.hear(*street.nodes)
        said = {name: heard[message] for name, message in street.asked.items()}
        assert (said["good"].state, said["elsewhere"].state) == ("done", "done")
        wrong = {name: (said[name].state, said[name].code) for name in CASES}
        assert wrong == dict.fromkeys(CASES, ("failed", "EGRESS"))


def test_flowers_own_grid_believes_a_node(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies.CarefulGrid, "pull_messages", HttpGrid.pull_messages)
    with closing(Street(port, ("no message", "elsewhere", "blown up"))) as street:
        no_message(street.nodes["no message"], street.nodes["no message"].pull())
        with pytest.raises(AttributeError):
            street.hear("no message")
        another_address(street.nodes["elsewhere"], street.nodes["elsewhere"].pull())
        assert list(street.hear("elsewhere")) == ["f" * 64]
        blown_up(street.nodes["blown up"], street.nodes["blown up"].pull())
        (message,) = street.run.grid.pull_messages([street.asked["blown up"]])
        assert len(message.content.array_records[ARRAYS][UPDATE].data) == COPIES * len(PIECE)


def test_a_reply_that_is_on_its_way_holds_nobody_up(port: int) -> None:
    with closing(Street(port, ("slow",))) as street:
        node = street.nodes["slow"]
        reply = Message(RecordDict(GOOD), reply_to=node.pull())  # type: ignore[arg-type]
        parts, session = deflated(reply), node.announce(reply, get_object_tree(reply), reply.object_id)
        began = time.monotonic()
        assert street.hear("slow") == {}
        assert time.monotonic() - began < 5  # Flower's own would wait for three minutes
        node.send(reply, parts, session)
        assert [said.state for said in street.hear("slow").values()] == ["done"]
