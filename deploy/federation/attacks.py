"""What a stranger, an insider and a careless node try; each attempt tells whether it was stopped."""

import hashlib
import io
import ssl
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import httpx
import psutil
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient

from client.daemon.app import make_app
from client.daemon.task_loop import check_app
from coordinator.fleet.flower import client as flower
from coordinator.fleet.simulation.local_grid import LocalGrid, VirtualNode
from deploy.demo.processes import free_port
from deploy.federation.cast import Cast, planted
from protocol.documents import Pool, read_pool, timestamp
from protocol.errors import Code, Refused
from protocol.fleet.campaign import Order, app_bundle, sign_order
from protocol.fleet.node_key import NodeKey
from protocol.fleet.reply import ANSWER, METRICS, Reply
from protocol.programs import end_child
from protocol.signing import Identity

STRANGER_S = 15.0
"""How long a stranger's node may try to get in, in seconds."""


def attempt_all(cast: Cast) -> list[dict[str, object]]:
    """Try everything, and return one entry a case."""
    place = cast.folder / "coordinator"
    pool, key = read_pool((place / "pool.dsse.json").read_bytes()), Identity.load(place / "coordinator.key")
    app, changed, packed = app_bundle(), ("client/daemon/app.py", "app = None"), ("private/train.jsonl", "PRIVATE")
    cases: dict[str, Callable[[], bool]] = {
        "a stranger's node key": lambda: stranger_key(cast),
        "a stranger registers and starts a run": lambda: stranger_control(cast),
        "a task taken from the runtime interface": stolen_task,
        "a stranger's app bundle": lambda: refuses(pool, _zip("evil.py", "import os")),
        "a changed app under an old name": lambda: refuses(pool, _zip(*changed, app)),
        "data files packed into an app bundle": lambda: refuses(pool, _zip(*packed, app)),
        "an order that the pool did not sign": lambda: unsigned_order(pool),
        "private text in an exception": lambda: exception_text(pool, key),
        "an array where a metric is due": lambda: array_for_metric(pool, key),
    }
    return [{"case": case, "blocked": blocked()} for case, blocked in cases.items()]


def stranger_key(cast: Cast) -> bool:
    """A SuperNode with a key that nobody bound tries to connect."""
    folder = cast.folder / "stranger"
    folder.mkdir()
    NodeKey.generate().save(folder / "node.key")
    with (folder / "log").open("w") as log:
        node = subprocess.Popen(
            [sys.executable, "-m", "client.daemon.supernode", "--superlink", cast.fleet, "--root-certificates",
             str(cast.certificate), "--auth-supernode-private-key", str(folder / "node.key"), "--isolation", "process",
             "--host", "127.0.0.1", "--port", str(free_port())],
            stdin=subprocess.PIPE, stdout=log, stderr=log,
        )  # fmt: skip
        with suppress(subprocess.TimeoutExpired):
            node.wait(STRANGER_S)
        end_child(node, at_once=True)
    return "SuperNode ID" not in (folder / "log").read_text()


def stranger_control(cast: Cast) -> bool:
    """Ask the public port to register a key, to start a run, and for what else it might have."""
    paths = ("control/register-node", "control/start-run", "control/list-runs", "runtime/acquire-task")
    trusting = ssl.create_default_context(cafile=str(cast.certificate))
    with httpx.Client(verify=trusting) as client:
        answers = [client.post(f"https://{cast.fleet}/v1/{path}").status_code for path in paths]
        answers.append(client.get(f"https://{cast.fleet}/docs").status_code)
    return set(answers) == {httpx.codes.NOT_FOUND}


def stolen_task() -> bool:
    """A process of the same machine asks every inner port for a task, without the secret."""
    programs = ("coordinator.fleet.flower.gateway", "client.daemon.supernode")
    ports = {
        connection.laddr.port
        for process in psutil.process_iter(["cmdline"])
        if any(program in (process.info["cmdline"] or []) for program in programs)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    return bool(ports) and not any(_takes_task(port) for port in ports)


def _takes_task(port: int) -> bool:
    client = RuntimeHttpClient.from_server_address(
        server_address=f"127.0.0.1:{port}", insecure=True, root_certificates=None,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="stranger")],
    )  # fmt: skip
    try:
        client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP, TaskType.CLIENT_APP]))
    except httpx.HTTPError:
        return False
    return True  # whether or not there was a task to be had


def refuses(pool: Pool, content: bytes) -> bool:
    """A node is handed an app bundle that the pool does not name."""
    for digest in (hashlib.sha256(content).hexdigest(), *pool.spec.policy.apps):
        try:
            check_app(digest, content, pool)
        except Refused as error:
            if error.code is not Code.APP_UNKNOWN:
                return False
        else:
            return False
    return True


def unsigned_order(pool: Pool) -> bool:
    """Whoever took over Flower's server asks a node for something."""
    done: list[Order] = []

    def act(order: Order) -> Reply:
        done.append(order)
        return Reply()

    said, _ = _ask(make_app(pool, act, lambda _: None), pool, Identity.generate())
    return not done and (said.state, said.code) == ("failed", Code.ORDER_INVALID.name)


def exception_text(pool: Pool, key: Identity) -> bool:
    """A node's own code fails over a private row."""
    secret = planted("exception")

    def act(_: Order) -> Reply:
        raise KeyError(secret)

    said, wire = _ask(make_app(pool, act, lambda _: None), pool, key)
    return said.state == "failed" and not any(secret.encode() in raw for raw in wire)


def array_for_metric(pool: Pool, key: Identity) -> bool:
    """A node answers with an array; its coordinator takes nothing of it."""
    app = ClientApp()

    @app.query("info")
    def info(message: Message, context: Context) -> Message:  # noqa: ARG001 - Flower's signature
        metrics, answer = MetricRecord({"memory_gb": 1.0}), ConfigRecord({"state": "done"})
        content = RecordDict({ANSWER: answer, METRICS: metrics, "arrays": ArrayRecord([])})
        return Message(content, reply_to=message)

    said, _ = _ask(app, pool, key)
    return (said.state, said.code, dict(said.metrics)) == ("failed", Code.EGRESS.name, {})


def _ask(app: ClientApp, pool: Pool, signer: Identity) -> tuple[Reply, list[bytes]]:
    """Hand an app an order over a wire that is recorded, and return what it answers and what was heard."""
    now = datetime.now(UTC)
    expires = timestamp(now + timedelta(hours=1))
    order = Order(pool=pool.digest, number=1, kind="info", created=timestamp(now), expires=expires)
    wire: list[bytes] = []
    grid = LocalGrid([VirtualNode("key", app)], on_wire=wire.append)
    run = grid.as_run()
    message = flower.ask(run, 1, "info", sign_order(order, signer), ttl_s=60)
    while not (heard := flower.hear(run, "info", [message])):
        pass
    grid.close()
    return heard[message], wire


def _zip(name: str, text: str, base: bytes = b"") -> bytes:
    """Add a file to an archive, or begin one."""
    buffer = io.BytesIO(base)
    with zipfile.ZipFile(buffer, "a" if base else "w") as archive:
        archive.writestr(name, text)
    return buffer.getvalue()
