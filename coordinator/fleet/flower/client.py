"""Flower as a campaign uses it: node keys, one run, messages out, replies in."""

import contextlib
import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import httpx
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.constant import ErrorCode, SubStatus
from flwr.common.serde import fab_to_proto, run_from_proto
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, StartRunRequest, UnregisterNodeRequest
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullTaskInputRequest, PushTaskOutputRequest
from flwr.serverapp import Grid
from flwr.supercore.constant import TaskType
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from coordinator.fleet.flower.gateway import header
from coordinator.fleet.flower.replies import MALFORMED, CarefulGrid
from protocol.errors import Code, Unavailable
from protocol.fleet.campaign import app_bundle
from protocol.fleet.reply import ANSWER, ARRAYS, METRICS, ORDER, UPDATE, Reply, read_reply

MESSAGE_TYPES: dict[str, str] = {
    "info": "query.info", "train": "train", "evaluate": "evaluate", "calibrate": "train.calibrate",
}  # fmt: skip
_COMPONENT = "greylag"
_TRIES = 2
_GONE = {ErrorCode.NODE_UNAVAILABLE, ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE}


@dataclass(frozen=True)
class Run:
    """One Flower run, through which a campaign's messages go."""

    grid: Grid
    task: int
    run: int
    node: int
    heartbeat: HeartbeatSender | None = None

    def enter(self) -> None:
        """Be this run's task for the next message: Flower keeps that in one place for the whole process."""
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = self.task, self.run, self.node


class Online(NamedTuple):
    """A node that is connected."""

    number: int
    """Flower's identifier."""
    since: datetime | None
    """When it connected; whatever it had been asked before is lost."""


class Superlink:
    """The inner door of a guarded SuperLink.

    Args:
        port: Its loopback port.
        secret: What it was started with.
    """

    def __init__(self, port: int, secret: bytes) -> None:
        self._address = f"127.0.0.1:{port}"
        version = RuntimeVersionHttpInterceptor(component_name=_COMPONENT)
        plain: dict[str, Any] = {"server_address": self._address, "insecure": True, "root_certificates": None}
        shown = RuntimeTokenHttpInterceptor(header(secret))
        self._control = ControlHttpClient.from_server_address(**plain, interceptors=[version, shown])
        acquire = SuperExecAuthHttpInterceptor(
            master_secret=secret, protected_methods=frozenset({"/flwr.proto.Runtime/AcquireTask"})
        )
        self._executor = RuntimeHttpClient.from_server_address(**plain, interceptors=[version, acquire])

    def close(self) -> None:
        """Close the connections."""
        self._control.close()
        self._executor.close()

    def nodes(self) -> list[NodeInfo]:
        """Every node that was ever registered."""
        return list(self._control.ListNodes(ListNodesRequest()).nodes_info)

    def register(self, public: str, name: str) -> None:
        """Let a node's key in."""
        self._control.RegisterNode(RegisterNodeRequest(public_key=public.encode(), name=name))

    def unregister(self, node: int) -> None:
        """Let a node's key in no more."""
        self._control.UnregisterNode(UnregisterNodeRequest(node_id=node))

    def begin(self) -> Run:
        """Become the ServerApp of a run: of one that nobody took, or of a new one.

        Raises:
            Unavailable: `BUSY` if no run is to be had.
        """
        wanted = AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])
        acquired = self._executor.AcquireTask(wanted)
        if not acquired.token:
            content = app_bundle()
            fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
            self._control.StartRun(StartRunRequest(fab=fab_to_proto(fab)))
            acquired = self._executor.AcquireTask(wanted)
        if not acquired.token:
            raise Unavailable(Code.BUSY, "Flower hands out no run.", "The campaign is tried again.")
        grid = CarefulGrid(self._address, token=acquired.token)
        grid._retry_invoker.max_tries = _TRIES  # noqa: SLF001 - else it tries for ever, and nobody could stop it
        client = grid._runtime_client  # noqa: SLF001 - Flower's own ServerApp process goes this way, too
        try:
            given = client.PullTaskInput(PullTaskInputRequest())
            run = run_from_proto(given.run)
        except Exception:
            grid.close()
            raise
        grid.set_run(run)
        heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(client))
        heartbeat.start()
        return Run(grid, given.task_id, run.run_id, given.context.node_id, heartbeat)


def finish(run: Run) -> None:
    """Give a run back as completed; one whose server is gone is let go."""
    if run.heartbeat is not None and run.heartbeat.is_running:
        run.heartbeat.stop()
    if isinstance(run.grid, HttpGrid):
        run.grid._retry_invoker.max_tries = 1  # noqa: SLF001 - as Flower's own process does at its end
        with contextlib.suppress(httpx.HTTPError):
            run.grid._runtime_client.PushTaskOutput(  # noqa: SLF001
                PushTaskOutputRequest(context=None, sub_status=SubStatus.COMPLETED, details="")
            )
        run.grid.close()


def online(run: Run) -> dict[str, Online]:
    """Nodes that are connected, by public key."""
    return {
        node.public_key.decode(): Online(
            node.node_id, datetime.fromisoformat(node.last_activated_at) if node.last_activated_at else None
        )
        for node in run.grid.get_nodes()
    }


def ask(run: Run, node: int, kind: str, order: bytes, *, ttl_s: float) -> str:
    """Send a signed order to a node, and return the message's identifier."""
    run.enter()
    content = RecordDict({ORDER: ConfigRecord({"envelope": order})})
    message = Message(content, node, MESSAGE_TYPES[kind], ttl=ttl_s)
    sent = list(run.grid.push_messages([message]))
    return sent[0] if sent and sent[0] else ""


def hear(run: Run, kind: str, messages: Collection[str]) -> dict[str, Reply]:
    """Take the replies that have come, by the messages they answer; what breaks the schema is its node's failure."""
    if not messages:
        return {}
    run.enter()
    return {reply.metadata.reply_to_message_id: _read(kind, reply) for reply in run.grid.pull_messages(messages)}


def _read(kind: str, message: Message) -> Reply:
    if message.has_error():
        if message.error.code == MALFORMED:
            return Reply("failed", Code.EGRESS.name)
        gone = message.error.code in _GONE or message.error.code == ErrorCode.CLIENT_APP_CRASHED
        return Reply("later" if gone else "failed", Code.UNREACHABLE.name if gone else Code.INTERNAL.name)
    content = message.content
    if set(content) - {ARRAYS} != {ANSWER, METRICS}:
        return Reply("failed", Code.EGRESS.name)  # a record that nobody asked for
    try:
        # Its bytes are taken as they are: nothing of a node's choosing is unpacked here.
        arrays = {name: array.data for name, array in content.array_records.get(ARRAYS, {}).items()}
        update = arrays.get(UPDATE, b"")
        if ARRAYS in content and (len(arrays) != 1 or not update):
            return Reply("failed", Code.EGRESS.name)
        return read_reply(kind, content.config_records[ANSWER], content.metric_records[METRICS], update)
    except Exception:  # noqa: BLE001 - a reply of a stranger's choosing is that node's failure, whatever is wrong with it
        return Reply("failed", Code.EGRESS.name)
